package load

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/url"

	"golang.org/x/sys/unix"

	"github.com/revq/revq/internal/feed"
)

// A Listener is a websocket on a loop. It answers pings, and otherwise only
// listens.
type Listener struct {
	Loop *Loop

	// Handshake is the request that opens the websocket, as HandshakeRequest
	// returns it. Listeners may share it.
	Handshake []byte

	// First is a text that is sent once connected; "" for none.
	First string

	// Text, if it is not nil, is called with the payload of each frame that is
	// part of a message, and Count counts nothing. The payload is valid during
	// the call.
	Text func(payload []byte) error

	// Connected is called when the handshake is done.
	Connected func() error

	// Received is called when n more marked messages have arrived; it may be
	// nil.
	Received func(l *Listener, n int)

	// Closed is called when the server has ended the connection; it is closed
	// by then.
	Closed func(err error) error

	fd     int    // -1 when it is closed
	unsent []byte // of Handshake
	joined bool   // the handshake is done
	head   []byte // of the answer to the handshake, as far as it has arrived
	frames frameReader
	count  int64
}

// Count returns how many marked messages have arrived.
func (l *Listener) Count() int64 { return l.count }

// Open reports whether the connection is not closed.
func (l *Listener) Open() bool { return l.fd >= 0 }

// HandshakeRequest returns the request that opens a websocket. Its key is
// constant: only caches would have to be told apart by a random one.
func HandshakeRequest(target *url.URL) []byte {
	path := target.RequestURI()
	return fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: revq-bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: cmV2cS1iZW5jaC1oZWxsbw==\r\n\r\n", path, target.Host)
}

// maxHead is the maximum length of an answer to the handshake, in bytes.
const maxHead = 16 << 10

// Connect begins to connect to addr, from the address source unless that is
// nil.
func (l *Listener) Connect(addr *net.TCPAddr, source net.IP) (err error) {
	if l.fd, err = dial(addr, source); err != nil {
		return err
	}
	l.unsent = l.Handshake
	l.frames = frameReader{text: l.Text, control: l.control}
	return l.Loop.add(l.fd, unix.EPOLLOUT, l)
}

func (l *Listener) ready(uint32) error {
	if len(l.unsent) > 0 {
		return l.sendHandshake()
	}
	data, err := l.Loop.read(l.fd)
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
		if l.Received != nil {
			l.Received(l, n)
		}
	}
	if errors.Is(err, ErrClosed) {
		return l.end(err)
	}
	return err
}

// sendHandshake sends what is left of the request.
func (l *Listener) sendHandshake() error {
	if err := failure(l.fd); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	n, err := unix.Write(l.fd, l.unsent)
	if err != nil && err != unix.EAGAIN {
		return fmt.Errorf("open a websocket: %w", err)
	}
	if l.unsent = l.unsent[max(n, 0):]; len(l.unsent) > 0 {
		return nil
	}
	return l.Loop.watch(l.fd, unix.EPOLLIN)
}

// join reads the answer to the handshake, and returns what follows it.
func (l *Listener) join(data []byte) ([]byte, error) {
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
	if l.First != "" {
		if err := l.send(appendMasked(nil, feed.OpText, []byte(l.First))); err != nil {
			return nil, err
		}
	}
	return rest, l.Connected()
}

func (l *Listener) control(op feed.Opcode, payload []byte) error {
	switch op {
	case feed.OpPing:
		return l.send(appendMasked(nil, feed.OpPong, payload))
	case feed.OpClose:
		return closedError(payload)
	}
	return nil
}

// send sends a frame, which must fit into the empty buffer of a socket.
func (l *Listener) send(frame []byte) error {
	if n, err := unix.Write(l.fd, frame); err != nil || n < len(frame) {
		return fmt.Errorf("%w, or does not read", ErrClosed)
	}
	return nil
}

// end closes the connection, which the server has ended.
func (l *Listener) end(err error) error {
	l.Close()
	return l.Closed(err)
}

// Close closes the connection, if it is not closed yet.
func (l *Listener) Close() {
	if l.fd >= 0 {
		l.Loop.drop(l.fd)
		l.fd = -1
	}
}
