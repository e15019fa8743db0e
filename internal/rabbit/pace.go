package rabbit

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A pacedConn reads no more from the broker than it is granted. amqp091-go
// reads whether or not anybody takes the deliveries, and keeps all of them in
// memory; the prefetch bounds their number, but a message may have any length.
//
// What is not granted stays in the kernel's buffers and at the broker. A
// connection that is not paced reads everything, like any other.
type pacedConn struct {
	net.Conn

	// starved has a value when a read waits for a grant. It may have one a
	// moment longer.
	starved chan struct{}

	received atomic.Int64 // bytes
	mute     atomic.Bool  // it was closed since it had received none

	mu       sync.Mutex
	changed  sync.Cond // one of the fields below
	paced    bool
	closed   bool
	left     int           // bytes that may be read, while paced
	maxWait  time.Duration // how long a read may wait for a grant; 0: for ever
	late     func()        // called when it has waited for longer
	patience time.Duration // for one read, as amqp091-go has set it; 0: none
}

func pace(conn net.Conn) *pacedConn {
	c := &pacedConn{Conn: conn, starved: make(chan struct{}, 1)}
	c.changed.L = &c.mu
	return c
}

// mustHaveSpoken closes the connection if nothing was received.
func (c *pacedConn) mustHaveSpoken() {
	if c.received.Load() == 0 {
		c.mute.Store(true)
		c.Close()
	}
}

// expire has late called when a read has waited longer than maxWait for a grant.
func (c *pacedConn) expire(maxWait time.Duration, late func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.maxWait, c.late = maxWait, late
	c.changed.Broadcast()
}

// bound bounds the kernel's buffer for what was not read yet. Otherwise it
// grows to several MiB, which count as memory of the process's control group.
func (c *pacedConn) bound(bytes int) {
	if conn, ok := c.Conn.(interface{ SetReadBuffer(int) error }); ok {
		_ = conn.SetReadBuffer(bytes) // it works without, too
	}
}

// begin paces the connection: at most window bytes are read before the first
// grant.
func (c *pacedConn) begin(window int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paced, c.left = true, window
}

// grant lets at most window bytes be read before the next grant.
func (c *pacedConn) grant(window int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = window
	c.changed.Broadcast()
}

// end lets everything be read again.
func (c *pacedConn) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paced = false
	c.changed.Broadcast()
}

func (c *pacedConn) Read(b []byte) (int, error) {
	n, err := c.await(len(b))
	if err != nil {
		return 0, err
	}
	n, err = c.Conn.Read(b[:n])
	c.received.Add(int64(n))
	c.mu.Lock()
	c.left -= n
	c.mu.Unlock()
	return n, err
}

// await waits until something may be read, and returns how many bytes: at most
// n.
func (c *pacedConn) await(n int) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	waited, timed := false, false
	for c.paced && c.left <= 0 && !c.closed {
		if c.maxWait > 0 && !timed {
			defer time.AfterFunc(c.maxWait, c.late).Stop()
			timed = true
		}
		select {
		case c.starved <- struct{}{}:
		default:
		}
		c.changed.Wait()
		waited = true
	}
	if c.closed {
		return 0, net.ErrClosed
	}
	if waited && c.patience > 0 {
		// The deadline may have passed meanwhile, although the broker is not
		// to blame.
		if err := c.Conn.SetReadDeadline(time.Now().Add(c.patience)); err != nil {
			return 0, err
		}
	}
	if c.paced {
		n = min(n, c.left)
	}
	return n, nil
}

// SetReadDeadline is called by amqp091-go after each frame that it reads, with
// a time by which it expects another one or a heartbeat.
func (c *pacedConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.patience = 0
	if !t.IsZero() {
		c.patience = time.Until(t)
	}
	return c.Conn.SetReadDeadline(t)
}

func (c *pacedConn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.changed.Broadcast()
	c.mu.Unlock()
	return c.Conn.Close()
}
