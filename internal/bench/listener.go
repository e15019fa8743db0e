package bench

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/url"

	"golang.org/x/sys/unix"

	"github.com/revq/revq/internal/feed"
)

// A listener is a websocket on a loop. It answers pings, and otherwise only listens.
type listener struct {
	loop *loop
	fd   int // -1 when it is closed

	handshake []byte // what is still to be sent of the request
	first     []byte // a frame to send once connected; nil for none
	joined    bool   // the server has agreed to be a websocket server
	head      []byte // of its answer, as far as it has come

	frames frameReader
	count  int64 // marked messages that have come

	// connected is called when the handshake is done.
	connected func(*listener) error

	// received is called when n more marked messages have come; it may be nil.
	received func(l *listener, n int)

	// closed is called when the server has ended the connection; it is closed then.
	closed func(l *listener, err error) error
}

// handshakeRequest is what opens a websocket. The key would keep caches from answering.
func handshakeRequest(target *url.URL) []byte {
	path := target.RequestURI()
	return fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: revq-bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: cmV2cS1iZW5jaC1oZWxsbw==\r\n\r\n", path, target.Host)
}

// maxHead bounds a server's answer to the handshake, in bytes.
const maxHead = 16 << 10

// connect begins to connect to addr, from the address source unless that is nil.
func (l *listener) connect(addr *net.TCPAddr, source net.IP) (err error) {
	if l.fd, err = dial(addr, source); err != nil {
		return err
	}
	l.frames.control = l.control
	return l.loop.add(l.fd, unix.EPOLLOUT, l)
}

func (l *listener) ready(events uint32) error {
	if len(l.handshake) > 0 {
		if err := failure(l.fd); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		n, err := unix.Write(l.fd, l.handshake)
		if err != nil && err != unix.EAGAIN {
			return fmt.Errorf("open a websocket: %w", err)
		}
		if l.handshake = l.handshake[max(n, 0):]; len(l.handshake) > 0 {
			return nil
		}
		return l.loop.watch(l.fd, unix.EPOLLIN)
	}
	data, err := l.loop.read(l.fd)
	if err != nil {
		return l.end(err)
	}
	if !l.joined {
		if data, err = l.join(data); err != nil || !l.joined {
			return err
		}
	}
	n, err := l.frames.feed(data)
	if n > 0 {
		l.count += int64(n)
		if l.received != nil {
			l.received(l, n)
		}
	}
	if errors.Is(err, errClosed) {
		return l.end(err)
	}
	return err
}

// join takes in the answer to the handshake, and returns what came behind it.
func (l *listener) join(data []byte) ([]byte, error) {
	l.head = append(l.head, data...)
	end := bytes.Index(l.head, headEnd)
	if end < 0 {
		if len(l.head) > maxHead {
			return nil, errors.New("the server's answer to the handshake is too long")
		}
		return nil, nil
	}
	line, _, _ := bytes.Cut(l.head, headEnd[:2])
	if !bytes.HasPrefix(line, []byte("HTTP/1.1 101")) {
		return nil, fmt.Errorf("the server is no websocket server: it answers %q", line)
	}
	rest := l.head[end+len(headEnd):]
	l.head, l.joined = nil, true
	if l.first != nil {
		if err := l.send(l.first); err != nil {
			return nil, err
		}
	}
	return rest, l.connected(l)
}

func (l *listener) control(op feed.Opcode, payload []byte) error {
	switch op {
	case feed.OpPing:
		return l.send(appendMasked(nil, feed.OpPong, payload))
	case feed.OpClose:
		return closedError(payload)
	}
	return nil
}

// send sends a frame, small enough to fit into the empty buffer of a socket.
func (l *listener) send(frame []byte) error {
	if n, err := unix.Write(l.fd, frame); err != nil || n < len(frame) {
		return fmt.Errorf("%w, or takes nothing", errClosed)
	}
	return nil
}

// end closes the connection, which the server has ended.
func (l *listener) end(err error) error {
	l.close()
	return l.closed(l, err)
}

func (l *listener) close() {
	if l.fd >= 0 {
		l.loop.drop(l.fd)
		l.fd = -1
	}
}
