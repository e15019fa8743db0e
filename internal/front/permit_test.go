package front_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/revq/revq/internal/api"
	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/socket"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/token"
)

// guarded are both fronts, with tokens in a file.
type guarded struct {
	api, socket site
	feed        *feed.Feed
	tokens      []*token.File // of the API and of the socket server
	log         *lockedBuffer // of both, at the lowest level
}

type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.String()
}

func (g *guarded) write(t *testing.T, lines ...string) {
	t.Helper()
	for _, f := range g.tokens {
		if err := os.WriteFile(f.Path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func startGuarded(t *testing.T, lines ...string) *guarded {
	t.Helper()
	apiConfig, socketConfig := api.DefaultConfig(), socket.DefaultConfig()
	g := &guarded{feed: feed.New(feed.DefaultConfig()), tokens: []*token.File{apiConfig.Tokens, socketConfig.Tokens}, log: &lockedBuffer{}}
	g.feed.GoLive()
	for _, f := range g.tokens {
		f.Path = filepath.Join(t.TempDir(), "tokens")
	}
	g.write(t, lines...)
	for _, f := range g.tokens {
		if err := f.Load(); err != nil {
			t.Fatal(err)
		}
	}
	log := slog.New(slog.NewTextHandler(g.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	start := func(name string, s server) site {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go s.Serve(ln)
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
			defer cancel()
			s.Shutdown(ctx)
		})
		return site{front: name, addr: ln.Addr().String()}
	}
	g.api = start("api", api.New(apiConfig, &broker{}, log))
	g.socket = start("socket", socket.New(socketConfig, g.feed, source{}, log))
	return g
}

func bearer(secret string) string { return "Authorization: Bearer " + secret + "\r\n" }

// secrets are tokens for the tests, by what they permit.
func secrets() (all map[string]string, lines []string) {
	all = make(map[string]string)
	for _, of := range []struct {
		name  string
		grant token.Grant
	}{
		{"send", token.Grant{Scope: token.Send}},
		{"listen", token.Grant{Scope: token.Listen}},
		{"thumbs", token.Grant{Scope: token.Send | token.Listen, Queues: token.Queues{"thumbs"}}},
		{"expired", token.Grant{Scope: token.Send | token.Listen, Expires: time.Now().Add(-time.Minute)}},
	} {
		secret, hash := token.New()
		all[of.name], lines = secret, append(lines, of.grant.Line(hash))
	}
	all["unknown"], _ = token.New()
	return all, lines
}

func (g *guarded) ask(t *testing.T, at site, raw string) reply {
	t.Helper()
	c := at.dial(t)
	send(t, c, raw, false)
	return read(t, bufio.NewReader(c))
}

// ticket asks for a ticket with a token.
func (g *guarded) ticket(t *testing.T, secret, query string) string {
	t.Helper()
	got := g.ask(t, g.socket, "POST /ticket"+query+" HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n"+bearer(secret)+"\r\n")
	got.check(t, 200, "")
	var answer struct {
		Ticket  string `json:"ticket"`
		Expires int    `json:"expires_in"`
	}
	if err := json.Unmarshal([]byte(got.body), &answer); err != nil || answer.Ticket == "" || answer.Expires != 60 {
		t.Fatalf("%v in %s", err, got.body)
	}
	return answer.Ticket
}

func TestTokens(t *testing.T) {
	t.Parallel()
	all, lines := secrets()
	g := startGuarded(t, lines...)
	to := func(path string) string {
		return "POST " + path + " HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n%s\r\nx"
	}
	from := func(query string) string {
		return "GET /listen_results" + query + " HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + version13 + nonce + "%s\r\n"
	}
	const events = "GET /listen_results%s HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n"
	queue, named, listen := to("/queue_reverse_text"), to("/queue/thumbs"), from("")
	all["ticket"] = g.ticket(t, all["listen"], "")
	all["ticket of thumbs"] = g.ticket(t, all["thumbs"], "")
	all["ticket of one"] = g.ticket(t, all["listen"], "?queue=thumbs")
	insufficient, invalid := `error="insufficient_scope"`, `error="invalid_token"`
	for _, tc := range []struct {
		name, raw, header string
		status            int
		detail, challenge string
	}{
		{"no token", queue, "", 401, "Authorization: Bearer", `Bearer realm="revq"`},
		{"unknown", queue, bearer(all["unknown"]), 401, "not known", invalid},
		{"expired", queue, bearer(all["expired"]), 401, "expired", invalid},
		{"empty", queue, bearer(""), 401, "", ""},
		{"another scheme", queue, "Authorization: Basic YTpi\r\n", 401, "only supported scheme", `Bearer realm="revq"`},
		{"two", queue, bearer(all["send"]) + bearer(all["send"]), 400, "more than one", `error="invalid_request"`},
		{"to send", queue, bearer(all["send"]), 202, "", ""},
		{"in lower case", queue, "authorization: bearer " + all["send"] + "\r\n", 202, "", ""},
		{"of another scope", queue, bearer(all["listen"]), 403, "lacks the scope send", insufficient},
		{"of another queue", queue, bearer(all["thumbs"]), 403, `the queue "reverse_text"`, insufficient},
		{"of this queue", named, bearer(all["thumbs"]), 202, "", ""},
		{"of all queues", named, bearer(all["send"]), 202, "", ""},
		{"a ticket, to send", to("/queue_reverse_text?ticket=" + all["ticket"]), "", 401, "only for listening", invalid},
		{"a ticket as a token", queue, bearer(all["ticket"]), 401, "not known", invalid},
		{"a wrong type, without a token", strings.Replace(queue, "text/plain", "a/b", 1), "", 401, "", `Bearer realm="revq"`},
		{"a continue, without a token", queue, "Expect: 100-continue\r\n", 401, "", `Bearer realm="revq"`},

		{"no token, to listen", listen, "", 401, "Authorization: Bearer", `Bearer realm="revq"`},
		{"to listen", listen, bearer(all["listen"]), 101, "", ""},
		{"to send, to listen", listen, bearer(all["send"]), 403, "lacks the scope listen", insufficient},
		{"of one queue, to listen", listen, bearer(all["thumbs"]), 101, "", ""},
		{"of another queue, to listen", from("?queue=thumbs&queue=reverse_text"), bearer(all["thumbs"]), 403, `the queue "reverse_text"`, insufficient},
		{"a subprotocol", listen, "Sec-WebSocket-Protocol: revq, revq.token." + all["listen"] + "\r\n", 101, "", ""},
		{"a wrong subprotocol", listen, "Sec-WebSocket-Protocol: revq, revq.token." + all["unknown"] + "\r\n", 401, "not known", invalid},
		{"a ticket", from("?ticket=" + all["ticket"]), "", 101, "", ""},
		{"a ticket for events", fmt.Sprintf(events, "?ticket="+all["ticket"]), "", 200, "", ""},
		{"no ticket for events", fmt.Sprintf(events, ""), "", 401, "", `Bearer realm="revq"`},
		{"a ticket of one queue", from("?queue=thumbs&ticket=" + all["ticket of one"]), "", 101, "", ""},
		{"a ticket of another queue", from("?queue=reverse_text&ticket=" + all["ticket of one"]), "", 403, `the queue "reverse_text"`, insufficient},
		{"a ticket and a token", from("?ticket=" + all["ticket"]), bearer(all["listen"]), 400, "more than one", ""},
		{"a forged ticket", from("?ticket=" + strings.Replace(all["ticket of thumbs"], "thumbs", "*", 1)), "", 401, "not valid here", invalid},
		{"a ticket for a ticket", "POST /ticket?ticket=" + all["ticket"] + " HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "", 401, "only for listening", invalid},
		{"a ticket of a sender", "POST /ticket HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n" + bearer(all["send"]) + "\r\n", "", 403, "lacks the scope listen", insufficient},
		{"a ticket for another queue", "POST /ticket?queue=reverse_text HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n" + bearer(all["thumbs"]) + "\r\n", "", 403, `the queue "reverse_text"`, insufficient},
		{"a result, without a token", "GET /results/x HTTP/1.1\r\nHost: a\r\n\r\n", "", 401, "", `Bearer realm="revq"`},
		{"health needs none", "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", "", 200, "", ""},
		{"a preflight needs none", "OPTIONS /listen_results HTTP/1.1\r\nHost: a\r\n\r\n", "", 204, "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			at := g.socket
			if strings.HasPrefix(tc.raw, "POST /queue") {
				at = g.api
			}
			raw := tc.raw
			if strings.Contains(raw, "%s") {
				raw = fmt.Sprintf(raw, tc.header)
			}
			c := at.dial(t)
			send(t, c, raw, false)
			r := bufio.NewReader(c)
			if strings.Contains(raw, "event-stream") && tc.status == 200 {
				line, err := r.ReadString('\n')
				if err != nil || !strings.HasPrefix(line, "HTTP/1.1 200") {
					t.Errorf("%q, %v", line, err)
				}
				return
			}
			got := read(t, r)
			got.check(t, tc.status, tc.detail)
			if challenge := got.Header.Get("WWW-Authenticate"); !strings.Contains(challenge, tc.challenge) || (challenge != "") != (tc.status == 401 || tc.status == 403 || tc.status == 400) {
				t.Errorf("WWW-Authenticate is %q, want %q", challenge, tc.challenge)
			}
			if strings.Contains(tc.header, "Protocol") && tc.status == 101 && got.Header.Get("Sec-WebSocket-Protocol") != "revq" {
				t.Errorf("the server agrees on %q", got.Header.Get("Sec-WebSocket-Protocol"))
			}
			for name, secret := range all {
				if strings.Contains(got.body, secret) || strings.Contains(fmt.Sprint(got.Header), secret) {
					t.Errorf("the answer holds %s", name)
				}
			}
		})
	}
	for name, secret := range all {
		if strings.Contains(g.log.text(), secret) {
			t.Errorf("the log holds %s", name)
		}
	}
}

// listen reads a websocket's frames, after the handshake and the greeting.
func (g *guarded) listen(t *testing.T, query, header string) *bufio.Reader {
	t.Helper()
	r := g.handshake(t, query, header)
	frame(t, r)
	return r
}

// handshake reads a websocket's frames, after the handshake.
func (g *guarded) handshake(t *testing.T, query, header string) *bufio.Reader {
	t.Helper()
	c := g.socket.dial(t)
	send(t, c, "GET /listen_results"+query+" HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+version13+nonce+header+"\r\n", false)
	r := bufio.NewReader(c)
	read(t, r).check(t, 101, "")
	return r
}

// frame returns the next frame that is no ping. The first ping comes at any time.
func frame(t *testing.T, r *bufio.Reader) (op byte, payload string) {
	t.Helper()
	for {
		var head [2]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, head[1])
		if _, err := io.ReadFull(r, b); err != nil {
			t.Fatal(err)
		}
		if op = head[0] & 0xf; op != byte(feed.OpPing) {
			return op, string(b)
		}
	}
}

// A listener gets the results of its token's queues only, and is closed soon
// after its token is revoked. Others stay.
func TestTokensOfListeners(t *testing.T) {
	t.Parallel()
	all, lines := secrets()
	g := startGuarded(t, lines...)
	everything, some := g.listen(t, "", bearer(all["listen"])), g.listen(t, "", bearer(all["thumbs"]))
	byTicket := g.listen(t, "?ticket="+g.ticket(t, all["thumbs"], ""), "")
	g.feed.Append(1, task.Result{ID: "a", Text: "one", Queue: "reverse_text"})
	g.feed.Append(2, task.Result{ID: "b", Text: "two", Queue: "thumbs"})
	for name, of := range map[string]struct {
		r    *bufio.Reader
		want []string
	}{"everything": {everything, []string{"one", "two"}}, "some": {some, []string{"two"}}, "by a ticket": {byTicket, []string{"two"}}} {
		for _, want := range of.want {
			if _, got := frame(t, of.r); got != want {
				t.Errorf("%s got %q, want %q", name, got, want)
			}
		}
	}
	result := "GET /results/%s HTTP/1.1\r\nHost: a\r\n" + bearer(all["thumbs"]) + "\r\n"
	g.ask(t, g.socket, fmt.Sprintf(result, "a")).check(t, 403, "the queue of this task")
	g.ask(t, g.socket, fmt.Sprintf(result, "b")).check(t, 200, "")

	g.write(t, lines[:2]...)
	for _, f := range g.tokens {
		if err := f.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range []*bufio.Reader{some, byTicket} {
		op, payload := frame(t, r)
		if op != 8 || binary.BigEndian.Uint16([]byte(payload)) != 1008 || !strings.Contains(payload, "token") {
			t.Errorf("after the token was revoked came %d %q", op, payload)
		}
	}
	g.feed.Append(3, task.Result{ID: "c", Text: "three", Queue: "thumbs"})
	if _, got := frame(t, everything); got != "three" {
		t.Errorf("another listener got %q", got)
	}
	g.ask(t, g.api, "POST /queue/thumbs HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n"+bearer(all["thumbs"])+"\r\nx").check(t, 401, "not known")
}

// Without tokens there are no tickets, and the subprotocol is agreed on anyway,
// so that the same page works.
func TestNoTokens(t *testing.T) {
	t.Parallel()
	for _, s := range sites(t) {
		if s.front != "socket" {
			continue
		}
		c := s.dial(t)
		send(t, c, "POST /ticket HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"+handshake+"Sec-WebSocket-Protocol: x, revq, revq.token.a\r\n\r\n", false)
		r := bufio.NewReader(c)
		read(t, r).check(t, 404, "no tokens")
		if got := read(t, r); got.StatusCode != 101 || got.Header.Get("Sec-WebSocket-Protocol") != "revq" {
			t.Errorf("%d, %q", got.StatusCode, got.Header.Get("Sec-WebSocket-Protocol"))
		}
	}
}

// A listener whose token is for some queues sees nothing of the others' tasks:
// not the id in the mark of its greeting either.
func TestOtherQueuesAreHidden(t *testing.T) {
	t.Parallel()
	all, lines := secrets()
	g := startGuarded(t, lines...)
	greeting := func(token, query string) string {
		_, text := frame(t, g.handshake(t, "?format=json"+query, bearer(token)))
		return text
	}
	g.feed.Append(1, task.Result{ID: "theirs", Text: "one", Queue: "reverse_text"})
	for _, query := range []string{"", "&queue=thumbs", "&id=mine"} {
		if got := greeting(all["thumbs"], query); strings.Contains(got, "theirs") || !strings.Contains(got, `"offset":1`) {
			t.Errorf("%q: %s", query, got)
		}
	}
	if got := greeting(all["listen"], "&queue=thumbs"); !strings.Contains(got, "theirs") {
		t.Errorf("a token for all queues: %s", got)
	}
	g.feed.Append(2, task.Result{ID: "mine", Text: "two", Queue: "thumbs"})
	if got := greeting(all["thumbs"], ""); !strings.Contains(got, `"id":"mine"`) {
		t.Errorf("after a task of its own: %s", got)
	}
	g.feed.AppendMark(3, "mark")
	if got := greeting(all["thumbs"], ""); !strings.Contains(got, `"id":"mark"`) {
		t.Errorf("after a mark: %s", got)
	}
}
