package load

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// A Loop serves many sockets in one goroutine.
type Loop struct {
	epoll    int
	wakeup   int // an eventfd that ends EpollWait
	handlers []handler
	events   []unix.EpollEvent
	buf      []byte // for reads; all sockets share it
}

// A handler owns a file descriptor of a loop.
type handler interface {
	// ready is called when the descriptor can be read or written, or has
	// failed. An error ends Run.
	ready(events uint32) error
}

// readSize is how much one system call reads, in bytes: some thousand small
// frames, if they arrive in a row.
const readSize = 256 << 10

// NewLoop returns a loop without sockets. The caller closes it.
func NewLoop() (*Loop, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("poll sockets: %w", err)
	}
	wakeup, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epoll)
		return nil, fmt.Errorf("poll sockets: %w", err)
	}
	l := &Loop{epoll: epoll, wakeup: wakeup, events: make([]unix.EpollEvent, 512), buf: make([]byte, readSize)}
	if err := l.add(wakeup, unix.EPOLLIN, drained(wakeup)); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Close releases the loop. It does not close the sockets of its connections.
func (l *Loop) Close() {
	unix.Close(l.wakeup)
	unix.Close(l.epoll)
}

// add registers h for events (unix.EPOLLIN and the like) of fd, until fd is
// closed.
func (l *Loop) add(fd int, events uint32, h handler) error {
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("poll a socket: %w", err)
	}
	for len(l.handlers) <= fd {
		l.handlers = append(l.handlers, nil)
	}
	l.handlers[fd] = h
	return nil
}

// watch changes the events for which fd's handler is called.
func (l *Loop) watch(fd int, events uint32) error {
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("poll a socket: %w", err)
	}
	return nil
}

// drop closes fd and forgets its handler.
func (l *Loop) drop(fd int) {
	l.handlers[fd] = nil
	unix.Close(fd)
}

// Run serves the sockets until done returns true. It calls done after each
// wait, at intervals of at most 10 ms. It returns early if a handler fails or
// ctx ends.
func (l *Loop) Run(ctx context.Context, done func() bool) error {
	one := [8]byte{1}
	defer context.AfterFunc(ctx, func() { unix.Write(l.wakeup, one[:]) })()
	for !done() {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := unix.EpollWait(l.epoll, l.events, int(maxWait.Milliseconds()))
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("poll sockets: %w", err)
		}
		for _, e := range l.events[:max(n, 0)] {
			if h := l.handlers[e.Fd]; h != nil { // an earlier handler may have dropped it
				if err := h.ready(e.Events); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// maxWait is the longest time between two calls of Run's done.
const maxWait = 10 * time.Millisecond

// read reads what has arrived, up to readSize. The result is valid until the
// next call; it is empty, without an error, if nothing has arrived.
func (l *Loop) read(fd int) ([]byte, error) {
	n, err := unix.Read(fd, l.buf)
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return nil, nil
	case err != nil:
		return nil, err
	case n == 0:
		return nil, ErrClosed
	}
	return l.buf[:n], nil
}

// ErrClosed means that the peer has closed the connection.
var ErrClosed = errors.New("the server closed the connection")

// drained empties a descriptor whose only purpose is to wake the loop.
type drained int

func (d drained) ready(uint32) error {
	var buf [8]byte
	unix.Read(int(d), buf[:])
	return nil
}
