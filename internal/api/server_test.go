package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// broker is a Publisher that confirms at once unless told otherwise. (That
// confirmations are real is tested with a real broker, elsewhere.)
type broker struct {
	publish func(task.Task) <-chan error // if set, decides
	ready   error

	mu    sync.Mutex
	tasks []task.Task // published, in order
}

func (b *broker) PublishTask(t task.Task) <-chan error {
	b.mu.Lock()
	b.tasks = append(b.tasks, t)
	b.mu.Unlock()
	if b.publish != nil {
		return b.publish(t)
	}
	return decided(nil)
}

func (b *broker) Ready() error { return b.ready }

// only returns the one task that was published.
func (b *broker) only(t *testing.T) task.Task {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.tasks) != 1 {
		t.Fatalf("%d tasks were published, want 1", len(b.tasks))
	}
	return b.tasks[0]
}

func decided(err error) <-chan error {
	c := make(chan error, 1)
	c <- err
	return c
}

// site is a server on a loopback port.
type site struct {
	*Server
	addr   string
	served chan error // what Serve returned
}

func setup(t *testing.T, b *broker, change ...func(*Config)) *site {
	t.Helper()
	cfg := DefaultConfig()
	for _, f := range change {
		f(&cfg)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{New(cfg, b, slog.New(slog.DiscardHandler)), ln.Addr().String(), make(chan error, 1)}
	go func() { s.served <- s.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // nobody is left to wait for
		_ = s.Shutdown(ctx)
		if n := s.InFlight(); n != 0 {
			t.Errorf("%d tasks are in flight at the end", n)
		}
	})
	return s
}

// reply is an answer, read whole.
type reply struct {
	*http.Response
	body string
}

// do sends a request; header has names and values in turn.
func (s *site) do(t *testing.T, method, path, body string, header ...string) reply {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+s.addr+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	return read(t, resp)
}

func read(t *testing.T, resp *http.Response) reply {
	t.Helper()
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got := resp.Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control: %q, want no-store", got)
	}
	return reply{resp, string(body)}
}

// check reports an answer that is not the problem wanted.
func (r reply) check(t *testing.T, status int, detail string) {
	t.Helper()
	if r.StatusCode != status {
		t.Fatalf("status %d, want %d; body %s", r.StatusCode, status, r.body)
	}
	if got := r.Header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("Content-Type %q", got)
	}
	checkProblem(t, r.body, status, detail)
	if got := r.Header.Get("Retry-After") != ""; got != wire.Retryable(status) {
		t.Errorf("Retry-After is there: %t", got)
	}
}

func checkProblem(t *testing.T, text string, status int, detail string) wire.Problem {
	t.Helper()
	var p wire.Problem
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	if p.Type != "about:blank" || p.Title != http.StatusText(status) || p.Status != status || !strings.Contains(p.Detail, detail) {
		t.Errorf("problem %+v, want status %d and %q", p, status, detail)
	}
	return p
}

// rawConn is a connection on which requests are written byte by byte.
type rawConn struct {
	net.Conn
	r *bufio.Reader
}

func (s *site) dial(t *testing.T) *rawConn {
	t.Helper()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return &rawConn{c, bufio.NewReader(c)}
}

func (w *rawConn) send(t *testing.T, raw string) {
	t.Helper()
	if _, err := io.WriteString(w, raw); err != nil {
		t.Fatal(err)
	}
}

func (w *rawConn) reply(t *testing.T) reply {
	t.Helper()
	resp, err := http.ReadResponse(w.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return read(t, resp)
}

// closed fails unless the server has closed the connection in order.
func (w *rawConn) closed(t *testing.T) {
	t.Helper()
	if rest, err := io.ReadAll(w.r); err != nil || len(rest) > 0 {
		t.Errorf("after the answer: %q, %v; want a closed connection", rest, err)
	}
}

var errDown = errors.New("the broker is not connected")
