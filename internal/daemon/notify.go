package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A manager sends messages to the service manager, if there is one. It never
// waits: the socket holds about ten messages, and a service manager that does
// not read them must not block the daemon.
type manager struct {
	path   string // of its socket; empty without a service manager
	failed bool   // the last message could not be sent
}

func newManager() *manager { return &manager{path: os.Getenv("NOTIFY_SOCKET")} }

// send sends a message. It reports false if it could not, and logs the first of
// several failures. Without a service manager it reports true.
func (m *manager) send(message string, log *slog.Logger) bool {
	if m.path == "" {
		return true
	}
	err := m.try(message)
	if err != nil && !m.failed {
		log.Warn("the service manager does not take messages: sending the newest ones as soon as it does", "error", err)
	}
	m.failed = err != nil
	return err == nil
}

// lastMessage is how long the daemon waits, before it ends, for the service
// manager to take its last message.
const lastMessage = 200 * time.Millisecond

// sendLast sends the daemon's last message, and waits for at most lastMessage.
func (m *manager) sendLast(message string) error {
	if m.path == "" {
		return nil
	}
	conn, err := m.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetWriteDeadline(time.Now().Add(lastMessage)); err != nil {
		return err
	}
	_, err = conn.Write([]byte(message))
	return err
}

// dial opens a socket for one message. It does not wait.
func (m *manager) dial() (*net.UnixConn, error) {
	return net.DialUnix("unixgram", nil, &net.UnixAddr{Name: m.path, Net: "unixgram"})
}

// try sends a message, unless the service manager's queue is full.
func (m *manager) try(message string) error {
	conn, err := m.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	// conn.Write would wait for room, and with a deadline of now it would not
	// even try.
	if err := raw.Write(func(fd uintptr) bool {
		sent = unix.Send(int(fd), []byte(message), 0)
		return true
	}); err != nil {
		return err
	}
	if errors.Is(sent, unix.EAGAIN) || errors.Is(sent, unix.ENOBUFS) {
		return fmt.Errorf("it does not read them: %w", sent)
	}
	return sent
}
