//go:build linux

package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fasthttp/websocket"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/daemon/daemontest"
	"github.com/revq/revq/internal/e2e/foreign"
	livepage "github.com/revq/revq/internal/page"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/stack"
	"github.com/revq/revq/internal/wire"
)

// publicName is what the examples of PROXY.md call revq.
const publicName = "queue.example.com"

// proxies are those of which PROXY.md has an example, by the language of its
// code block. The program is started in a directory that has the example as the
// file revq.conf.
var proxies = map[string]struct {
	program string
	args    []string
	files   map[string]string // names and contents; PORT is the port to serve
}{
	"nginx": {"nginx", []string{"-e", "error.log", "-p", ".", "-c", "nginx.conf"}, map[string]string{"nginx.conf": `
		daemon off;
		pid nginx.pid;
		error_log stderr;
		user root;
		events {}
		http {
			access_log off;
			client_body_temp_path body;
			proxy_temp_path proxy;
			fastcgi_temp_path fastcgi;
			uwsgi_temp_path uwsgi;
			scgi_temp_path scgi;
			include revq.conf;
		}`}},
	"haproxy": {"haproxy", []string{"-db", "-f", "revq.conf"}, nil},
	"caddyfile": {"caddy", []string{"run", "--adapter", "caddyfile", "--config", "Caddyfile"}, map[string]string{"Caddyfile": `{
		admin off
		auto_https disable_redirects
		https_port PORT
	}
	import revq.conf
	`}},
}

// A proxy runs in front of a system.
type proxy struct {
	addr string
	name string      // by which browsers know it
	from string      // this machine's address that clients have; "" for 127.0.0.1
	tls  *tls.Config // of clients
	http *http.Client
}

// clients are the addresses from which TestProxies goes beyond a limit.
var clients = map[string]string{"nginx": "127.0.0.11", "haproxy": "127.0.0.12", "caddyfile": "127.0.0.13"}

// dial connects to the proxy as a client does.
func (p *proxy) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	if p.from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(p.from)}
	}
	return (&tls.Dialer{NetDialer: &d, Config: p.tls}).DialContext(ctx, "tcp", p.addr)
}

// startProxy starts the proxy of an example, with changes: old texts and new
// ones in turn.
func (s *system) startProxy(t *testing.T, language string, changes ...string) *proxy {
	t.Helper()
	of := proxies[language]
	program := foreign.Program(t, of.program)
	page, err := os.ReadFile("../front/PROXY.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```" + language + "\n(.*?)```").FindSubmatch(page)
	if block == nil {
		t.Fatalf("PROXY.md has no example for %s", language)
	}
	example := string(block[1])

	group, dir := foreign.Group(t)
	daemontest.Certify(t, dir)
	cert, err := os.ReadFile(filepath.Join(dir, "tls-cert"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(filepath.Join(dir, "tls-key"))
	if err != nil {
		t.Fatal(err)
	}
	free, err := stack.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(free)
	addr := net.JoinHostPort("127.0.0.1", port)
	changes = append(changes,
		"127.0.0.1:8081", s.apiSites[0], "127.0.0.1:8082", s.apiSites[1], "127.0.0.1:8083", s.socketSite,
		"/etc/ssl/"+publicName+".crt", filepath.Join(dir, "tls-cert"),
		"/etc/ssl/"+publicName+".key", filepath.Join(dir, "tls-key"),
		"/etc/ssl/"+publicName+".pem", filepath.Join(dir, "both"),
		"listen 443", "listen "+port, "bind :443", "bind :"+port,
		"90s", "3s")
	for i := 0; i < len(changes); i += 2 {
		example = strings.ReplaceAll(example, changes[i], changes[i+1])
	}
	files := map[string]string{"revq.conf": example, "both": string(cert) + string(key)}
	for name, content := range of.files {
		files[name] = strings.ReplaceAll(content, "PORT", port)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	said, err := os.Create(filepath.Join(dir, "said"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { said.Close() })
	cmd := exec.Command(program, of.args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, said, said
	cmd.Env = append(os.Environ(), "HOME="+dir)
	process, err := group.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	await.True(t, of.program+" takes connections", func() bool {
		select {
		case <-process.Done():
			why, _ := os.ReadFile(said.Name())
			t.Fatalf("%s has ended: %s", of.program, why)
		default:
		}
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		conn.Close()
		return true
	})

	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(cert)
	p := &proxy{addr: addr, name: publicName, tls: &tls.Config{RootCAs: roots, ServerName: publicName}}
	p.http = &http.Client{Timeout: await.Patience, Transport: &http.Transport{
		DialTLSContext:    func(ctx context.Context, _, _ string) (net.Conn, error) { return p.dial(ctx) },
		DisableKeepAlives: true,
	}}
	return p
}

// request asks the proxy; header has names and values in turn.
func (p *proxy) request(t *testing.T, method, path, body string, header ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://"+p.name+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := p.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	return res
}

// noOrigin is what browsers add to a GET within the same origin, ownOrigin to
// all else.
var noOrigin = []string{"Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "cors"}

func (p *proxy) ownOrigin() []string {
	return append([]string{"Origin", "https://" + p.name}, noOrigin...)
}

func (p *proxy) post(t *testing.T, id, text string) *http.Response {
	t.Helper()
	return p.request(t, http.MethodPost, wire.QueuePath, text, append(p.ownOrigin(), "Content-Type", "text/plain", wire.KeyHeader, id)...)
}

func (p *proxy) send(t *testing.T, id, text string) {
	t.Helper()
	if res := p.post(t, id, text); res.StatusCode != http.StatusAccepted {
		body, _ := io.ReadAll(res.Body)
		t.Fatalf("POST: %d %s", res.StatusCode, body)
	}
}

func (p *proxy) events(t *testing.T, after string) *http.Response {
	t.Helper()
	return p.request(t, http.MethodGet, wire.ListenPath, "", append(noOrigin, "Accept", "text/event-stream", wire.LastEventIDHeader, after)...)
}

// websocket connects as a page does, with a mark if it is not empty.
func (p *proxy) websocket(t *testing.T, after string) (*websocket.Conn, *http.Response, error) {
	t.Helper()
	d := websocket.Dialer{
		HandshakeTimeout:  await.Patience,
		NetDialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return p.dial(ctx) },
	}
	conn, res, err := d.DialContext(t.Context(), "wss://"+p.name+wire.ListenPath+"?format=json&after="+after,
		http.Header{"Origin": {"https://" + p.name}})
	if err == nil {
		t.Cleanup(func() { conn.Close() })
		conn.SetReadDeadline(time.Now().Add(await.Patience))
	}
	return conn, res, err
}

// Through each of the proxies one posts, listens in both ways, stays connected
// for longer than the proxy's timeouts while nothing happens, and resumes.
func TestProxies(t *testing.T) {
	t.Parallel()
	s := prepare(t, rabbittest.Shared(t))
	// The test's own requests come from the same address as the proxies, which
	// has no limits.
	const limits, perSecond = "--trusted-proxy=127.0.0.1 --unlimited-address=127.0.0.1 --address-requests=5 --address-listeners=1", 5
	s.api = s.startDaemon(t, "revq-api", s.apiSockets, append(strings.Fields(limits)[:3], "--allow-host", publicName)...)
	s.socket = s.startDaemon(t, "revq-socket", s.socketSockets, append(strings.Fields(limits), "--allow-host", publicName, "--ping-interval", "1s", "--api-url", "/")...)
	s.api.WaitReady(t)
	s.socket.WaitReady(t)
	s.startWorker(t, "--pause", "0s")
	for language := range proxies {
		t.Run(language, func(t *testing.T) {
			t.Parallel()
			p := s.startProxy(t, language)
			conn, _, err := p.websocket(t, "")
			if err != nil {
				t.Fatal(err)
			}
			heard := make(chan error, 1)
			go func() { heard <- awaitResult(conn, language+"-1") }()
			res := p.events(t, "")
			if res.StatusCode != http.StatusOK {
				t.Fatalf("events: %s", res.Status)
			}
			events := bufio.NewScanner(res.Body)
			for pings := 0; pings < 5; { // one a second, and the proxies' timeouts are 3 s here
				if !events.Scan() {
					t.Fatalf("the events ended after %d pings: %v", pings, events.Err())
				}
				if strings.HasPrefix(events.Text(), ":") {
					pings++
				}
			}
			p.send(t, language+"-1", "abc")
			if err := <-heard; err != nil {
				t.Errorf("websocket: %v", err)
			}
			mark := awaitEvent(t, events, language+"-1")
			conn.Close()
			res.Body.Close()

			p.send(t, language+"-2", "def")
			if conn, _, err = p.websocket(t, mark); err != nil {
				t.Fatal(err)
			}
			if err := awaitResult(conn, language+"-2"); err != nil {
				t.Errorf("websocket that resumes: %v", err)
			}
			awaitEvent(t, bufio.NewScanner(p.events(t, mark).Body), language+"-2")

			if res := p.request(t, http.MethodGet, livepage.Path, ""); res.StatusCode != http.StatusOK || !strings.Contains(res.Header.Get("Content-Security-Policy"), "connect-src 'self'") {
				t.Errorf("the live page: %s, policy %q", res.Status, res.Header.Get("Content-Security-Policy"))
			}
			for path, status := range map[string]int{wire.ResultPath + "unknown-id": http.StatusNotFound, wire.TicketPath: http.StatusMethodNotAllowed} {
				if res := p.request(t, http.MethodGet, path, "", noOrigin...); res.StatusCode != status || res.Header.Get("Content-Type") != wire.ProblemType {
					t.Errorf("%s: %s of type %q, want %d of revq", path, res.Status, res.Header.Get("Content-Type"), status)
				}
			}

			if res := p.request(t, http.MethodPost, wire.QueuePath, "text=x", "Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"); res.StatusCode != http.StatusForbidden {
				t.Errorf("a foreign page gets %s", res.Status)
			}
			if res := p.request(t, http.MethodPost, "//"+wire.QueuePath, "text=x"); res.StatusCode == http.StatusAccepted {
				t.Error("another path is taken")
			}

			// Limits are those of the client, whatever it says where it is.
			p.from = clients[language]
			invented := []string{"Content-Type", "text/plain", "X-Forwarded-For", "127.0.0.1"}
			for began, sent := time.Now(), 0; ; sent++ {
				res := p.request(t, http.MethodPost, wire.QueuePath, "abc", invented...)
				if res.StatusCode == http.StatusTooManyRequests {
					if body, err := io.ReadAll(res.Body); err != nil || !strings.Contains(string(body), "from "+p.from+":") || res.Header.Get("Retry-After") != "1" {
						t.Errorf("a client over its limit gets %s, Retry-After %q, %v", body, res.Header.Get("Retry-After"), err)
					}
					break
				}
				if limit := perSecond + int(perSecond*time.Since(began).Seconds()) + 1; res.StatusCode != http.StatusAccepted || sent > limit {
					t.Fatalf("request %d of a client that may send %d a second: %s", sent, perSecond, res.Status)
				}
			}
			if _, _, err := p.websocket(t, ""); err != nil {
				t.Fatal(err)
			}
			await.True(t, "the client may not listen a second time", func() bool {
				_, res, err := p.websocket(t, "")
				return err != nil && res != nil && res.StatusCode == http.StatusTooManyRequests
			})
		})
	}
}

// awaitResult reads until the result of a task comes.
func awaitResult(conn *websocket.Conn, id string) error {
	for {
		var m wire.Message
		if err := conn.ReadJSON(&m); err != nil {
			return err
		}
		if m.ID == id {
			return nil
		}
	}
}

// awaitEvent reads until the result of a task comes, and returns its mark.
func awaitEvent(t *testing.T, events *bufio.Scanner, id string) (mark string) {
	t.Helper()
	for events.Scan() {
		if value, ok := strings.CutPrefix(events.Text(), "id: "); ok {
			mark = value
		}
		if data, ok := strings.CutPrefix(events.Text(), "data: "); ok && parse(t, data).ID == id {
			return mark
		}
	}
	t.Fatalf("the events ended without %s: %v", id, events.Err())
	panic("not reached")
}

// Of a proxy that lacks a line, browsers and their users get told which.
func TestProxyMistakes(t *testing.T) {
	t.Parallel()
	s := prepare(t, rabbittest.Shared(t))
	s.api = s.startDaemon(t, "revq-api", s.apiSockets, "--allow-host", publicName)
	s.socket = s.startDaemon(t, "revq-socket", s.socketSockets, "--allow-host", publicName)
	s.api.WaitReady(t)
	s.socket.WaitReady(t)
	type refusal struct {
		status int
		says   string
	}
	const other = "other.example.com"
	forgot := refusal{http.StatusMisdirectedRequest, "--allow-host " + other}
	for _, tc := range []struct {
		name, host              string
		changes                 []string
		post, events, websocket refusal
	}{
		{"a name that revq was not told", other, nil, forgot, forgot, forgot},
		{
			"no Host", publicName, []string{"proxy_set_header Host $host;", ""},
			refusal{http.StatusForbidden, "proxy_set_header Host $host"},
			refusal{http.StatusMisdirectedRequest, "proxy_set_header Host $host"}, // browsers send no Origin
			refusal{http.StatusForbidden, "proxy_set_header Host $host"},
		},
		{
			"HTTP/1.0", publicName, []string{"proxy_http_version 1.1;", ""},
			refusal{http.StatusAccepted, "Got it"},
			refusal{http.StatusHTTPVersionNotSupported, "proxy_http_version 1.1"},
			refusal{http.StatusUpgradeRequired, "proxy_http_version 1.1"},
		},
		{
			"no Upgrade", publicName, []string{"proxy_set_header Upgrade $http_upgrade;", ""},
			refusal{http.StatusAccepted, "Got it"},
			refusal{http.StatusOK, ""},
			refusal{http.StatusUpgradeRequired, "proxy_set_header Upgrade $http_upgrade"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := s.startProxy(t, "nginx", tc.changes...)
			p.name, p.tls.ServerName = tc.host, tc.host
			check := func(what string, res *http.Response, want refusal) {
				t.Helper()
				if res.StatusCode != want.status {
					t.Errorf("%s: %s, want %d", what, res.Status, want.status)
				}
				if res.StatusCode == http.StatusOK {
					return // events, which do not end
				}
				body, err := io.ReadAll(res.Body)
				if err != nil || !strings.Contains(string(body), want.says) {
					t.Errorf("%s: %s, %v; want %q in it", what, body, err, want.says)
				}
			}
			check("POST", p.post(t, "mistake", "abc"), tc.post)
			check("events", p.events(t, ""), tc.events)
			_, res, err := p.websocket(t, "")
			if err == nil || res == nil {
				t.Fatalf("there is a websocket, or no answer: %v", err)
			}
			check("websocket", res, tc.websocket)
		})
	}
}
