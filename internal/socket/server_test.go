package socket

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fasthttp/websocket"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// patience bounds what a test waits for; it is reached only when it fails.
const patience = 20 * time.Second

type bundle struct {
	feed   *feed.Feed
	addr   string
	source *source
	secure net.Listener // served, too, unless nil
}

// setup starts a server on a free port.
func setup(t *testing.T, cfg Config, size feed.Config) (*Server, *bundle) {
	t.Helper()
	b := &bundle{feed: feed.New(size), source: new(source)}
	b.feed.GoLive()
	return b.start(t, cfg), b
}

func (b *bundle) start(t testing.TB, cfg Config) *Server {
	t.Helper()
	if cfg.PingInterval == DefaultConfig().PingInterval {
		cfg.PingInterval = time.Hour // or a ping would come between what a test expects, now and then
	}
	s := New(cfg, b.feed, b.source, slog.New(slog.DiscardHandler))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.addr = ln.Addr().String()
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	if b.secure != nil {
		other := make(chan error, 1)
		go func() { other <- s.Serve(b.secure) }()
		t.Cleanup(func() {
			if err := <-other; err != nil {
				t.Errorf("Serve with TLS = %v", err)
			}
		})
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		s.Shutdown(ctx) // its error: clients of the test are still connected
		if err := <-served; err != nil {
			t.Errorf("Serve = %v", err)
		}
		// A listener whose handshake was not complete is turned away a moment later.
		until(t, "nobody is counted", func() bool { return s.Listeners() == 0 })
	})
	return s
}

func result(i int) task.Result {
	return task.Result{ID: fmt.Sprint("id", i), Text: fmt.Sprint("text ", i)}
}

func (b *bundle) append(from, to int) {
	for i := from; i < to; i++ {
		b.feed.Append(int64(i), result(i))
	}
}

// dial connects.
func (b *bundle) dial(t *testing.T, query string) *websocket.Conn {
	t.Helper()
	c, _, err := websocket.DefaultDialer.Dial("ws://"+b.addr+"/listen_results"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(patience))
	return c
}

// listen connects and reads the greeting.
func (b *bundle) listen(t *testing.T, query string) *websocket.Conn {
	t.Helper()
	c := b.dial(t, query)
	if _, m, err := c.ReadMessage(); err != nil || !strings.Contains(string(m), "Salut, let's wait some text...") {
		t.Fatalf("greeting = %q, %v", m, err)
	}
	return c
}

// raw connects and returns the bare connection after the handshake.
func (b *bundle) raw(t testing.TB) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c, handshake(t, c)
}

// handshake asks for the results and takes the greeting.
func handshake(t testing.TB, c net.Conn) *bufio.Reader {
	t.Helper()
	fmt.Fprintf(c, "GET /listen_results HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("handshake: %v, %v", res, err)
	}
	if op, payload := readFrame(t, r); op != 1 || string(payload) != wire.Greeting {
		t.Fatalf("first frame is %d %q", op, payload)
	}
	return r
}

// readFrame reads a frame of less than 64 KiB.
func readFrame(t testing.TB, r *bufio.Reader) (op byte, payload []byte) {
	t.Helper()
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		t.Fatal(err)
	}
	length := int(head[1])
	if length == 126 {
		var long [2]byte
		if _, err := io.ReadFull(r, long[:]); err != nil {
			t.Fatal(err)
		}
		length = int(binary.BigEndian.Uint16(long[:]))
	} else if length > 126 {
		t.Fatalf("frame of length code %d", length)
	}
	payload = make([]byte, length)
	if _, err := io.ReadFull(r, payload); err != nil {
		t.Fatal(err)
	}
	return head[0] & 0xf, payload
}

func expect(t *testing.T, c *websocket.Conn, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		kind, m, err := c.ReadMessage()
		if want := fmt.Sprint("text ", i); err != nil || kind != websocket.TextMessage || string(m) != want {
			t.Fatalf("frame is %d %q, %v; want %q", kind, m, err, want)
		}
	}
}

func TestEveryListenerGetsEveryResultInOrder(t *testing.T) {
	s, b := setup(t, DefaultConfig(), feed.DefaultConfig())
	const listeners, results = 100, 2000
	b.append(0, 10) // nobody hears these
	var wg sync.WaitGroup
	for range listeners {
		c := b.listen(t, "")
		wg.Go(func() { expect(t, c, 10, 10+results) })
	}
	if n := s.Listeners(); n != listeners {
		t.Errorf("Listeners = %d, want %d", n, listeners)
	}
	b.append(10, 10+results)
	wg.Wait()
}

func TestJSONFrames(t *testing.T) {
	_, b := setup(t, DefaultConfig(), feed.DefaultConfig())
	b.append(0, 3)
	c, _, err := websocket.DefaultDialer.Dial("ws://"+b.addr+"/listen_results?format=json", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	expect := func(want wire.Message) {
		t.Helper()
		var m wire.Message
		if err := c.ReadJSON(&m); err != nil || m != want {
			t.Errorf("message %+v, %v; want %+v", m, err, want)
		}
	}
	expect(wire.Message{Type: "greeting", Offset: 2, ID: "id2", Text: wire.Greeting})
	b.append(3, 4)
	expect(wire.Message{Type: "result", Offset: 3, ID: "id3", Text: "text 3"})
}

func TestAStalledListenerHoldsUpNobodyIsToldAndMayResume(t *testing.T) {
	_, b := setup(t, DefaultConfig(), feed.Config{MaxBytes: 1 << 20, Window: 10})
	stalled := b.jsonListener(t, "-1") // reads nothing
	c := b.listen(t, "")
	big := strings.Repeat("x", 60_000)
	const results = 1000 // 60 MB: more than any socket buffer takes
	for i := range results {
		r := task.Result{ID: fmt.Sprint("id", i), Text: big}
		b.source.addResult(int64(i), r)
		b.feed.Append(int64(i), r)
		if _, m, err := c.ReadMessage(); err != nil || len(m) != len(big) {
			t.Fatalf("result %d: %d bytes, %v", i, len(m), err)
		}
	}
	// The stalled one now reads what was written to it, and then its end.
	last := wire.Mark{Offset: -1}
	var err error
	for err == nil {
		last, err = nextMark(stalled, last)
	}
	if !websocket.IsCloseError(err, wire.ClosePolicy) || last.Offset > results*3/4 {
		t.Fatalf("the stalled listener came to %v, and then: %v; want to be closed with 1008", last, err)
	}
	// Where it goes on, nothing is missing.
	again := b.jsonListener(t, last.String())
	for last.Offset < results-1 {
		if last, err = nextMark(again, last); err != nil {
			t.Fatalf("resumed, and came to %v: %v", last, err)
		}
	}
	b.feed.Append(results, result(results)) // and it is with the others again
	if last, err = nextMark(again, last); err != nil {
		t.Errorf("came to %v: %v", last, err)
	}
}

// nextMark reads a JSON message, and returns where its listener then stands. It
// must be the result after last.
func nextMark(c *websocket.Conn, last wire.Mark) (wire.Mark, error) {
	c.SetReadDeadline(time.Now().Add(patience)) // for each: a busy machine takes its time for all of them
	var m wire.Message
	// Each message has its own time: with the race detector, and beside other
	// tests, all of them may take longer.
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return last, err
	}
	if err := c.ReadJSON(&m); err != nil {
		return last, err
	}
	if m.Type != wire.TypeResult || m.Offset != last.Offset+1 {
		return last, fmt.Errorf("a %s at %d came after %d", m.Type, m.Offset, last.Offset)
	}
	return wire.Mark{Offset: m.Offset, ID: m.ID}, nil
}

func TestAListenerThatTakesNothingIsClosed(t *testing.T) {
	cfg := DefaultConfig()
	cfg.WriteTimeout = time.Second
	s, b := setup(t, cfg, feed.Config{MaxBytes: 100 << 20, Window: 10})
	b.raw(t)
	big := strings.Repeat("x", 60_000)
	for i := range 1000 {
		b.feed.Append(int64(i), task.Result{ID: fmt.Sprint(i), Text: big})
	}
	until(t, "the listener is closed", func() bool { return s.Listeners() == 0 })
}

func TestControlFrames(t *testing.T) {
	_, b := setup(t, DefaultConfig(), feed.DefaultConfig())
	for _, tc := range []struct {
		name   string
		send   []byte
		op     byte
		answer string
	}{
		{"ping is answered", clientFrame(0x89, "hello", -1), 0xA, "hello"},
		{"messages are ignored", append(clientFrame(0x81, strings.Repeat("x", 3000), -1), clientFrame(0x89, "!", -1)...), 0xA, "!"},
		{"close is answered", clientFrame(0x88, "\x03\xe8", -1), 0x8, "\x03\xe8"},
		{"no mask", []byte{0x81, 1, 'a'}, 0x8, "\x03\xeaa frame is not masked"},
		{"too big", clientFrame(0x81, "", 5000), 0x8, "\x03\xf1listeners are not expected to send that much"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, r := b.raw(t)
			for i := range tc.send { // one by one: the server may see any split
				if _, err := c.Write(tc.send[i : i+1]); err != nil {
					t.Fatal(err)
				}
			}
			if op, payload := readFrame(t, r); op != tc.op || string(payload) != tc.answer {
				t.Errorf("answer is %d %q, want %d %q", op, payload, tc.op, tc.answer)
			}
			if tc.op == 0x8 {
				if _, err := r.ReadByte(); err != io.EOF {
					t.Errorf("after the close frame came %v, want the end", err)
				}
			}
		})
	}
}

func TestAListenerThatSendsTooMuchIsClosed(t *testing.T) {
	_, b := setup(t, DefaultConfig(), feed.DefaultConfig())
	c, r := b.raw(t)
	message := clientFrame(0x81, strings.Repeat("x", 4000), -1)
	for range maxHeard/4000 + 1 {
		if _, err := c.Write(message); err != nil {
			break
		}
	}
	if op, payload := readFrame(t, r); op != 0x8 || string(payload[:2]) != "\x03\xf0" {
		t.Errorf("answer is %d %q, want a close frame with 1008", op, payload)
	}
}

func TestPings(t *testing.T) {
	cfg := DefaultConfig()
	cfg.PingInterval = time.Second
	s, b := setup(t, cfg, feed.DefaultConfig())
	mute, r := b.raw(t)
	onlyWhoAnswersStays(t, s, b.listen(t, ""), mute, r, nil)
}

// onlyWhoAnswersStays fails the test unless both listeners are pinged, and
// mute, which r reads, is closed for not answering. end is the error with which
// its connection may end.
func onlyWhoAnswersStays(t *testing.T, s *Server, c *websocket.Conn, mute net.Conn, r *bufio.Reader, end error) {
	t.Helper()
	pings := make(chan struct{}, 10)
	answer := c.PingHandler()
	c.SetPingHandler(func(data string) error {
		pings <- struct{}{}
		return answer(data)
	})
	go c.ReadMessage() // answers pings while it reads
	if op, _ := readFrame(t, r); op != 0x9 {
		t.Errorf("frame %d, want a ping", op)
	}
	if _, err := io.Copy(io.Discard, mute); err != nil && !errors.Is(err, end) {
		t.Errorf("the listener that does not answer: %v, want to be closed", err)
	}
	for range 3 {
		select {
		case <-pings:
		case <-time.After(patience):
			t.Fatal("no ping came")
		}
	}
	if n := s.Listeners(); n != 1 {
		t.Errorf("%d listeners, want the one that answers", n)
	}
}

func TestTheNumberOfListenersIsBounded(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxListeners = 2
	s, b := setup(t, cfg, feed.DefaultConfig())
	first := b.listen(t, "")
	b.listen(t, "")
	_, res, err := websocket.DefaultDialer.Dial("ws://"+b.addr+"/listen_results", nil)
	if err == nil || res == nil || res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" {
		t.Fatalf("third listener: %v, %v; want 503 with Retry-After", res, err)
	}
	first.Close()
	until(t, "the place is free", func() bool { return s.Listeners() == 1 })
	b.listen(t, "")
}

func TestShutdownTellsListeners(t *testing.T) {
	s, b := setup(t, DefaultConfig(), feed.DefaultConfig())
	c := b.listen(t, "")
	b.append(0, 5)
	done := make(chan error)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		done <- s.Shutdown(ctx)
	}()
	expect(t, c, 0, 5)
	_, _, err := c.ReadMessage()
	if !websocket.IsCloseError(err, websocket.CloseServiceRestart) {
		t.Errorf("the listener got %v, want close 1012", err)
	}
	if err := <-done; err != nil {
		t.Errorf("Shutdown = %v", err)
	}
}

func TestAnswersWithoutWebsocket(t *testing.T) {
	_, b := setup(t, DefaultConfig(), feed.DefaultConfig())
	for _, tc := range []struct {
		method, path string
		ready        error
		status       int
		body         string
	}{
		{"GET", "/healthz", nil, 200, "ok"},
		{"HEAD", "/healthz", nil, 200, ""},
		{"GET", "/readyz", nil, 200, "ready"},
		{"GET", "/readyz", errors.New("the broker is away"), 503, "the broker is away"},
		{"GET", "/", nil, 200, "<title>revq</title>"},
		{"GET", "/index.html", nil, 404, "listen at /listen_results"},
		{"POST", "/listen_results", nil, 405, "use GET"},
		{"GET", "/listen_results", nil, 426, "connect with ws://"},
		{"GET", "/listen_results?format=xml", nil, 400, "use text or json"},
	} {
		t.Run(tc.method+" "+tc.path, func(t *testing.T) {
			b.source.setReady(tc.ready)
			req, _ := http.NewRequest(tc.method, "http://"+b.addr+tc.path, nil)
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, _ := io.ReadAll(res.Body)
			if res.StatusCode != tc.status || !strings.Contains(string(body), tc.body) {
				t.Errorf("%s %q, want %d %q", res.Status, body, tc.status, tc.body)
			}
			if res.StatusCode >= 400 {
				var p struct{ Detail string }
				if ct := res.Header.Get("Content-Type"); ct != "application/problem+json" || json.Unmarshal(body, &p) != nil || p.Detail == "" {
					t.Errorf("%s %q is no problem object", ct, body)
				}
			}
			if got := res.Header.Get("Cache-Control"); got != "no-store" {
				t.Errorf("Cache-Control = %q", got)
			}
		})
	}
}

// A page may listen if it is known, by websocket and by EventSource. (The cases
// that package front tells apart are its own tests.)
func TestPages(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		pages   front.Pages
		headers string
		status  int // 0: it listens
		cors    string
	}{
		{"a program", front.Pages{}, "Host: x", 0, ""},
		{"this host", front.Pages{}, "Host: 127.0.0.1:8083|Origin: http://127.0.0.1|Sec-Fetch-Site: same-site", 0, "http://127.0.0.1"},
		{"this host behind TLS", front.Pages{}, "Host: localhost|Origin: https://localhost:8443", 0, "https://localhost:8443"},
		{"same origin", front.Pages{}, "Host: localhost:8083|Sec-Fetch-Site: same-origin", 0, ""},
		{"elsewhere", front.Pages{}, "Host: localhost|Origin: https://evil.example", 403, ""},
		{"no origin of its own", front.Pages{}, "Host: localhost|Origin: null", 403, ""},
		{"no URL", front.Pages{}, "Host: localhost|Origin: http://[", 403, ""},
		{"an image elsewhere", front.Pages{}, "Host: localhost|Sec-Fetch-Site: cross-site|Sec-Fetch-Mode: no-cors", 403, ""},
		{"allowed", front.Pages{AllowOrigins: []string{"https://Example.org/"}}, "Host: localhost|Origin: https://example.org", 0, "https://example.org"},
		{"below what is allowed", front.Pages{AllowOrigins: []string{"https://example.org"}}, "Host: localhost|Origin: https://evil.example.org", 403, ""},
		{"all are allowed", front.Pages{AllowOrigins: []string{"*"}}, "Host: x|Origin: https://example.org", 0, "https://example.org"},
		{"rebinding", front.Pages{}, "Host: evil.example:8083|Origin: http://evil.example:8083", 421, ""},
		{"rebinding, same origin", front.Pages{}, "Host: evil.example|Sec-Fetch-Site: same-origin", 421, ""},
		{"rebinding without TLS", front.Pages{}, "Host: evil.example|User-Agent: Mozilla/5.0 (X11)|Accept-Language: en", 421, ""},
		{"an allowed name", front.Pages{AllowHosts: []string{"queue.example"}}, "Host: queue.example|Origin: https://queue.example", 0, "https://queue.example"},
	} {
		for protocol, wanted := range map[string]struct {
			headers string
			status  int
		}{
			"websocket": {"Connection: Upgrade|Upgrade: websocket|Sec-WebSocket-Version: 13|Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", 101},
			"events":    {"Accept: text/event-stream", 200},
		} {
			t.Run(tc.name+", "+protocol, func(t *testing.T) {
				t.Parallel()
				cfg := DefaultConfig()
				cfg.Pages = tc.pages
				_, b := setup(t, cfg, feed.DefaultConfig())
				res := b.ask(t, "GET", tc.headers+"|"+wanted.headers)
				want := wanted.status
				if tc.status != 0 {
					want = tc.status
				}
				if res.StatusCode != want {
					t.Errorf("status %d, want %d", res.StatusCode, want)
				}
				// No page can read the answer to a websocket's handshake.
				if got := res.Header.Values("Access-Control-Allow-Origin"); want != 101 && strings.Join(got, "|") != tc.cors {
					t.Errorf("%q may read the answer, want %q", got, tc.cors)
				}
			})
		}
	}
}

// A fetch that resumes sends Last-Event-ID, which browsers ask about before.
func TestPreflight(t *testing.T) {
	t.Parallel()
	_, b := setup(t, DefaultConfig(), feed.DefaultConfig())
	const asks = "Host: localhost|Access-Control-Request-Method: GET|Access-Control-Request-Headers: last-event-id"
	res := b.ask(t, "OPTIONS", asks+"|Origin: http://localhost:3000")
	if h := res.Header; res.StatusCode != 204 || h.Get("Access-Control-Allow-Origin") != "http://localhost:3000" ||
		!strings.Contains(h.Get("Access-Control-Allow-Headers"), "Last-Event-ID") || !strings.Contains(h.Get("Access-Control-Allow-Methods"), "GET") {
		t.Errorf("%d %v", res.StatusCode, h)
	}
	if res := b.ask(t, "OPTIONS", asks+"|Origin: http://evil.example"); res.StatusCode != 403 {
		t.Errorf("a foreign page gets %d", res.StatusCode)
	}
}

// ask sends a request to listen, with header lines separated by |, and returns
// the head of the answer.
func (b *bundle) ask(t *testing.T, method, headers string) *http.Response {
	t.Helper()
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(c, "%s /listen_results HTTP/1.1\r\n%s\r\n\r\n", method, strings.ReplaceAll(headers, "|", "\r\n"))
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// until polls for a state that has no signal of its own.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-time.After(time.Millisecond):
		case <-deadline:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// Connections that do not listen yet have a limit, and listeners do not count.
func TestTooManyHandshakes(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxHandshakes = 1
	s, b := setup(t, cfg, feed.DefaultConfig())
	dial := func(request string) net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", b.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(patience))
		io.WriteString(c, request)
		return c
	}
	b.raw(t)
	b.raw(t) // the first one gave its place back
	slow := dial("GET /listen_results HTTP/1.1\r\n")
	until(t, "it is counted", func() bool { return s.front.Connections() == 1 })
	res, err := http.ReadResponse(bufio.NewReader(dial("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")), nil)
	if err != nil || res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" {
		t.Errorf("beside a slow one: %v, %v; want 503", res, err)
	}
	slow.Close()
	until(t, "nobody is counted", func() bool { return s.front.Connections() == 0 })
	b.raw(t)
	if n := s.Listeners(); n != 3 {
		t.Errorf("%d listeners, want 3", n)
	}
}
