package rabbit

import (
	"net"
	"sync"
	"time"
)

const (
	// maxGathered is how many bytes may wait to be sent before Write blocks.
	// It is about two thousand messages of a hundred bytes, far more than a
	// working connection gathers.
	maxGathered = 512 << 10

	// writeTimeout bounds one write to the broker. If a broker takes nothing
	// for longer, the connection is dead. Heartbeats fail after about the same
	// time.
	writeTimeout = 15 * time.Second
)

// A gatheringConn sends in one system call what was written while the previous
// one was running: amqp091-go writes each message and each acknowledgement by
// itself, and those system calls would cost more than everything else that it
// does. There is no delay: bytes written to an idle connection are sent at
// once.
//
// Write returns before the bytes are sent. The next Write returns the error if
// sending fails. Until then the connection is silent, like any broken one.
type gatheringConn struct {
	net.Conn

	mu      sync.Mutex
	changed sync.Cond // one of the fields below
	pending []byte    // written, not being sent yet
	err     error     // why nothing more is sent
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
		c.changed.Wait() // at most writeTimeout: then there is an error
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

// send sends the pending bytes until that fails or the connection is closed.
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

// Close drops the bytes that were not sent. In AMQP both sides agree on the end
// of a connection, so nothing that matters follows the last message.
func (c *gatheringConn) Close() error {
	c.fail(net.ErrClosed)
	return c.Conn.Close()
}
