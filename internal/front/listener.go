package front

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/revq/revq/internal/wire"
)

const (
	// acceptPause is the wait before another attempt to accept a connection,
	// when there are no file descriptors or no memory.
	acceptPause = 100 * time.Millisecond

	// warnPause is the minimum time between two lines in the log about a
	// shortage, which may begin and end with each connection.
	warnPause = 10 * time.Second

	// lingerTime is how long a refused client has to read the reason.
	lingerTime = time.Second

	// maxRefusing is how many connections beyond the limit are answered with a
	// 503 at once; more are closed without an answer.
	maxRefusing = 256
)

// A listener is a listening socket that survives a shortage of descriptors or
// memory, limits the number of connections, and may be closed twice, as
// fasthttp does.
type listener struct {
	net.Listener
	log       *slog.Logger
	most      int64         // maximum number of connections
	maxHeader int           // bytes of each request's head
	bodies    *bodies       // nil without a limit
	open      atomic.Int64  // connections, including those that are being refused
	total     *atomic.Int64 // the same for all listening sockets of a server
	warned    time.Time     // when a shortage was last logged; only Accept uses it
	close     sync.Once
	err       error // of close
}

// Accept waits while there are no descriptors or no memory for a connection:
// fasthttp would stop serving the socket after such an error.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		switch {
		case err == nil:
			if taken := l.take(c); l.admit(taken) {
				return taken, nil
			}
			continue
		case !shortage(err):
			return nil, err
		case time.Since(l.warned) > warnPause:
			l.warned = time.Now()
			l.log.Warn("cannot accept connections, retrying", "address", l.Addr().String(), "error", err)
		}
		time.Sleep(acceptPause)
	}
}

func (l *listener) take(c net.Conn) *conn {
	taken := &conn{Conn: c, from: l, guard: guard{limit: l.maxHeader}}
	if l.bodies != nil {
		taken.guard.announce = func(total int64) *fault { return l.bodies.announce(taken, total) }
	}
	return taken
}

// admit counts c. If there are too many connections, it refuses c and returns
// false.
func (l *listener) admit(c *conn) bool {
	l.total.Add(1)
	switch n := l.open.Add(1); {
	case n <= l.most:
		return true
	case n <= l.most+maxRefusing:
		go c.refuse(l.most)
	default:
		c.Close()
	}
	return false
}

func shortage(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) ||
		errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM)
}

func (l *listener) Close() error {
	l.close.Do(func() { l.err = l.Listener.Close() })
	return l.err
}

// A conn is a connection whose requests are guarded, and which can be closed
// without losing the last answer.
type conn struct {
	net.Conn
	guard  guard
	from   *listener
	linger atomic.Bool // the client may still send bytes that are not read
	gone   sync.Once   // subtracts c from the counts

	sharing bool // it may have a share; only the goroutine that reads uses it
	share   share
}

// Read reads the bytes that the guard lets pass.
func (c *conn) Read(b []byte) (int, error) {
	if c.guard.wrong != nil {
		return 0, c.guard.wrong
	}
	if c.sharing && c.guard.between() {
		c.from.bodies.release(c) // fasthttp has answered, since it reads on
		c.sharing = false
	}
	n, err := c.Conn.Read(b)
	if c.sharing {
		if slow := c.from.bodies.received(c, n); slow != nil {
			c.guard.wrong = slow
			return 0, slow
		}
	}
	if n == 0 {
		return 0, err
	}
	if n = c.guard.pass(b[:n]); n == 0 {
		return 0, c.guard.wrong
	}
	if c.sharing && c.guard.between() {
		c.from.bodies.complete(c)
	}
	return n, err
}

// refuse answers 503, since there are most connections already. It waits for
// the request first: clients do not expect an answer before they have sent one.
func (c *conn) refuse(most int64) {
	c.linger.Store(true)
	defer c.Close()
	if c.SetDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	_, _ = c.Conn.Read(make([]byte, 512)) // the beginning is enough
	p := NewProblem(503, fmt.Sprintf("there are %d connections already: retry in a second", most))
	body := p.JSON()
	if c.SetDeadline(time.Now().Add(lingerTime)) == nil {
		_, _ = fmt.Fprintf(c, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nCache-Control: no-store\r\nRetry-After: %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s",
			p.Status, p.Title, wire.ProblemType, wire.RetryAfter, len(body), body)
	}
}

// Close waits, if c lingers, until the client has closed its side too. To close
// a socket that holds unread data would reset the connection, and the client
// could lose the answer.
func (c *conn) Close() error {
	defer c.leave()
	if c.from.bodies != nil {
		c.from.bodies.release(c)
	}
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok && c.linger.Load() {
		if w.CloseWrite() == nil && c.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
			_, _ = io.Copy(io.Discard, c.Conn)
		}
	}
	return c.Conn.Close()
}

// leave frees c's place.
func (c *conn) leave() {
	c.gone.Do(func() {
		c.from.open.Add(-1)
		c.from.total.Add(-1)
	})
}

// Detach returns the connection of a hijacked request, without fasthttp's
// reader and without the guard, so that nothing of them stays in memory. The
// connection no longer counts as one of the server.
func Detach(c net.Conn) net.Conn {
	if hijacked, ok := c.(interface{ UnsafeConn() net.Conn }); ok {
		c = hijacked.UnsafeConn()
	}
	if own, ok := c.(*conn); ok {
		own.leave()
		c = own.Conn
	}
	return c
}
