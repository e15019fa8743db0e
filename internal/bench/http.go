package bench

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// A poster is a kept-alive HTTP connection on a loop, with one request under way at a time.
type poster struct {
	loop *loop
	addr *net.TCPAddr
	fd   int

	// answered is called with each answer; body is valid during the call. It may call post.
	answered func(p *poster, status int, body []byte) error

	// lost is called when the connection broke, with or without a request under way. The poster is then being
	// connected again.
	lost func(p *poster, busy bool) error

	// connected is called when a request can be posted for the first time, and after lost.
	connected func(p *poster) error

	up      bool
	busy    bool
	due     time.Time // of the request under way: for the user of the poster
	request []byte    // likewise
	number  []byte    // likewise: a part of request
	unsent  []byte
	partial []byte // an answer that has not come as a whole
}

// errNoLength means that an answer does not say how long it is.
var errNoLength = errors.New("the server's answer has no Content-Length: it does not answer as revq's API does")

// maxAnswer bounds an answer, in bytes: that to a batch of 10,000 lines is some 600 KiB.
const maxAnswer = 16 << 20

// connect begins to connect; connected is called when that is done.
func (p *poster) connect() (err error) {
	p.up, p.busy, p.unsent, p.partial = false, false, nil, nil
	if p.fd, err = dial(p.addr, nil); err != nil {
		return err
	}
	return p.loop.add(p.fd, unix.EPOLLOUT, p)
}

// post sends a request, which is not changed until the answer is there. The poster must be connected and not busy.
func (p *poster) post(request []byte) error {
	p.busy, p.unsent = true, request
	return p.write()
}

func (p *poster) write() error {
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
		return nil // in one go, as nearly always
	}
	return p.loop.watch(p.fd, events)
}

func (p *poster) ready(events uint32) error {
	if !p.up {
		if err := failure(p.fd); err != nil {
			return fmt.Errorf("connect to %v: %w", p.addr, err)
		}
		p.up = true
		if err := p.loop.watch(p.fd, unix.EPOLLIN); err != nil {
			return err
		}
		return p.connected(p)
	}
	if events&unix.EPOLLOUT != 0 {
		if err := p.write(); err != nil {
			return err
		}
		if p.up && len(p.unsent) == 0 {
			if err := p.loop.watch(p.fd, unix.EPOLLIN); err != nil {
				return err
			}
		}
	}
	if !p.up || events&^unix.EPOLLOUT == 0 {
		return nil
	}
	data, err := p.loop.read(p.fd)
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
	case size == 0: // more is to come
		if len(data) > maxAnswer {
			return fmt.Errorf("the server's answer is longer than %d bytes", maxAnswer)
		}
		if len(p.partial) == 0 {
			p.partial = append(p.partial, data...)
		}
		return nil
	case !p.busy: // it is going to close a connection that was idle for too long, and says so
		return p.broken()
	case size < len(data):
		return errors.New("the server answers what was not asked")
	}
	p.busy, p.partial = false, p.partial[:0]
	return p.answered(p, status, body)
}

// broken connects again.
func (p *poster) broken() error {
	busy := p.busy
	p.loop.drop(p.fd)
	if err := p.connect(); err != nil {
		return err
	}
	return p.lost(p, busy)
}

func (p *poster) close() { p.loop.drop(p.fd) }

var (
	headEnd       = []byte("\r\n\r\n")
	contentLength = []byte("\r\ncontent-length:")
)

// parseAnswer reads an HTTP/1.1 answer at the beginning of data. size is its length with its head, 0 if it is not all
// there.
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

// indexFold is bytes.Index for a lower-case sep, whatever the case in s.
func indexFold(s, sep []byte) int {
	for i := 0; i+len(sep) <= len(s); i++ {
		if s[i] == sep[0] && bytes.EqualFold(s[i:i+len(sep)], sep) {
			return i
		}
	}
	return -1
}
