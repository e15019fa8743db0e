package front_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/revq/revq/internal/api"
	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/socket"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// patience bounds what a test waits for. An answer that comes only with a
// server's time-out, which is longer, is a failure.
const patience = 15 * time.Second

// broker confirms all tasks, and has no results.
type broker struct {
	mu    sync.Mutex
	tasks []task.Task
}

func (b *broker) PublishTask(t task.Task) <-chan error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tasks = append(b.tasks, t)
	confirmed := make(chan error, 1)
	confirmed <- nil
	return confirmed
}

func (b *broker) Ready() error { return nil }

// texts returns those published so far, and forgets them.
func (b *broker) texts() (texts []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, t := range b.tasks {
		texts = append(texts, t.Text)
	}
	b.tasks = nil
	return texts
}

// source is where no results come from.
type source struct{ socket.Source }

func (source) Ready() error { return nil }

type server interface {
	Serve(net.Listener) error
	Shutdown(context.Context) error
}

// A site is one of the two fronts at an address, with or without TLS.
type site struct {
	front  string // api or socket
	addr   string
	secure *tls.Config // nil without TLS
	broker *broker     // of the API
}

func (s site) String() string {
	if s.secure != nil {
		return s.front + " with TLS"
	}
	return s.front
}

// sites starts both fronts, each with and without TLS.
func sites(t *testing.T) []site {
	t.Helper()
	// httptest has a certificate for 127.0.0.1.
	ready := httptest.NewUnstartedServer(nil)
	ready.StartTLS()
	t.Cleanup(ready.Close)
	client := ready.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	client.ServerName = "127.0.0.1"

	b := &broker{}
	apiConfig, socketConfig := api.DefaultConfig(), socket.DefaultConfig()
	apiConfig.ReadTimeout, socketConfig.HandshakeTimeout = 2*patience, 2*patience
	log := slog.New(slog.DiscardHandler)
	results := feed.New(feed.DefaultConfig())
	results.GoLive()
	var all []site
	for name, s := range map[string]server{
		"api":    api.New(apiConfig, b, log),
		"socket": socket.New(socketConfig, results, source{}, log),
	} {
		for _, secure := range []*tls.Config{nil, client} {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, site{name, ln.Addr().String(), secure, b})
			if secure != nil {
				ln = tls.NewListener(ln, &tls.Config{Certificates: ready.TLS.Certificates})
			}
			go s.Serve(ln)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
			defer cancel()
			s.Shutdown(ctx)
		})
	}
	return all
}

func (s site) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	if s.secure != nil {
		c = tls.Client(c, s.secure)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

type reply struct {
	*http.Response
	body string
}

func read(t *testing.T, r *bufio.Reader) reply {
	t.Helper()
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return reply{resp, ""}
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp, string(body)}
}

// check reports a reply of another status, and errors that do not say what is
// wrong in words of ours.
func (r reply) check(t *testing.T, status int, detail string) {
	t.Helper()
	if r.StatusCode != status {
		t.Fatalf("status %d, want %d; %s", r.StatusCode, status, r.body)
	}
	if status < 400 {
		return
	}
	var p wire.Problem
	if err := json.Unmarshal([]byte(r.body), &p); err != nil {
		t.Fatalf("%v in %q", err, r.body)
	}
	if p.Status != status || !strings.Contains(p.Detail, detail) {
		t.Errorf("%+v, want %q", p, detail)
	}
	for _, library := range []string{"fasthttp", "gorilla", "CheckOrigin", "http.", "buffer"} {
		if strings.Contains(p.Detail, library) {
			t.Errorf("%q is the text of a library", p.Detail)
		}
	}
}

const (
	// to any path that both fronts have
	get  = "GET /healthz HTTP/1.1\r\nHost: a\r\n"
	post = "POST /healthz HTTP/1.1\r\nHost: a\r\n"

	queue     = "POST /queue_reverse_text HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\n"
	listen    = "GET /listen_results HTTP/1.1\r\nHost: a\r\n"
	handshake = listen + "Connection: Upgrade\r\nUpgrade: websocket\r\n" + version13 + nonce
	version13 = "Sec-WebSocket-Version: 13\r\n"
	nonce     = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)

// headers has as many bytes of headers as make a request of get of size bytes.
func headers(size int) string {
	return get + "Cookie: " + strings.Repeat("x", size-len(get)-len("Cookie: \r\n\r\n")) + "\r\n\r\n"
}

// wireCases are requests as bytes, and the answers that both fronts give.
var wireCases = []struct {
	name   string
	only   string // the front that has the path; "" for both
	raw    string
	status int
	detail string // of a problem
	ends   bool   // the connection ends after the answer
}{
	{"plain", "", get + "\r\n", 200, "", false},
	{"HTTP/1.0", "", "GET /healthz HTTP/1.0\r\n\r\n", 200, "", true},
	{"a later HTTP/1", "", "GET /healthz HTTP/1.2\r\nHost: a\r\n\r\n", 200, "", true},
	{"empty lines before", "", "\r\n\r\n" + get + "\r\n", 200, "", false},
	{"a URL", "", "GET http://a/healthz HTTP/1.1\r\nHost: a\r\n\r\n", 200, "", false},
	{"port, brackets in Host", "", "GET /healthz HTTP/1.1\r\nHost: [::1]:8083\r\n\r\n", 200, "", false},

	{"LF before", "", "\n" + get + "\r\n", 400, "not with LF alone", true},
	{"LF after the request line", "", "GET /healthz HTTP/1.1\nHost: a\r\n\r\n", 400, "not with LF alone", true},
	{"LF only", "", "GET /healthz HTTP/1.1\nHost: a\n\n", 400, "not with LF alone", true},
	{"LF at the end", "", get + "\n", 400, "not with LF alone", true},
	{"CR in a value", "", get + "X: a\rb\r\n\r\n", 400, "CR within", true},
	{"CR alone", "", "GET /healthz HTTP/1.1\rHost: a\r\r\n\r\n", 400, "CR within", true},
	{"NUL in a value", "", get + "X: a\x00b\r\n\r\n", 400, "values of its headers", true},
	{"not HTTP", "", "hello\r\n\r\n", 400, "request line must be", true},
	{"a frame", "", "\x81\x85abcdefghi", 400, "not HTTP", true},
	{"no target", "", "GET  HTTP/1.1\r\nHost: a\r\n\r\n", 400, "request line must be", true},
	{"two spaces", "", "GET  /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400, "request line must be", true},
	{"more in the line", "", "GET /healthz HTTP/1.1 x\r\nHost: a\r\n\r\n", 400, "request line must be", true},
	{"HTTP/0.9", "", "GET /healthz\r\n", 400, "request line must be", true},
	{"a target without slash", "", "GET healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400, "begins with /", true},
	{"* for GET", "", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400, "begins with /", true},
	{"a tab in the target", "", "GET /heal\tthz HTTP/1.1\r\nHost: a\r\n\r\n", 400, "begins with /", true},
	{"version 9.9", "", "GET /healthz HTTP/9.9\r\nHost: a\r\n\r\n", 505, "HTTP/1.1", true},
	{"version 2.0", "", "GET /healthz HTTP/2.0\r\nHost: a\r\n\r\n", 505, "HTTP/1.1", true},
	{"version 2", "", "GET /healthz HTTP/2\r\nHost: a\r\n\r\n", 505, "HTTP/1.1", true},
	{"preface of HTTP/2", "", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP/1.1", true},
	{"lower-case protocol", "", "GET /healthz http/1.1\r\nHost: a\r\n\r\n", 400, "request line must be", true},

	{"unknown method", "", "BREW /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 501, "no such method", false},
	{"method in lower case", "", "get /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 501, "no such method", false},
	{"unknown method elsewhere", "", "BREW /x HTTP/1.1\r\nHost: a\r\n\r\n", 501, "no such method", false},
	{"CONNECT", "", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 501, "proxies", true},
	{"method that is not allowed", "", "DELETE /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 405, "use GET or HEAD or OPTIONS", false},
	{"OPTIONS", "", "OPTIONS /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 204, "", false},
	{"OPTIONS *", "", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 204, "", false},

	{"no Host", "", "GET /healthz HTTP/1.1\r\n\r\n", 400, "Host header is missing", true},
	{"empty Host", "", "GET /healthz HTTP/1.1\r\nHost:\r\n\r\n", 400, "Host header must be", true},
	{"two Hosts", "", get + "Host: a\r\n\r\n", 400, "more than one Host", true},
	{"Host with a path", "", "GET /healthz HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "Host header must be", true},
	{"Host with a user", "", "GET /healthz HTTP/1.1\r\nHost: b@a\r\n\r\n", 400, "Host header must be", true},
	{"Host with a bad port", "", "GET /healthz HTTP/1.1\r\nHost: a:b\r\n\r\n", 400, "Host header must be", true},
	{"two values in Host", "", "GET /healthz HTTP/1.1\r\nHost: a, b\r\n\r\n", 400, "Host header must be", true},
	{"Host of a nginx without one", "", "GET /healthz HTTP/1.1\r\nHost: up_stream:80\r\n\r\n", 200, "", false},

	{"fold", "", get + "X: a\r\n b\r\n\r\n", 400, "continued lines", true},
	{"fold with a tab", "", get + "X: a\r\n\tb\r\n\r\n", 400, "continued lines", true},
	{"fold of the request line", "", "GET /healthz HTTP/1.1\r\n Host: a\r\n\r\n", 400, "continued lines", true},
	{"space before the colon", "", get + "X : a\r\n\r\n", 400, "name and its colon", true},
	{"no colon", "", get + "X\r\n\r\n", 400, "header line must be", true},
	{"no name", "", get + ": a\r\n\r\n", 400, "header line must be", true},
	{"space in a name", "", get + "X Y: a\r\n\r\n", 400, "header line must be", true},
	{"two types", "", get + "Content-Type: a/b\r\nContent-type: text/plain\r\n\r\n", 400, "more than one Content-Type", true},
	{"too many headers", "", get + strings.Repeat("a:\r\n", 256) + "\r\n", 431, "256 header lines", true},
	{"longest headers", "", headers(16 << 10), 200, "", false},
	{"headers too long", "", headers(16<<10 + 1), 431, "16384 bytes", true},
	{"much longer headers", "", headers(300 << 10), 431, "16384 bytes", true},
	{"long target", "", "GET /" + strings.Repeat("x", 20<<10) + " HTTP/1.1\r\nHost: a\r\n\r\n", 431, "16384 bytes", true},

	{"Content-Length twice", "", post + "Content-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400, "more than one Content-Length", true},
	{"two values in Content-Length", "", post + "Content-Length: 1, 1\r\n\r\nx", 400, "must be a number", true},
	{"signed Content-Length", "", post + "Content-Length: +1\r\n\r\nx", 400, "must be a number", true},
	{"huge Content-Length", "", post + "Content-Length: 9999999999999999999\r\n\r\n", 400, "must be a number", true},
	{"Content-Length and chunked", "", post + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "both", true},
	{"chunked and Content-Length", "", post + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400, "both", true},
	{"identity and Content-Length", "", post + "Transfer-Encoding: identity\r\nContent-Length: 1\r\n\r\nx", 400, "is chunked", true},
	{"identity", "", post + "Transfer-Encoding: identity\r\n\r\n", 400, "is chunked", true},
	{"chunked, identity", "", post + "Transfer-Encoding: chunked, identity\r\n\r\n", 400, "is chunked", true},
	{"gzip, chunked", "", post + "Transfer-Encoding: gzip, chunked\r\n\r\n", 501, "without others", true},
	{"xchunked", "", post + "Transfer-Encoding: xchunked\r\n\r\n", 501, "without others", true},
	{"chunked twice", "", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "more than one Transfer-Encoding", true},
	{"chunked in HTTP/1.0", "", "POST /healthz HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "HTTP/1.0 has no", true},
	{"no length of a chunk", "", post + "Transfer-Encoding: chunked\r\n\r\n\r\n", 400, "chunk of the body must begin", true},
	{"bad length of a chunk", "", post + "Transfer-Encoding: chunked\r\n\r\n0x1\r\n", 400, "chunk of the body must begin", true},
	{"endless length of a chunk", "", post + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("0", 300), 400, "chunk of the body must begin", true},
	{"length of a chunk with LF", "", queue + "Transfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n", 400, "not with LF alone", true},
	{"chunk too long", "", post + "Transfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n", 400, "not as long as it says", true},

	{"other expectation", "", post + "Expect: 200-ok\r\nContent-Length: 1\r\n\r\n", 417, "100-continue", true},
	{"expectation in HTTP/1.0", "api", "POST /queue_reverse_text HTTP/1.0\r\nExpect: x\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n\r\nx", 202, "", true},
	{"100 Continue", "api", queue + "Expect: 100-Continue\r\nContent-Length: 1\r\n\r\nx", 100, "", false},
	// They are not asked for a body that nobody will read.
	{"100 Continue, wrong path", "", "POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", 404, "", true},
	{"100 Continue, wrong method", "", post + "Expect: 100-continue\r\nContent-Length: 1\r\n\r\n", 405, "", true},
	{"100 Continue, wrong type", "api", "POST /queue_reverse_text HTTP/1.1\r\nHost: a\r\nContent-Type: a/b\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", 415, "", true},
	{"100 Continue, too long", "api", queue + "Expect: 100-continue\r\nContent-Length: 1000000\r\n\r\n", 413, "", true},
	{"100 Continue, another page", "api", queue + "Origin: https://evil.example\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", 403, "", true},

	{"body too long", "socket", listen + "Content-Length: 2000\r\n\r\n" + strings.Repeat("x", 2000), 413, "no body", true},
	{"body much too long", "socket", listen + "Content-Length: 900000\r\n\r\n" + strings.Repeat("x", 900000), 413, "no body", true},
	{"chunked body too long", "socket", listen + "Transfer-Encoding: chunked\r\n\r\nff\r\n" + strings.Repeat("x", 255) + "\r\n0\r\n\r\n", 413, "no body", true},
	{"text", "api", queue + "Content-Length: 3\r\n\r\nabc", 202, "", false},
	{"text in chunks", "api", queue + "Transfer-Encoding: Chunked\r\n\r\n1;a=b\r\na\r\n2 \r\nbc\r\n0\r\nX: y\r\n\r\n", 202, "", false},
	{"two keys", "api", queue + "Idempotency-Key: a\r\nidempotency-key: b\r\nContent-Length: 1\r\n\r\nx", 400, "that differ", false},
	{"the same key twice", "api", queue + "Idempotency-Key: a\r\nidempotency-key: a\r\nContent-Length: 1\r\n\r\nx", 202, "", false},

	{"two slashes", "api", "POST //queue_reverse_text HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n\r\nx", 404, "", false},
	{"dots", "api", "POST /x/../queue_reverse_text HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n\r\nx", 404, "", false},
	{"a dot", "", "GET /./healthz HTTP/1.1\r\nHost: a\r\n\r\n", 404, "", false},
	{"an encoded slash", "api", "POST /%2fqueue_reverse_text HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n\r\nx", 404, "", false},
	{"an encoded character", "api", "POST /queue%5freverse_text HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n\r\nx", 404, "", false},
	{"encoded, to listen", "socket", strings.Replace(handshake, "_", "%5f", 1) + "\r\n", 404, "", false},
	{"slashes, to listen", "socket", strings.Replace(handshake, "/", "//", 1) + "\r\n", 404, "", false},
	{"a fragment", "", "GET /healthz#x HTTP/1.1\r\nHost: a\r\n\r\n", 404, "", false},
	{"a query", "", "GET /healthz?x=//../ HTTP/1.1\r\nHost: a\r\n\r\n", 200, "", false},
	{"a URL with slashes", "", "GET http://a//healthz HTTP/1.1\r\nHost: a\r\n\r\n", 404, "", false},
	{"a URL without a path", "", "GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", 404, "", false},

	{"handshake", "socket", handshake + "\r\n", 101, "", false},
	{"handshake, two lines of Connection", "socket", listen + "Connection: keep-alive\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n" + version13 + nonce + "\r\n", 101, "", false},
	{"handshake, a list", "socket", listen + "Connection: keep-alive, Upgrade\r\nUpgrade: h2c, websocket\r\n" + version13 + nonce + "\r\n", 101, "", false},
	{"handshake in HTTP/1.0", "socket", strings.Replace(handshake, "HTTP/1.1", "HTTP/1.0", 1) + "\r\n", 426, "proxy_http_version 1.1", true},
	{"handshake through nginx as it is", "socket", "GET /listen_results HTTP/1.0\r\nHost: up\r\nConnection: close\r\n" + version13 + nonce + "\r\n", 426, "proxy_http_version 1.1", true},
	{"handshake through nginx with 1.1", "socket", listen + "Connection: close\r\n" + version13 + nonce + "\r\n", 426, "proxy_set_header Upgrade", true},
	{"handshake to be closed", "socket", listen + "Connection: Upgrade, close\r\nUpgrade: websocket\r\n" + version13 + nonce + "\r\n", 426, "Connection: close", true},
	{"handshake to be closed, two lines", "socket", listen + "Connection: close\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + version13 + nonce + "\r\n", 426, "Connection: close", true},
	{"handshake without Connection", "socket", listen + "Upgrade: websocket\r\n" + version13 + nonce + "\r\n", 426, "proxy_set_header Connection", false},
	{"no handshake", "socket", listen + "\r\n", 426, "ws://", false},
	{"version 8", "socket", strings.Replace(handshake, ": 13", ": 8", 1) + "\r\n", 426, "Sec-WebSocket-Version: 13", false},
	{"no version", "socket", strings.Replace(handshake, version13, "", 1) + "\r\n", 426, "Sec-WebSocket-Version: 13", false},
	{"no key", "socket", strings.Replace(handshake, nonce, "", 1) + "\r\n", 400, "16 bytes in base64", false},
	{"a short key", "socket", strings.Replace(handshake, nonce, "Sec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\n", 1) + "\r\n", 400, "16 bytes in base64", false},
	{"a long key", "socket", strings.Replace(handshake, nonce, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZXh4\r\n", 1) + "\r\n", 400, "16 bytes in base64", false},
	{"a key that is no base64", "socket", strings.Replace(handshake, nonce, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j!Q==\r\n", 1) + "\r\n", 400, "16 bytes in base64", false},
	{"events in HTTP/1.0", "socket", "GET /listen_results HTTP/1.0\r\nAccept: text/event-stream\r\n\r\n", 505, "HTTP/1.1", true},
}

// Both fronts answer the same to the same bytes, in plain and in TLS, whether
// they come at once or one by one, and the answer arrives before the end.
func TestWire(t *testing.T) {
	t.Parallel()
	for _, s := range sites(t) {
		t.Run(s.String(), func(t *testing.T) {
			for _, tc := range wireCases {
				if tc.only != "" && tc.only != s.front {
					continue
				}
				for _, split := range []bool{false, true} {
					if split && len(tc.raw) > 1000 {
						continue
					}
					t.Run(fmt.Sprintf("%s, split %t", tc.name, split), func(t *testing.T) {
						c := s.dial(t)
						send(t, c, tc.raw, split)
						r := bufio.NewReader(c)
						got := read(t, r)
						got.check(t, tc.status, tc.detail)
						if tc.status == http.StatusContinue {
							read(t, r).check(t, http.StatusAccepted, "")
						}
						if got.Close != tc.ends {
							t.Errorf("to be closed: %t, want %t", got.Close, tc.ends)
						}
						if tc.ends {
							if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
								t.Errorf("after the answer: %q, %v; want the end", rest, err)
							}
						}
					})
				}
			}
		})
	}
}

// send writes raw at once or byte by byte. What is sent to a server that has
// answered already may fail; the answer tells.
func send(t *testing.T, c net.Conn, raw string, split bool) {
	t.Helper()
	go func() {
		if !split {
			_, _ = io.WriteString(c, raw)
			return
		}
		for i := range len(raw) {
			if _, err := io.WriteString(c, raw[i:i+1]); err != nil {
				return
			}
		}
	}()
}

func TestWireHeaders(t *testing.T) {
	t.Parallel()
	for _, s := range sites(t) {
		for _, tc := range []struct{ only, raw, name, want string }{
			{"", "OPTIONS /healthz HTTP/1.1\r\nHost: a\r\n\r\n", "Allow", "GET, HEAD, OPTIONS"},
			{"", post + "\r\n", "Allow", "GET, HEAD, OPTIONS"},
			{"socket", "OPTIONS /listen_results HTTP/1.1\r\nHost: a\r\n\r\n", "Allow", "GET, OPTIONS"},
			{"socket", "HEAD /listen_results HTTP/1.0\r\nHost: a\r\n\r\n", "Allow", "GET, OPTIONS"},
			{"api", "OPTIONS /queue_reverse_text HTTP/1.1\r\nHost: a\r\n\r\n", "Allow", "OPTIONS, POST"},
			{"socket", strings.Replace(handshake, ": 13", ": 8", 1) + "\r\n", "Sec-WebSocket-Version", "13"},
			{"socket", handshake + "\r\n", "Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="},
			{"socket", listen + "\r\n", "Upgrade", "websocket"},
			{"", get + "\r\n", "Cache-Control", "no-store"},
			{"", "GET / HTTP/3.0\r\n", "Cache-Control", "no-store"},
		} {
			if tc.only != "" && tc.only != s.front {
				continue
			}
			c := s.dial(t)
			send(t, c, tc.raw, false)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatalf("%s: %q: %v", s, tc.raw, err)
			}
			if got := resp.Header.Values(tc.name); len(got) != 1 || got[0] != tc.want {
				t.Errorf("%s: %q: %s is %q, want %q", s, tc.raw, tc.name, got, tc.want)
			}
		}
	}
}

// A client that speaks TLS to a site without TLS gets an answer in plain text
// that says so.
func TestTLSToAPlainSite(t *testing.T) {
	t.Parallel()
	for _, s := range sites(t) {
		if s.secure != nil {
			continue
		}
		c := s.dial(t)
		var hello bytes.Buffer
		_ = tls.Client(&recorder{Conn: c, sent: &hello}, &tls.Config{ServerName: "a"}).Handshake()
		send(t, c, hello.String(), false)
		read(t, bufio.NewReader(c)).check(t, 400, "use http:// or ws://")
	}
}

// recorder keeps what is written, and has nothing to read.
type recorder struct {
	net.Conn
	sent *bytes.Buffer
}

func (r *recorder) Write(b []byte) (int, error) { return r.sent.Write(b) }
func (r *recorder) Read([]byte) (int, error)    { return 0, io.EOF }

// Requests that come together are answered in their order, whatever is between
// them, and what follows a wrong one is not read.
func TestPipelined(t *testing.T) {
	t.Parallel()
	for _, s := range sites(t) {
		if s.front != "api" {
			continue
		}
		for _, split := range []bool{false, true} {
			c := s.dial(t)
			send(t, c, queue+"Content-Length: 11\r\n\r\nGET / HTTP/\r\n"+ // what looks like a request is a body
				queue+"Transfer-Encoding: chunked\r\n\r\n3\r\na\r\n\r\n4\r\nb\r\n\r\r\n0\r\nIdempotency-Key: trailer\r\n\r\n"+
				get+"\r\n"+
				queue+"Content-Length: 0\r\nTransfer-Encoding : chunked\r\n\r\n"+
				queue+"Content-Length: 8\r\n\r\nsmuggled", split)
			r := bufio.NewReader(c)
			read(t, r).check(t, 202, "")
			second := read(t, r)
			second.check(t, 202, "")
			if id := second.Header.Get("Revq-Task-Id"); id == "trailer" {
				t.Error("a key in the trailer became the task's id")
			}
			read(t, r).check(t, 200, "")
			last := read(t, r)
			last.check(t, 400, "name and its colon")
			if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
				t.Errorf("%s: after it: %q, %v", s, rest, err)
			}
			if got := s.broker.texts(); fmt.Sprintf("%q", got) != `["GET / HTTP/" "a\r\nb\r\n\r"]` {
				t.Errorf("%s: texts %q", s, got)
			}
		}
	}
}

// The limit of headers is a setting.
func TestMaxHeader(t *testing.T) {
	t.Parallel()
	cfg := front.DefaultConfig()
	cfg.MaxHeader = 2000
	apiConfig := api.DefaultConfig()
	apiConfig.Config = cfg
	s := api.New(apiConfig, &broker{}, slog.New(slog.DiscardHandler))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	at := site{front: "api", addr: ln.Addr().String()}
	for _, tc := range []struct {
		size, status int
		detail       string
	}{{2000, 200, ""}, {2001, 431, "2000 bytes together (--max-header)"}} {
		c := at.dial(t)
		send(t, c, headers(tc.size), false)
		read(t, bufio.NewReader(c)).check(t, tc.status, tc.detail)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}
