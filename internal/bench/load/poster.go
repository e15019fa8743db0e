package load

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strconv"

	"golang.org/x/sys/unix"
)

// A Poster is a kept-alive HTTP connection on a loop, with at most one request
// in flight.
type Poster struct {
	Loop *Loop
	Addr *net.TCPAddr

	// Connected is called when a request can be posted for the first time, and
	// again after Lost.
	Connected func() error

	// Answered is called with each answer; body is valid during the call. It
	// may call Post.
	Answered func(status int, body []byte) error

	// Lost is called when the connection broke; busy tells whether a request
	// was in flight. The poster is connecting again by then.
	Lost func(busy bool) error

	fd      int // -1 when there is no connection
	up      bool
	busy    bool
	unsent  []byte
	partial []byte // an incomplete answer
}

// errNoLength means that an answer does not say how long it is.
var errNoLength = errors.New("the server's answer has no Content-Length: it does not answer as revq's API does")

// maxAnswer is the maximum length of an answer, in bytes. The answer to a batch
// of 10,000 lines has some 600 KiB.
const maxAnswer = 16 << 20

// Connect begins to connect.
func (p *Poster) Connect() (err error) {
	p.up, p.busy, p.unsent, p.partial = false, false, nil, nil
	if p.fd, err = dial(p.Addr, nil); err != nil {
		return err
	}
	return p.Loop.add(p.fd, unix.EPOLLOUT, p)
}

// Post sends a request, which must not change until it is answered. The poster
// must be connected and have no request in flight.
func (p *Poster) Post(request []byte) error {
	p.busy, p.unsent = true, request
	return p.write()
}

func (p *Poster) write() error {
	waiting := len(p.unsent)
	n, err := unix.Write(p.fd, p.unsent)
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
	case err != nil:
		return p.broken()
	default:
		p.unsent = p.unsent[n:]
	}
	events := uint32(unix.EPOLLIN)
	if len(p.unsent) > 0 {
		events |= unix.EPOLLOUT
	} else if n == waiting {
		return nil // one write took all, as nearly always
	}
	return p.Loop.watch(p.fd, events)
}

func (p *Poster) ready(events uint32) error {
	if !p.up {
		if err := failure(p.fd); err != nil {
			return fmt.Errorf("connect to %v: %w", p.Addr, err)
		}
		p.up = true
		if err := p.Loop.watch(p.fd, unix.EPOLLIN); err != nil {
			return err
		}
		return p.Connected()
	}
	if events&unix.EPOLLOUT != 0 {
		if err := p.write(); err != nil {
			return err
		}
		if p.up && len(p.unsent) == 0 {
			if err := p.Loop.watch(p.fd, unix.EPOLLIN); err != nil {
				return err
			}
		}
	}
	if !p.up || events&^unix.EPOLLOUT == 0 {
		return nil
	}
	return p.read()
}

// read reads a part of an answer and passes the answer on when it is complete.
func (p *Poster) read() error {
	data, err := p.Loop.read(p.fd)
	if err != nil {
		return p.broken()
	}
	if len(p.partial) > 0 {
		p.partial = append(p.partial, data...)
		data = p.partial
	}
	status, body, size, err := parseAnswer(data)
	switch {
	case err != nil:
		return err
	case size == 0: // incomplete
		if len(data) > maxAnswer {
			return fmt.Errorf("the server's answer is longer than %d bytes", maxAnswer)
		}
		if len(p.partial) == 0 {
			p.partial = append(p.partial, data...)
		}
		return nil
	case !p.busy: // the server closes an idle connection, and says so first
		return p.broken()
	case size < len(data):
		return errors.New("the server sent more than one answer to a request")
	}
	p.busy, p.partial = false, p.partial[:0]
	return p.Answered(status, body)
}

// broken connects again.
func (p *Poster) broken() error {
	busy := p.busy
	p.Loop.drop(p.fd)
	if err := p.Connect(); err != nil {
		return err
	}
	return p.Lost(busy)
}

// Close closes the connection, if there is one.
func (p *Poster) Close() {
	if p.fd >= 0 {
		p.Loop.drop(p.fd)
		p.fd = -1
	}
}

var (
	headEnd       = []byte("\r\n\r\n")
	contentLength = []byte("\r\ncontent-length:")
)

// parseAnswer reads an HTTP/1.1 answer at the beginning of data. size is the
// length of the answer with its head, 0 if it is incomplete.
func parseAnswer(data []byte) (status int, body []byte, size int, err error) {
	end := bytes.Index(data, headEnd)
	if end < 0 {
		return 0, nil, 0, nil
	}
	head := data[:end]
	if len(head) < len("HTTP/1.1 200") || string(head[:7]) != "HTTP/1." {
		return 0, nil, 0, errors.New("the server does not speak HTTP")
	}
	if status, err = strconv.Atoi(string(head[9:12])); err != nil {
		return 0, nil, 0, errors.New("the server does not speak HTTP")
	}
	at := indexFold(head, contentLength)
	if at < 0 {
		return 0, nil, 0, errNoLength
	}
	value, _, _ := bytes.Cut(head[at+len(contentLength):], headEnd[:2])
	length, err := strconv.Atoi(string(bytes.TrimSpace(value)))
	if err != nil || length < 0 || length > maxAnswer {
		return 0, nil, 0, errNoLength
	}
	begin := end + len(headEnd)
	if len(data) < begin+length {
		return status, nil, 0, nil
	}
	return status, data[begin : begin+length], begin + length, nil
}

// indexFold is bytes.Index for a lower-case sep, without regard to case in s.
func indexFold(s, sep []byte) int {
	for i := 0; i+len(sep) <= len(s); i++ {
		if s[i] == sep[0] && bytes.EqualFold(s[i:i+len(sep)], sep) {
			return i
		}
	}
	return -1
}
