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

	"github.com/valyala/fasthttp"
	"golang.org/x/time/rate"

	"github.com/revq/revq/internal/memory"
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

	// Of what refused clients still send, lingerRate bytes are read in a second,
	// lingerBytes at once.
	lingerRate  = 16 << 20
	lingerBytes = 8 << 10

	// maxRefusing is how many connections beyond a limit are answered at once;
	// more are closed without an answer.
	maxRefusing = 256

	// requestPatience is how long a connection may wait for a request before it
	// has to make room for another one. A client's request usually comes at
	// once. With a second, those who only connect kept all others out for most
	// of the time (e2e.TestAttacks).
	requestPatience = 100 * time.Millisecond

	// candidates is how many connections are looked at when one has to make
	// room.
	candidates = 64
)

// A listener is a listening socket that survives a shortage of descriptors or
// memory, limits the number of connections, and may be closed twice, as
// fasthttp does.
type listener struct {
	net.Listener
	log            *slog.Logger
	maxConnections int64
	maxHeader      int          // bytes of each request's head
	bodies         *bodies      // nil without a limit
	refusing       atomic.Int64 // connections that are being refused
	total          *gauge       // open connections at all listening sockets of a server, with those
	clients        *clients
	warned         time.Time // when a shortage was last logged; only Accept uses it
	close          sync.Once
	err            error // of close

	mu   sync.Mutex
	open map[*conn]struct{} // without those that are being refused
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
	l.total.add()
	if at := addressOf(c); l.clients.trusted.contain(at) {
		c.proxied = true
	} else {
		c.client = l.clients.at(at)
	}
	why := c.client.connect()
	if why != nil {
		c.client = nil // which does not count it
	} else if !l.enter(c) {
		why = NewProblem(503, fmt.Sprintf("there are %d connections already: retry in a second", l.maxConnections))
	}
	switch {
	case why == nil:
		return true
	case l.refusing.Add(1) <= maxRefusing:
		go c.refuse(why)
	default:
		c.Conn.Close()
		c.leave()
		l.refusing.Add(-1)
	}
	return false
}

// enter gives c a place, if need be that of a connection without a request. It
// returns false if there is none.
func (l *listener) enter(c *conn) bool {
	now := time.Now()
	c.waitingSince.Store(now.UnixNano())
	l.mu.Lock()
	defer l.mu.Unlock()
	if int64(len(l.open)) >= l.maxConnections && !l.makeRoom(now) {
		return false
	}
	l.open[c] = struct{}{}
	return true
}

// makeRoom ends a connection that has waited for more than requestPatience for its
// client to send a request, the one that has waited longest of a few. So those
// who connect and send little or nothing do not keep out those who send. One
// that has had a request is ended only if all of the few have: its client may be
// sending the next one, and could not know what came of it. Until one without a
// request has waited long enough, nobody leaves. The caller holds mu.
func (l *listener) makeRoom(now time.Time) bool {
	var leaves *conn
	var since int64 // of leaves
	var unused bool // one of the few has not had a request
	late, left := now.Add(-requestPatience).UnixNano(), candidates
	for c := range l.open {
		began, isUnused := c.waitingSince.Load(), !c.used.Load()
		if isUnused && !unused {
			leaves, unused = nil, true
		}
		if began > 0 && began < late && isUnused == unused && (leaves == nil || began < since) {
			leaves, since = c, began
		}
		if left--; left == 0 {
			break
		}
	}
	if leaves == nil || !leaves.waitingSince.CompareAndSwap(since, evicted) {
		return false
	}
	delete(l.open, leaves)
	_ = leaves.SetReadDeadline(now) // ends its Read
	return true
}

func shortage(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) ||
		errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM)
}

func (l *listener) Close() error {
	l.close.Do(func() { l.err = l.Listener.Close() })
	return l.err
}

// evicted is the waitingSince of a connection that has made room for another.
const evicted = -1

var faultEvicted = &fault{fasthttp.StatusRequestTimeout,
	"the request came too slowly while there were too many connections: send it at once"}

// A conn is a connection whose requests are guarded, and which can be closed
// without losing the last answer.
type conn struct {
	net.Conn
	guard  guard
	from   *listener
	linger atomic.Bool // the client may still send bytes that are not read
	gone   sync.Once   // subtracts c from the counts

	client  *Client // at the other end; nil without limits
	proxied bool    // the other end is a trusted proxy

	// waitingSince is since when c has waited for the rest of a request, in Unix
	// nanoseconds; 0 while one is being handled, evicted once c must end.
	waitingSince atomic.Int64
	used         atomic.Bool // a whole request has arrived

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
	if c.guard.between() {
		c.waitingSince.CompareAndSwap(0, time.Now().UnixNano())
	}
	if c.waitingSince.Load() == evicted {
		return c.end()
	}
	n, err := c.Conn.Read(b)
	if c.waitingSince.Load() == evicted {
		return c.end()
	}
	if c.sharing {
		if slow := c.from.bodies.received(c, n); slow != nil {
			c.guard.wrong = slow
			return 0, slow
		}
	}
	if n == 0 {
		if !c.guard.between() && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) { // the latter with TLS
			c.guard.wrong = faultEnd // fasthttp would not always answer
			return 0, faultEnd
		}
		return 0, err
	}
	if n = c.guard.pass(b[:n]); n == 0 {
		return 0, c.guard.wrong
	}
	if c.guard.between() {
		c.busy()
		if c.sharing {
			c.from.bodies.complete(c)
		}
	}
	return n, err
}

// busy records that c's requests are complete, and are being handled.
func (c *conn) busy() {
	c.used.Store(true)
	if since := c.waitingSince.Load(); since != evicted {
		c.waitingSince.CompareAndSwap(since, 0)
	}
}

// end returns from the last Read of a connection that was evicted.
func (c *conn) end() (int, error) {
	c.guard.wrong = faultEvicted
	return 0, faultEvicted
}

// refuse answers why there is no place for c. It waits for the request first:
// clients do not expect an answer before they have sent one.
func (c *conn) refuse(p *Problem) {
	defer c.from.refusing.Add(-1)
	c.linger.Store(true)
	defer c.Close()
	if c.SetDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	_, _ = c.Conn.Read(make([]byte, 512)) // the beginning is enough
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
		if end := time.Now().Add(lingerTime); w.CloseWrite() == nil && c.SetReadDeadline(end) == nil {
			c.discard(end)
		}
	}
	return c.Conn.Close()
}

// discard reads until the client closes, or end. All connections together are
// read at a bounded speed: clients that flood the server must not cost more once
// they have been refused.
func (c *conn) discard(end time.Time) {
	b := make([]byte, lingerBytes)
	for now := time.Now(); now.Before(end); now = time.Now() {
		n, err := c.Conn.Read(b)
		if err != nil {
			return
		}
		time.Sleep(min(discarding.ReserveN(now, n).DelayFrom(now), end.Sub(now)))
	}
}

var discarding = rate.NewLimiter(lingerRate, lingerRate/4)

// leave frees c's place.
func (c *conn) leave() {
	c.gone.Do(func() {
		c.from.mu.Lock()
		delete(c.from.open, c)
		c.from.mu.Unlock()
		c.from.total.subtract()
		c.client.disconnect()
	})
}

// A gauge counts connections. When most of them have left, it has their memory
// returned: while they were open, each had a goroutine and a buffer of
// Config.MaxHeader, which the process would keep for minutes.
type gauge struct{ now, highest atomic.Int64 }

// manyConnections is how many connections have enough memory to return, some
// 20 KiB each.
const manyConnections = 256

func (g *gauge) add() {
	n := g.now.Add(1)
	for {
		highest := g.highest.Load()
		if n <= highest || g.highest.CompareAndSwap(highest, n) {
			return
		}
	}
}

func (g *gauge) subtract() {
	n := g.now.Add(-1)
	if highest := g.highest.Load(); highest >= manyConnections && n <= highest/4 && g.highest.CompareAndSwap(highest, n) {
		memory.GiveBack()
	}
}

// NetConn returns the connection that is guarded, as tls.Conn's does.
func (c *conn) NetConn() net.Conn { return c.Conn }

// Below returns the connection below all others on it, such as TLS and the
// guard: that of the kernel. Any other connection it returns as it is.
func Below(c net.Conn) net.Conn {
	for {
		over, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = over.NetConn()
	}
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
