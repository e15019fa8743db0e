package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/revq/revq/internal/client"
	"github.com/revq/revq/internal/wire"
)

// connectTimeout bounds how long --wait tries to reach the socket server.
const connectTimeout = 10 * time.Second

// A waiting listens for the results of certain tasks of one queue.
type waiting struct {
	timeout time.Duration
	greeted chan struct{}
	stop    context.CancelFunc
	ended   chan error
	absent  chan error // gets the reason when nothing listens at the URL
	client  client.Listener
	running func(number int, progress string) // is told how far a task is

	mu       sync.Mutex
	expected map[string]expected // by task id
	lost     error               // why there is no connection
}

// expected is a task whose result is awaited.
type expected struct {
	number int                 // of its text
	last   chan client.Message // has room for the last message about it
}

// errGivenUp is wrapped by why a task has no result and will have none.
var errGivenUp = errors.New("given up")

func newWaiting(sockets []string, queue string, tls *tls.Config, token string, timeout time.Duration, stderr io.Writer, running func(int, string)) *waiting {
	w := &waiting{
		timeout:  timeout,
		running:  running,
		greeted:  make(chan struct{}),
		ended:    make(chan error, 1),
		absent:   make(chan error, 1),
		expected: make(map[string]expected),
	}
	var once sync.Once
	w.client = client.Listener{
		URLs:     sockets,
		TLS:      tls,
		Token:    token,
		Queues:   []string{queue},
		Greeted:  func(client.Message) error { once.Do(func() { close(w.greeted) }); return nil },
		Received: w.received,
		Lost: func(reason error, _ time.Duration) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.lost = reason
			select {
			case <-w.greeted:
				note(stderr, "connection to %s lost: %v", w.client.URL(), reason)
				return
			default:
			}
			var dial *net.OpError
			if errors.As(reason, &dial) && dial.Op == "dial" {
				select {
				case w.absent <- reason:
				default: // connect knows already
				}
			}
		},
	}
	return w
}

// connect begins to listen. After it has returned nil, no result is missed.
func (w *waiting) connect(ctx context.Context) error {
	listenCtx, cancel := context.WithCancel(ctx)
	w.stop = cancel
	go func() { w.ended <- w.client.Run(listenCtx) }()
	select {
	case <-w.greeted:
		return nil
	case err := <-w.ended:
		return fmt.Errorf("listen for results at %s: %w", w.client.URL(), err)
	case err := <-w.absent:
		cancel()
		return fmt.Errorf("cannot reach the socket server: %w; is revq up, and is --socket-url right?", err)
	case <-time.After(connectTimeout):
		cancel()
		w.mu.Lock()
		defer w.mu.Unlock()
		reason := w.lost
		if reason == nil {
			reason = errors.New("no answer")
		}
		return fmt.Errorf("listen for results at %s: not connected after %v: %w; is the socket server up, and is --socket-url right?", strings.Join(w.client.URLs, ", "), connectTimeout, reason)
	}
}

func (w *waiting) close() { w.stop() }

func (w *waiting) received(m client.Message) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	e, ok := w.expected[m.ID]
	switch {
	case !ok:
	case m.Type == wire.TypeProgress:
		w.running(e.number, m.Text)
	case wire.IsLast(m.Type):
		select {
		case e.last <- m:
		default: // it has the result already
		}
	}
	return nil
}

// expect makes w keep the result of a task, that of the text with this number.
// Call it before the task is sent.
func (w *waiting) expect(id string, number int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expected[id] = expected{number, make(chan client.Message, 1)}
}

func (w *waiting) forget(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.expected, id)
}

// result waits for the result of a task that expect was called with. The error
// is errGivenUp, wrapped with the reason, if the task has none.
func (w *waiting) result(ctx context.Context, id string) (string, error) {
	defer w.forget(id)
	w.mu.Lock()
	last := w.expected[id].last
	w.mu.Unlock()
	select {
	case m := <-last:
		switch m.Type {
		case wire.TypeLost:
			return "", fmt.Errorf("its result cannot be sent: %s", m.Text)
		case wire.TypeFailed:
			return "", fmt.Errorf("%w: %s", errGivenUp, m.Text)
		}
		return m.Text, nil
	case <-time.After(w.timeout):
		return "", fmt.Errorf("no result came within %v; is a worker running?", w.timeout)
	case err := <-w.ended:
		return "", fmt.Errorf("listening ended: %w", err)
	case <-ctx.Done():
		return "", errors.New("the wait for its result was interrupted")
	}
}
