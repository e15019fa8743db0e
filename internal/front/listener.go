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
	// acceptPause is the wait for file descriptors or memory to come free.
	acceptPause = 100 * time.Millisecond

	// warnPause is the wait between two lines in the log about a shortage, which
	// may come and go with each connection.
	warnPause = 10 * time.Second

	// lingerTime is how long a refused client is given to read the reason.
	lingerTime = time.Second

	// maxRefusing is how many connections at once are told that there are too
	// many; more are closed without a word.
	maxRefusing = 256
)

// A listener is a net.Listener that outlives a shortage, keeps to a number of
// connections, and may be closed twice, which fasthttp does.
type listener struct {
	net.Listener
	log       *slog.Logger
	most      int64         // connections at once
	maxHeader int           // of each request
	bodies    *bodies       // nil if there are none
	open      atomic.Int64  // connections, with those that are being refused
	total     *atomic.Int64 // the same of all listeners of a server
	warned    time.Time     // of a shortage; Accept's own
	close     sync.Once
	err       error // of closing
}

// Accept waits while there are no descriptors or no memory for a connection:
// to fasthttp such an error is the end of the listener.
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
			l.log.Warn("cannot take connections, trying again", "address", l.Addr().String(), "error", err)
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

// admit counts c. It returns false if there are too many, and c is told so.
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
	linger atomic.Bool // the client may still be sending what nobody will read
	gone   sync.Once   // it is no longer counted

	sharing bool // it may have a share; for the goroutine that reads
	share   share
}

// Read hands over what the guard lets pass.
func (c *conn) Read(b []byte) (int, error) {
	if c.guard.wrong != nil {
		return 0, c.guard.wrong
	}
	if c.sharing && c.guard.between() {
		c.from.bodies.release(c) // fasthttp reads on when it has answered
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

// refuse tells the client of a connection that there are most already. It
// waits for the request: clients do not expect an answer before.
func (c *conn) refuse(most int64) {
	c.linger.Store(true)
	defer c.Close()
	if c.SetDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	_, _ = c.Conn.Read(make([]byte, 512)) // the beginning will do
	p := NewProblem(503, fmt.Sprintf("there are %d connections already: send this again in a second", most))
	body := p.JSON()
	if c.SetDeadline(time.Now().Add(lingerTime)) == nil {
		_, _ = fmt.Fprintf(c, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nCache-Control: no-store\r\nRetry-After: %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s",
			p.Status, p.Title, wire.ProblemType, wire.RetryAfter, len(body), body)
	}
}

// Close waits, if c lingers, until the client has closed too: closing a socket
// that holds unread data resets the connection, and the reset overtakes the
// answer.
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

// leave gives c's place to another one.
func (c *conn) leave() {
	c.gone.Do(func() {
		c.from.open.Add(-1)
		c.from.total.Add(-1)
	})
}

// Detach returns the bare connection behind one that a request was hijacked
// from, without the reader of fasthttp and without the guard, so that nothing
// of them stays in memory. It no longer counts as a connection of the server.
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
