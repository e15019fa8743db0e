package socket

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fasthttp/websocket"
	"github.com/valyala/fasthttp/fasthttputil"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// setupTLS starts a server with a site without TLS and one with it.
func setupTLS(t *testing.T, cfg Config, size feed.Config) (*Server, *bundle, *secureSite) {
	t.Helper()
	certified := httptest.NewTLSServer(nil) // for its certificate
	t.Cleanup(certified.Close)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &bundle{feed: feed.New(size), source: new(source)}
	b.secure = tls.NewListener(ln, &tls.Config{Certificates: certified.TLS.Certificates})
	b.feed.GoLive()
	client := certified.Client()
	return b.start(t, cfg), b, &secureSite{ln.Addr().String(), client, client.Transport.(*http.Transport).TLSClientConfig.Clone()}
}

type secureSite struct {
	addr   string
	client *http.Client
	tls    *tls.Config
}

// listen connects and reads the greeting.
func (s *secureSite) listen(t *testing.T, query string) *websocket.Conn {
	t.Helper()
	d := websocket.Dialer{TLSClientConfig: s.tls}
	c, _, err := d.Dial("wss://"+s.addr+"/listen_results"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(patience))
	if _, m, err := c.ReadMessage(); err != nil || !strings.Contains(string(m), wire.Greeting) {
		t.Fatalf("greeting = %q, %v", m, err)
	}
	return c
}

// raw connects and returns the bare connection after the handshake and the
// greeting.
func (s *secureSite) raw(t *testing.T) (*tls.Conn, *bufio.Reader) {
	t.Helper()
	below, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { below.Close() })
	below.SetDeadline(time.Now().Add(patience))
	cfg := s.tls.Clone()
	cfg.ServerName = "127.0.0.1"
	c := tls.Client(below, cfg)
	return c, handshake(t, c)
}

func TestListenersWithTLSGetTheSame(t *testing.T) {
	const results = 3000
	s, b, site := setupTLS(t, DefaultConfig(), feed.DefaultConfig())
	b.append(0, 10)
	open, secure := b.listen(t, ""), site.listen(t, "")
	resumed := site.listen(t, "?format=json&after=4/id4")
	req, _ := http.NewRequest("GET", "https://"+site.addr+"/listen_results", nil)
	req.Header.Set("Accept", "text/event-stream")
	res, err := site.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var wg sync.WaitGroup
	wg.Go(func() { b.append(10, results) })
	wg.Go(func() { expect(t, open, 10, results) })
	wg.Go(func() { expect(t, secure, 10, results) })
	wg.Go(func() { expectMessages(t, resumed, 5, results) })
	wg.Go(func() {
		next := 10
		for lines := bufio.NewScanner(res.Body); next < results && lines.Scan(); {
			if id, ok := strings.CutPrefix(lines.Text(), "id: "); ok && id != "9/id9" { // where the greeting stands
				if id != fmt.Sprintf("%d/id%d", next, next) {
					t.Errorf("event %s, want %d", id, next)
				}
				next++
			}
		}
	})
	wg.Wait()
	if n := s.Listeners(); n != 4 {
		t.Errorf("%d listeners, want 4", n)
	}
	c, r := site.raw(t)
	c.Write(append(clientFrame(0x89, "hello", -1), clientFrame(0x81, "", 5000)...))
	for _, want := range []string{"hello", "\x03\xf1listeners are not expected to send that much"} {
		if op, payload := readFrame(t, r); string(payload) != want {
			t.Errorf("answer is %d %q, want %q", op, payload, want)
		}
	}
}

func TestManyListenersWithTLS(t *testing.T) {
	const listeners, results = 200, 500
	s, b, site := setupTLS(t, DefaultConfig(), feed.DefaultConfig())
	var wg sync.WaitGroup
	for range listeners {
		c := site.listen(t, "")
		wg.Go(func() { expect(t, c, 0, results) })
	}
	b.append(0, results)
	wg.Wait()
	done := make(chan error)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		done <- s.Shutdown(ctx)
	}()
	if err := <-done; err != nil {
		t.Errorf("Shutdown = %v", err)
	}
}

func TestShutdownTellsListenersWithTLS(t *testing.T) {
	s, b, site := setupTLS(t, DefaultConfig(), feed.DefaultConfig())
	c := site.listen(t, "")
	b.append(0, 5)
	go s.Shutdown(context.Background())
	expect(t, c, 0, 5)
	if _, _, err := c.ReadMessage(); !websocket.IsCloseError(err, wire.CloseRestart) {
		t.Errorf("the listener got %v, want close 1012", err)
	}
	until(t, "the listener is gone", func() bool { return s.Listeners() == 0 })
}

func TestPingsWithTLS(t *testing.T) {
	cfg := DefaultConfig()
	cfg.PingInterval = time.Second
	s, _, site := setupTLS(t, cfg, feed.DefaultConfig())
	mute, r := site.raw(t)
	onlyWhoAnswersStays(t, s, site.listen(t, ""), mute, r, io.ErrUnexpectedEOF)
}

// A listener that takes nothing for too long is closed, holds up nobody, and
// finds the reason when it reads again.
func TestListenersThatTakeNothingAreTold(t *testing.T) {
	cfg := DefaultConfig()
	cfg.WriteTimeout = time.Second
	s, b, site := setupTLS(t, cfg, feed.Config{MaxBytes: 100 << 20, Window: 10})
	secure, secured := site.raw(t)
	bare, bared := b.raw(t)
	reading, readingToo := b.listen(t, ""), site.listen(t, "")
	big := strings.Repeat("x", 60_000)
	for i := range 600 { // 36 MB: more than any socket buffer takes
		b.feed.Append(int64(i), task.Result{ID: fmt.Sprint(i), Text: big})
		for _, c := range []*websocket.Conn{reading, readingToo} {
			if _, m, err := c.ReadMessage(); err != nil || len(m) != len(big) {
				t.Fatalf("result %d: %d bytes, %v", i, len(m), err)
			}
		}
	}
	until(t, "the two are closed", func() bool { return s.Listeners() == 2 })
	for name, r := range map[string]*bufio.Reader{"with TLS": secured, "without": bared} {
		got := 0
		for {
			op, payload := readFrame(t, r)
			if op == 1 && string(payload) == big {
				got++
				continue
			}
			if op == 9 { // a ping, since nothing was sent for a while
				continue
			}
			if want := "\x03\xf0" + byeTooSlow.reason; op != 8 || string(payload) != want {
				t.Errorf("%s: after %d results came %d %.50q, want %q", name, got, op, payload, want)
			}
			break
		}
		t.Logf("%s: %d results were in the buffers", name, got)
	}
	secure.Close()
	bare.Close()
}

// A connection that is neither TCP nor TLS.
func TestListenersWithoutASocket(t *testing.T) {
	memory := fasthttputil.NewInmemoryListener()
	b := &bundle{feed: feed.New(feed.DefaultConfig()), source: new(source), secure: memory}
	b.feed.GoLive()
	b.start(t, DefaultConfig())
	c, err := memory.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := handshake(t, c)
	b.append(0, 1)
	if op, payload := readFrame(t, r); op != 1 || string(payload) != "text 0" {
		t.Errorf("frame %d %q, want the result", op, payload)
	}
}

func TestFrameEnd(t *testing.T) {
	for format, d := range map[feed.Format]dialect{feed.Text: websocketDialect{}, feed.JSON: websocketDialect{}, feed.Events: eventsDialect{}} {
		var frames []byte
		var ends []int
		for i, size := range []int{0, 1, 100, 125, 126, 70_000, 3} {
			frames = feed.AppendResult(frames, format, int64(i), task.Result{ID: "a", Text: strings.Repeat("x", size)})
			ends = append(ends, len(frames))
		}
		for n := 1; n <= len(frames); n++ {
			if n > ends[0] {
				ends = ends[1:]
			}
			if end := frameEnd(d, frames, 0, n); end != ends[0] {
				t.Fatalf("format %d: the frame of byte %d ends at %d, want %d", format, n-1, end, ends[0])
			}
		}
	}
}
