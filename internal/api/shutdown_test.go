package api

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/task"
)

// held is a broker that confirms when told.
func held() (b *broker, published chan string, confirm chan error) {
	published, confirm = make(chan string, 1), make(chan error, 1)
	return &broker{publish: func(tk task.Task) <-chan error {
		published <- tk.Text
		return confirm
	}}, published, confirm
}

func TestShutdownAnswersRequestsInFlight(t *testing.T) {
	t.Parallel()
	b, published, confirm := held()
	s := setup(t, b)
	s.lastCall = time.Second // for the request below to cross in time on a busy machine
	busy, idle, next := s.dial(t), s.dial(t), s.dial(t)
	for _, w := range []*rawConn{idle, next} {
		w.send(t, get)
		w.reply(t)
	}
	busy.send(t, post(typePlain, "abc"))
	await.Value(t, "task", published)

	down := make(chan error, 1)
	go func() { down <- s.Shutdown(context.Background()) }()
	if err := <-s.served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if c, err := net.Dial("tcp", s.addr); err == nil {
		c.Close()
		t.Error("a new connection is taken")
	}
	// A request that crosses the shutdown is answered, and is the last.
	next.send(t, get)
	if r := next.reply(t); r.body != "ok" || !r.Close {
		t.Errorf("%q, close %t; want an answer that closes", r.body, r.Close)
	}
	idle.closed(t)
	select {
	case err := <-down:
		t.Fatalf("Shutdown returned %v with a running request", err)
	default:
	}
	confirm <- nil
	if r := busy.reply(t); r.StatusCode != 202 || !r.Close {
		t.Errorf("status %d, close %t; want 202 that closes", r.StatusCode, r.Close)
	}
	busy.closed(t)
	if err := <-down; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(ln); err != nil {
		t.Errorf("Serve after Shutdown: %v", err)
	}
	if err := ln.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve after Shutdown left the listener open: %v", err)
	}
}

// A lateListener's connections read a second time only when the server has
// asked for their descriptors, like one whose goroutine gets no CPU.
type lateListener struct {
	net.Listener
	asked chan struct{}
	ended <-chan struct{} // with the test
}

func (l lateListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &lateConn{TCPConn: c.(*net.TCPConn), from: l}, nil
}

type lateConn struct {
	*net.TCPConn
	from  lateListener
	reads int // only the goroutine that reads uses it
	once  sync.Once
}

func (c *lateConn) Read(b []byte) (int, error) {
	if c.reads++; c.reads == 2 {
		select {
		case <-c.from.asked:
		case <-c.from.ended:
		}
	}
	return c.TCPConn.Read(b)
}

func (c *lateConn) SyscallConn() (syscall.RawConn, error) {
	c.once.Do(func() { close(c.from.asked) })
	return c.TCPConn.SyscallConn()
}

// A request that has arrived is answered, however late the server reads it.
func TestShutdownAnswersWhatHasArrived(t *testing.T) {
	t.Parallel()
	s := setup(t, &broker{})
	s.lastCall = time.Millisecond
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(lateListener{ln, make(chan struct{}), t.Context().Done()}) }()
	w := (&site{Server: s.Server, addr: ln.Addr().String()}).dial(t)
	w.send(t, get)
	w.reply(t)
	w.send(t, get)
	if err := s.Shutdown(await.Context(t)); err != nil {
		t.Fatalf("Shutdown: %v", err)
	}
	if r := w.reply(t); r.body != "ok" || !r.Close {
		t.Errorf("%q, close %t; want an answer that closes", r.body, r.Close)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestShutdownGivesUpInTime(t *testing.T) {
	t.Parallel()
	b, published, confirm := held()
	s := setup(t, b)
	w := s.dial(t)
	w.send(t, post(typePlain, "abc"))
	await.Value(t, "task", published)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v", err)
	}
	confirm <- nil // the request is answered all the same
	if r := w.reply(t); r.StatusCode != 202 || !r.Close {
		t.Errorf("status %d, close %t", r.StatusCode, r.Close)
	}
}

func TestServeOnTwoListeners(t *testing.T) {
	t.Parallel()
	s := setup(t, &broker{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan error, 1)
	go func() { second <- s.Serve(ln) }()
	for _, addr := range []string{s.addr, ln.Addr().String()} {
		w := (&site{Server: s.Server, addr: addr}).dial(t)
		w.send(t, get)
		if r := w.reply(t); r.body != "ok" {
			t.Errorf("%s: %q", addr, r.body)
		}
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	for _, served := range []chan error{s.served, second} {
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
}
