package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// A loop serves many sockets in one goroutine.
type loop struct {
	epoll    int
	wakeup   int // an eventfd that ends a wait
	handlers []handler
	events   []unix.EpollEvent
	buf      []byte // what was read last, shared by all sockets
}

// A handler owns a file descriptor of a loop.
type handler interface {
	// ready is called when the descriptor can be read or written, or has failed. An error ends the loop's run.
	ready(events uint32) error
}

// readSize is how much is read at once, in bytes: with many small frames behind each other, a system call takes in
// some thousand of them.
const readSize = 256 << 10

func newLoop() (*loop, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("poll sockets: %w", err)
	}
	wakeup, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epoll)
		return nil, fmt.Errorf("poll sockets: %w", err)
	}
	l := &loop{epoll: epoll, wakeup: wakeup, events: make([]unix.EpollEvent, 512), buf: make([]byte, readSize)}
	if err := l.add(wakeup, unix.EPOLLIN, drained(wakeup)); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// close releases the loop; the handlers' descriptors are theirs to close.
func (l *loop) close() {
	unix.Close(l.wakeup)
	unix.Close(l.epoll)
}

// add has h called for events (unix.EPOLLIN and the like) of fd, until fd is closed.
func (l *loop) add(fd int, events uint32, h handler) error {
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("poll a socket: %w", err)
	}
	for len(l.handlers) <= fd {
		l.handlers = append(l.handlers, nil)
	}
	l.handlers[fd] = h
	return nil
}

// watch changes the events that fd's handler is called for.
func (l *loop) watch(fd int, events uint32) error {
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("poll a socket: %w", err)
	}
	return nil
}

// drop closes fd.
func (l *loop) drop(fd int) {
	l.handlers[fd] = nil
	unix.Close(fd)
}

// run serves the sockets until done returns true, which is asked after each wait and at least every 10 ms. It returns
// early with an error of a handler, or of ctx.
func (l *loop) run(ctx context.Context, done func() bool) error {
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
			if h := l.handlers[e.Fd]; h != nil { // it may have been dropped by one before
				if err := h.ready(e.Events); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

const maxWait = 10 * time.Millisecond

// read reads what there is, up to readSize; the result is valid until the next call. Nothing and no error means that
// there is nothing at present.
func (l *loop) read(fd int) ([]byte, error) {
	n, err := unix.Read(fd, l.buf)
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return nil, nil
	case err != nil:
		return nil, err
	case n == 0:
		return nil, errClosed
	}
	return l.buf[:n], nil
}

// errClosed means that the peer has closed the connection.
var errClosed = fmt.Errorf("the server closed the connection")

// drained empties a descriptor that only wakes the loop.
type drained int

func (d drained) ready(uint32) error {
	var buf [8]byte
	unix.Read(int(d), buf[:])
	return nil
}

// An alarm is a timer of a loop, precise to some 50 µs, where the loop's own waits are to a millisecond.
type alarm struct {
	fd   int
	loop *loop
	ring func() error
}

func (l *loop) newAlarm(ring func() error) (*alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make a timer: %w", err)
	}
	a := &alarm{fd: fd, loop: l, ring: ring}
	if err := l.add(fd, unix.EPOLLIN, a); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return a, nil
}

// set has it ring after d, instead of what was set before.
func (a *alarm) set(d time.Duration) error {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(int64(d), 1))}
	if err := unix.TimerfdSettime(a.fd, 0, &spec, nil); err != nil {
		return fmt.Errorf("set a timer: %w", err)
	}
	return nil
}

func (a *alarm) ready(uint32) error {
	var buf [8]byte
	unix.Read(a.fd, buf[:])
	return a.ring()
}

func (a *alarm) close() { a.loop.drop(a.fd) }

// dial begins to connect to addr, from the address source if that is not nil. The socket becomes writable when the
// connection stands or has failed; failure tells.
func dial(addr *net.TCPAddr, source net.IP) (fd int, err error) {
	family, to := unix.AF_INET, unix.Sockaddr(nil)
	if ip := addr.IP.To4(); ip != nil {
		to = &unix.SockaddrInet4{Port: addr.Port, Addr: [4]byte(ip)}
	} else {
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Port: addr.Port, Addr: [16]byte(addr.IP.To16())}
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, tooMany(err)
	}
	if source != nil {
		// The port is chosen when connecting, so that it only has to differ for the same server.
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte(source.To4())}); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("use the address %v: %w", source, err)
		}
	}
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if err := unix.Connect(fd, to); err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return -1, fmt.Errorf("connect to %v: %w", addr, err)
	}
	return fd, nil
}

// failure returns why a socket could not connect or has failed, if it has.
func failure(fd int) error {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if code != 0 {
		return unix.Errno(code)
	}
	return nil
}

// tooMany says what to do when there are no more descriptors.
func tooMany(err error) error {
	if errors.Is(err, unix.EMFILE) {
		return fmt.Errorf("the limit of open files is reached: raise it with `ulimit -n`, or use fewer connections: %w", err)
	}
	return fmt.Errorf("make a socket: %w", err)
}
