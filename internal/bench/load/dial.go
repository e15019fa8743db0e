package load

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// dial begins to connect to addr, from the address source if that is not nil.
// The socket becomes writable when the connection is established or has failed;
// failure tells which.
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
		// Without this option, bind would choose a port that is unique for
		// the source address; connect chooses one that is unique for the pair
		// of source address and server.
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte(source.To4())}); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("connect from the address %v: %w", source, err)
		}
	}
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if err := unix.Connect(fd, to); err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return -1, fmt.Errorf("connect to %v: %w", addr, err)
	}
	return fd, nil
}

// failure returns the error of a socket that could not connect or has failed,
// and nil for one that is connected.
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

// tooMany adds what to do to an error of socket(2), if it is about the limit of
// open files.
func tooMany(err error) error {
	if errors.Is(err, unix.EMFILE) {
		return fmt.Errorf("the limit of open files is reached: raise it with `ulimit -n`, or use fewer connections: %w", err)
	}
	return fmt.Errorf("create a socket: %w", err)
}
