package rabbit

import (
	"net"
	"sync"
	"time"
)

const (
	// maxGathered is how many bytes may wait to be sent before Write waits,
	// too: some two thousand messages of a hundred bytes, far more than a
	// connection that moves ever gathers.
	maxGathered = 512 << 10

	// writeTimeout bounds one write to the broker. A broker that takes
	// nothing for longer is as good as dead, and heartbeats say so too.
	writeTimeout = 15 * time.Second
)

// A gatheringConn sends together what was written while it was sending:
// amqp091-go writes each message and each acknowledgement by itself, and those
// system calls would cost more than all else that it does. Nothing is held
// back: what is written to an idle connection goes out at once.
//
// Write returns before the bytes are sent. An error in sending them is
// returned by the next Write; until then the connection just falls silent,
// as any that breaks.
type gatheringConn struct {
	net.Conn

	mu      sync.Mutex
	changed sync.Cond // any of what follows
	pending []byte    // written, not being sent yet
	err     error     // why no more is sent
}

// gather returns conn with its writes gathered, until it is closed.
func gather(conn net.Conn) *gatheringConn {
	c := &gatheringConn{Conn: conn}
	c.changed.L = &c.mu
	go c.send()
	return c
}

func (c *gatheringConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.pending) >= maxGathered && c.err == nil {
		c.changed.Wait() // for writeTimeout at most: then there is an error
	}
	if c.err != nil {
		return 0, c.err
	}
	if len(c.pending) == 0 {
		c.changed.Broadcast()
	}
	c.pending = append(c.pending, b...)
	return len(b), nil
}

// send sends what is pending until that fails or the connection is closed.
func (c *gatheringConn) send() {
	var batch []byte
	for {
		c.mu.Lock()
		for len(c.pending) == 0 && c.err == nil {
			c.changed.Wait()
		}
		err := c.err
		batch, c.pending = c.pending, batch[:0]
		c.changed.Broadcast()
		c.mu.Unlock()
		if err != nil {
			return
		}
		if err = c.SetWriteDeadline(time.Now().Add(writeTimeout)); err == nil {
			_, err = c.Conn.Write(batch)
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}

func (c *gatheringConn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
	c.changed.Broadcast()
}

// Close drops what has not been sent: AMQP closes connections in agreement,
// so that behind the last word there is nothing that matters.
func (c *gatheringConn) Close() error {
	c.fail(net.ErrClosed)
	return c.Conn.Close()
}
