package socket

import (
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// unsentBytes is how many bytes may wait in the kernel to be sent on one
// connection. The limit keeps a listener that does not read from filling a send
// buffer of megabytes, and leaves room for a farewell.
const unsentBytes = 64 << 10

// farewellBytes is the size of the send buffer that makeRoom sets: it holds the
// bytes that wait already, the rest of a frame unless that is very large, and a
// close frame.
const farewellBytes = 512 << 10

// descriptor returns conn's file descriptor. It is valid as long as conn is
// reachable and open. If conn has none, it is -1.
func descriptor(conn net.Conn) (fd int, err error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return -1, fmt.Errorf("a %T has no file descriptor", conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return -1, err
	}
	err = raw.Control(func(f uintptr) { fd = int(f) })
	return fd, err
}

// farewellKept is how long the kernel keeps a farewell for a listener that
// takes nothing, after the server has closed the connection.
const farewellKept = 30 * time.Second

// prepareSocket sets the TCP options of a listener's socket. Errors do not
// matter: another kind of socket works without them, but less well.
func prepareSocket(fd int, cfg *Config) {
	// After this time the kernel resets a connection whose peer has vanished.
	// It also resets one whose peer reads nothing, and that must not happen
	// before the farewell.
	timeout := max(2*cfg.PingInterval, cfg.WriteTimeout+closeGrace+farewellKept)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(timeout.Milliseconds()))
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentBytes)
}

// makeRoom enlarges the send buffer of a socket whose buffer is full, so that
// it takes a farewell, which the peer finds when it reads again.
func makeRoom(fd int) {
	if size, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF); err == nil && size < 2*farewellBytes {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, farewellBytes) // the kernel doubles it
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, 0) // the system's default: no limit
}
