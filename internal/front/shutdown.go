package front

import (
	"context"
	"net"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// unreadEvery is how often Shutdown looks for requests that have arrived and
	// were not read yet.
	unreadEvery = 10 * time.Millisecond

	// maxUnread is how long Shutdown waits for those to be read. It takes
	// microseconds unless the machine has too much to do; an attacker who sends
	// on and on does not delay the end for longer.
	maxUnread = time.Second
)

// Shutdown stops accepting connections, answers running requests, and closes
// idle connections after lastCall. A client that has just read an answer may be
// sending its next request: if that arrives within lastCall, it is answered and
// the client is told to close, instead of being cut off. Shutdown returns ctx's
// error if some connections are still busy when ctx ends.
func (s *Server) Shutdown(ctx context.Context, lastCall time.Duration) error {
	s.mu.Lock()
	s.draining.Store(true)
	closed := s.open
	for _, ln := range closed {
		if err := ln.Close(); err != nil {
			s.app.Log.Warn("closing a listening socket", "address", ln.Addr().String(), "error", err)
		}
	}
	s.open = nil
	s.mu.Unlock()

	if lastCall > 0 {
		select {
		case <-time.After(lastCall):
		case <-ctx.Done():
		}
		awaitRead(ctx, closed)
	}
	return s.http.ShutdownWithContext(ctx)
}

// awaitRead waits until no request is unread: on a busy machine, the goroutine
// of a connection may run long after a request has arrived, and fasthttp would
// close the connection as idle. It looks twice, since what was just read is for
// a moment neither unread nor being handled.
func awaitRead(ctx context.Context, all []*listener) {
	ctx, cancel := context.WithTimeout(ctx, maxUnread)
	defer cancel()
	for quiet := 0; quiet < 2; quiet++ {
		select {
		case <-time.After(unreadEvery):
		case <-ctx.Done():
			return
		}
		if slices.ContainsFunc(all, (*listener).hasUnread) {
			quiet = -1
		}
	}
}

// hasUnread reports whether a connection that waits for a request has received
// bytes that were not read.
func (l *listener) hasUnread() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.open {
		if c.waitingSince.Load() > 0 && unread(c) > 0 {
			return true
		}
	}
	return false
}

// unread returns how many bytes the kernel has received over c that were not
// read. What TLS has read and not yet handed out does not count.
func unread(c net.Conn) (n int) {
	if socket, ok := Below(c).(syscall.Conn); ok {
		if raw, err := socket.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
		}
	}
	return n
}
