package socket

import (
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// unsentBytes is how much of what was written to a connection may wait in the
// kernel until it can be sent. It keeps a listener that does not read from
// filling a send buffer of megabytes, and leaves room for a farewell.
const unsentBytes = 64 << 10

// farewellBytes is what makeRoom makes room for: what waits already, the rest
// of a frame unless it is very large, and a close frame.
const farewellBytes = 512 << 10

// descriptor returns conn's file descriptor. It stays valid while conn is
// referred to and not closed.
func descriptor(conn net.Conn) (fd int, err error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return 0, fmt.Errorf("a %T has no file descriptor", conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, err
	}
	err = raw.Control(func(f uintptr) { fd = int(f) })
	return fd, err
}

// below returns the connection that one with TLS uses, and others as they are.
func below(conn net.Conn) net.Conn {
	if over, ok := conn.(interface{ NetConn() net.Conn }); ok {
		return over.NetConn()
	}
	return conn
}

// farewellKept is how long the kernel keeps a farewell for a listener that takes
// nothing, after the server has given it up.
const farewellKept = 30 * time.Second

// prepareSocket sets the options of a listener's socket. They are for TCP;
// without them, or on another kind of socket, things work, but less well.
func prepareSocket(fd int, cfg *Config) {
	// The kernel resets a connection whose peer is gone without a word after
	// this time. It resets one whose peer is there and reads nothing, too,
	// which must not come before the farewell.
	timeout := max(2*cfg.PingInterval, cfg.WriteTimeout+closeGrace+farewellKept)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(timeout.Milliseconds()))
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentBytes)
}

// makeRoom lets a socket that takes no more take a little all the same, so
// that its peer finds a farewell when it reads again.
func makeRoom(fd int) {
	if size, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF); err == nil && size < 2*farewellBytes {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, farewellBytes) // the kernel doubles it
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, 0) // the system's own: none
}
