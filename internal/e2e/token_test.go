//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fasthttp/websocket"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/daemon/daemontest"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/token"
	"github.com/revq/revq/internal/wire"
)

// A guarded is a system that lets in only those who have a token. Its daemons
// have the file of tokens as a credential, as from systemd.
type guarded struct {
	*system
	file    string
	secrets []string // which nobody else may see
	said    bytes.Buffer
}

// guard starts a system with the lines of a file of tokens.
func guard(t *testing.T, args ...string) *guarded {
	t.Helper()
	dir := t.TempDir()
	g := &guarded{system: prepare(t, rabbittest.Shared(t)), file: filepath.Join(dir, "tokens")}
	g.write(t, strings.Repeat("0", 64)+" send *") // the test makes others
	if err := os.WriteFile(filepath.Join(dir, "amqp-url"), []byte(g.url+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	startDaemon := func(name string, sockets []daemontest.Socket) *daemontest.Daemon {
		return daemontest.Start(t, daemontest.Config{
			Path: daemontest.Binary(t, name), Sockets: sockets, Args: append(args, "--log-level=debug"),
			Env: []string{"CREDENTIALS_DIRECTORY=" + dir},
		})
	}
	g.api, g.socket = startDaemon("revq-api", g.apiSockets), startDaemon("revq-socket", g.socketSockets)
	g.api.WaitReady(t)
	g.socket.WaitReady(t)
	g.startWorker(t, "--pause", "0s")
	return g
}

// token makes a token, and returns it and its line for the file.
func (g *guarded) token(grant token.Grant) (text, line string) {
	text, hash := token.New()
	line = grant.Line(hash)
	g.secrets = append(g.secrets, text, line[:64])
	return text, line
}

func (g *guarded) write(t *testing.T, lines ...string) {
	t.Helper()
	if err := os.WriteFile(g.file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// reload writes the file of tokens and has the daemons read it.
func (g *guarded) reload(t *testing.T, want string, lines ...string) {
	t.Helper()
	g.write(t, lines...)
	for _, d := range []*daemontest.Daemon{g.api, g.socket} {
		n := strings.Count(d.Log(), want)
		d.Signal(t, syscall.SIGHUP)
		await.True(t, "the daemon says: "+want, func() bool { return strings.Count(d.Log(), want) > n })
	}
}

// ask sends a request with a token and returns the answer.
func (g *guarded) ask(t *testing.T, method, addr, path, bearer, body string) answer {
	t.Helper()
	var header []string
	if body != "" {
		header = append(header, "Content-Type", "text/plain")
	}
	if bearer != "" {
		header = append(header, "Authorization", "Bearer "+bearer)
	}
	a := request(t, method, addr, path, body, header...)
	if path != wire.TicketPath {
		fmt.Fprintf(&g.said, "%v %s\n", a.header, a.body)
	}
	return a
}

func (g *guarded) ticket(t *testing.T, bearer string) string {
	t.Helper()
	var got struct{ Ticket string }
	a := g.ask(t, http.MethodPost, g.socketSite, wire.TicketPath, bearer, "")
	if err := json.Unmarshal([]byte(a.body), &got); err != nil || got.Ticket == "" {
		t.Fatalf("no ticket: %d %s", a.status, a.body)
	}
	g.secrets = append(g.secrets, got.Ticket)
	return got.Ticket
}

// hear listens with the subprotocols and the query of a browser. It returns the
// messages, and closes them with the connection's end, which is then in *end.
func (g *guarded) hear(t *testing.T, query string, protocols ...string) (messages <-chan wire.Message, end *error) {
	t.Helper()
	d := websocket.Dialer{Subprotocols: protocols}
	conn, _, err := d.DialContext(await.Context(t), "ws://"+g.socketSite+wire.ListenPath+"?format=json"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	heard := make(chan wire.Message, 100)
	end = new(error)
	go func() {
		defer close(heard)
		for {
			var m wire.Message
			if *end = conn.ReadJSON(&m); *end != nil {
				return
			}
			heard <- m
		}
	}()
	if m := next(t, heard); m.Text != wire.Greeting {
		t.Fatalf("greeted with %+v", m)
	}
	return heard, end
}

// hearEvents is hear with server-sent events.
func (g *guarded) hearEvents(t *testing.T, query, bearer string) <-chan wire.Message {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+g.socketSite+wire.ListenPath+"?"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusOK {
		t.Fatalf("events: %d", res.StatusCode)
	}
	heard := make(chan wire.Message, 100)
	go func() {
		defer close(heard)
		defer res.Body.Close()
		all := json.NewDecoder(dataOf(res.Body))
		for {
			var m wire.Message
			if all.Decode(&m) != nil {
				return
			}
			heard <- m
		}
	}()
	if m := next(t, heard); m.Text != wire.Greeting {
		t.Fatalf("greeted with %+v", m)
	}
	return heard
}

// dataOf returns the data of server-sent events.
func dataOf(events io.Reader) io.Reader {
	r, w := io.Pipe()
	go func() {
		lines := bufio.NewScanner(events)
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				if _, err := io.WriteString(w, data+"\n"); err != nil {
					return
				}
			}
		}
		w.CloseWithError(io.EOF)
	}()
	return r
}

// next returns the next message of a listener.
func next(t *testing.T, heard <-chan wire.Message) wire.Message {
	t.Helper()
	select {
	case m, ok := <-heard:
		if !ok {
			t.Fatal("the listener was disconnected")
		}
		return m
	case <-time.After(await.Patience):
		t.Fatalf("the listener heard nothing for %v", await.Patience)
	}
	panic("not reached")
}

// ends waits for the end of a listener.
func ends(t *testing.T, heard <-chan wire.Message) {
	t.Helper()
	for late := time.After(await.Patience); ; {
		select {
		case _, ok := <-heard:
			if !ok {
				return
			}
		case <-late:
			t.Fatalf("the listener was not disconnected within %v", await.Patience)
		}
	}
}

// Listeners whose token is revoked are disconnected when the daemons reload,
// others are not, and nothing that the daemons say or show holds a token.
func TestTokensOfDaemons(t *testing.T) {
	t.Parallel()
	g := guard(t)
	all := token.Send | token.Listen
	sender, senderLine := g.token(token.Grant{Scope: token.Send})
	kept, keptLine := g.token(token.Grant{Scope: all})
	revoked, revokedLine := g.token(token.Grant{Scope: token.Listen})
	narrowed, narrowedLine := g.token(token.Grant{Scope: token.Listen})
	other, otherLine := g.token(token.Grant{Scope: all, Queues: token.Queues{"thumbs"}})
	expired, expiredLine := g.token(token.Grant{Scope: all, Expires: time.Now().Add(-time.Minute)})
	unknown, _ := g.token(token.Grant{Scope: all})
	lines := []string{senderLine, keptLine, otherLine, expiredLine}
	g.reload(t, "reloaded", append(lines, revokedLine, narrowedLine)...)

	results := wire.ResultPath + "some-id"
	for _, tc := range []struct {
		name, bearer                  string
		post, postOther, listen, poll int
	}{
		{"no token", "", 401, 401, 401, 401},
		{"an unknown one", unknown, 401, 401, 401, 401},
		{"one that has expired", expired, 401, 401, 401, 401},
		{"a hash", keptLine[:64], 401, 401, 401, 401},
		{"one for sending", sender, 202, 404, 403, 403},
		{"one for listening", revoked, 403, 403, 426, 404},
		{"one for another queue", other, 403, 404, 403, 404},
		{"one for all", kept, 202, 404, 426, 404},
	} {
		for what, got := range map[string][2]int{
			"post":                  {tc.post, g.ask(t, http.MethodPost, g.apiSites[0], wire.QueuePath, tc.bearer, "x").status},
			"post to another queue": {tc.postOther, g.ask(t, http.MethodPost, g.apiSites[1], wire.QueuePrefix+"thumbs", tc.bearer, "x").status},
			"listen":                {tc.listen, g.ask(t, http.MethodGet, g.socketSite, wire.ListenPath+"?queue="+wire.DefaultQueue, tc.bearer, "").status},
			"poll":                  {tc.poll, g.ask(t, http.MethodGet, g.socketSite, results, tc.bearer, "").status},
		} {
			if got[0] != got[1] {
				t.Errorf("%s: %s is answered %d, want %d", tc.name, what, got[1], got[0])
			}
		}
	}

	stays, _ := g.hear(t, "", wire.Subprotocol, wire.TokenSubprotocol+kept)
	staysEvents := g.hearEvents(t, "", kept)
	goes, end := g.hear(t, "", wire.Subprotocol, wire.TokenSubprotocol+revoked)
	loses, lostEnd := g.hear(t, "", wire.Subprotocol, wire.TokenSubprotocol+narrowed)
	ticket := g.ticket(t, revoked)
	goesToo, endToo := g.hear(t, "&ticket="+ticket)
	goesEvents := g.hearEvents(t, "ticket="+ticket, "")

	g.reload(t, "line 1", "not a line") // a wrong file changes nothing
	id := func(text string) {
		t.Helper()
		if a := g.ask(t, http.MethodPost, g.apiSites[0], wire.QueuePath, kept, text); a.status != http.StatusAccepted {
			t.Fatalf("post: %d %s", a.status, a.body)
		}
	}
	id("before")
	for _, heard := range []<-chan wire.Message{stays, staysEvents, goes, loses, goesToo, goesEvents} {
		if m := next(t, heard); m.Text == wire.Greeting {
			t.Errorf("heard %+v", m)
		}
	}

	narrowedLine = strings.Replace(narrowedLine, "*", "thumbs", 1)
	began := time.Now()
	g.reload(t, "reloaded", append(lines, narrowedLine)...)
	for _, heard := range []<-chan wire.Message{goes, loses, goesToo, goesEvents} {
		ends(t, heard)
	}
	t.Logf("the revoked listeners were disconnected within %v", time.Since(began).Round(time.Millisecond))
	for _, end := range []*error{end, lostEnd, endToo} {
		var closed *websocket.CloseError
		if !errors.As(*end, &closed) || closed.Code != wire.ClosePolicy {
			t.Errorf("a revoked listener was disconnected with %v, want the status %d", *end, wire.ClosePolicy)
		}
		fmt.Fprintln(&g.said, *end)
	}
	if a := g.ask(t, http.MethodGet, g.socketSite, wire.ListenPath+"?ticket="+ticket, "", ""); a.status != http.StatusUnauthorized {
		t.Errorf("the ticket of a revoked token: %d", a.status)
	}
	id("after")
	for next(t, stays).Text != "retfa" {
	}
	for next(t, staysEvents).Text != "retfa" {
	}
	g.checkSecrets(t)
}

// checkSecrets fails the test if what the daemons have said or show to others
// holds a secret.
func (g *guarded) checkSecrets(t *testing.T) {
	t.Helper()
	for _, d := range []*daemontest.Daemon{g.api, g.socket} {
		shown := map[string]string{
			"log": d.Log(), "messages to the service manager": strings.Join(d.States(), "\n"), "answers and errors": g.said.String(),
		}
		for _, name := range []string{"cmdline", "environ", "status"} {
			content, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", d.Pid(), name))
			if err != nil && !errors.Is(err, os.ErrPermission) {
				t.Fatal(err)
			}
			shown[name] = string(content)
		}
		for where, text := range shown {
			for _, secret := range g.secrets {
				if strings.Contains(text, secret) || strings.Contains(text, secret[:len(secret)/2]) {
					t.Errorf("the %s of a daemon holds a secret", where)
				}
			}
		}
	}
}

// A daemon that other machines can reach and that has no tokens says so once,
// also with sockets from a service manager.
func TestWithoutTokens(t *testing.T) {
	t.Parallel()
	s := prepare(t, rabbittest.Shared(t))
	file := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(file, []byte(strings.Repeat("0", 64)+" send *\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	everywhere, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer everywhere.Close()
	here, _ := daemontest.Listen(t)
	const warning = "everyone who reaches the port is let in"
	for _, name := range []string{"revq-api", "revq-socket"} {
		for _, tc := range []struct {
			what    string
			sockets []daemontest.Socket
			args    []string
			want    int
		}{
			{"a socket of this machine", []daemontest.Socket{here}, nil, 0},
			{"a socket for all", []daemontest.Socket{here, everywhere.(*net.TCPListener)}, nil, 1},
			{"an address for all", nil, []string{"--listen", "0.0.0.0:0"}, 1},
			{"an address of this machine", nil, []string{"--listen", "127.0.0.1:0"}, 0},
			{"a socket for all, and tokens", []daemontest.Socket{everywhere.(*net.TCPListener)}, []string{"--tokens", file}, 0},
		} {
			d := s.startDaemon(t, name, tc.sockets, tc.args...)
			d.WaitReady(t)
			d.Signal(t, syscall.SIGHUP)
			d.WaitLog(t, "reload")
			if n := strings.Count(d.Log(), warning); n != tc.want {
				t.Errorf("%s with %s says %d times that everyone is let in, want %d", name, tc.what, n, tc.want)
			}
			d.Terminate(t)
		}
	}
}
