package load

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/revq/revq/internal/feed"
)

// A frameReader parses the frames that a websocket server sends (RFC 6455,
// section 5.2), in whatever pieces they arrive, and counts the marked messages
// in them. It looks at nothing else of a message. Some servers put several
// messages into a frame: each has the marker once.
type frameReader struct {
	// text, if it is not nil, is called with the payload of each frame that is
	// part of a message, and nothing is counted. The payload is valid during
	// the call.
	text func(payload []byte) error

	// control is called with the payload of each control frame, which is valid
	// during the call.
	control func(op feed.Opcode, payload []byte) error

	op      feed.Opcode // of the current frame
	left    int         // bytes of its payload that have not arrived
	partial []byte      // a part of a header, or of a payload that is needed whole
	inFrame bool
}

var (
	errMasked   = errors.New("the server masks its frames, which it must not")
	errTooLarge = errors.New("the server sends a frame that is too large")
)

// maxFrame is the maximum payload of a frame, in bytes: above the longest text
// in JSON.
const maxFrame = 100 << 20

// feed parses the next bytes and returns how many marked messages they hold.
func (r *frameReader) feed(data []byte) (marked int, err error) {
	for len(data) > 0 {
		if !r.inFrame {
			head := data
			if len(r.partial) > 0 {
				r.partial = append(r.partial, data[0])
				data, head = data[1:], r.partial
			}
			op, size, length, err := parseHeader(head)
			if err != nil {
				return marked, err
			}
			if size == 0 { // incomplete
				if len(r.partial) == 0 {
					r.partial, data = append(r.partial, head...), nil
				}
				continue
			}
			if len(r.partial) > 0 {
				r.partial = r.partial[:0]
			} else {
				data = data[size:]
			}
			r.op, r.left, r.inFrame = op, length, true
		}
		payload := data[:min(r.left, len(data))]
		data = data[len(payload):]
		r.left -= len(payload)
		r.inFrame = r.left > 0
		switch {
		case r.op < feed.OpClose && r.text == nil:
			marked += bytes.Count(payload, markerBytes)
		case r.inFrame || len(r.partial) > 0:
			r.partial = append(r.partial, payload...)
			if !r.inFrame {
				whole := r.partial
				r.partial = r.partial[:0]
				err = r.whole(whole)
			}
		default:
			err = r.whole(payload)
		}
		if err != nil {
			return marked, err
		}
	}
	return marked, nil
}

// whole passes on a payload that is complete.
func (r *frameReader) whole(payload []byte) error {
	if r.op < feed.OpClose {
		return r.text(payload)
	}
	return r.control(r.op, payload)
}

// parseHeader reads a frame's header. size is the length of the header, 0 if it
// is incomplete; length is that of the payload.
func parseHeader(data []byte) (op feed.Opcode, size, length int, err error) {
	if len(data) < 2 {
		return 0, 0, 0, nil
	}
	op, length = feed.Opcode(data[0]&0x0f), int(data[1]&0x7f)
	if data[1]&0x80 != 0 {
		return 0, 0, 0, errMasked
	}
	switch {
	case length < 126:
		return op, 2, length, nil
	case length == 126 && len(data) >= 4:
		return op, 4, int(binary.BigEndian.Uint16(data[2:])), nil
	case length == 127 && len(data) >= 10:
		if n := binary.BigEndian.Uint64(data[2:]); n <= maxFrame {
			return op, 10, int(n), nil
		}
		return 0, 0, 0, errTooLarge
	}
	return 0, 0, 0, nil
}

// appendMasked appends a frame as a client sends it. The mask is zero: masks
// protect proxies from scripts in browsers, and this is no browser.
func appendMasked(dst []byte, op feed.Opcode, payload []byte) []byte {
	const final, masked = 0x80, 0x80
	dst = append(dst, final|byte(op))
	switch n := len(payload); {
	case n < 126:
		dst = append(dst, masked|byte(n))
	default:
		dst = binary.BigEndian.AppendUint16(append(dst, masked|126), uint16(n))
	}
	return append(append(dst, 0, 0, 0, 0), payload...)
}

// closedError returns the reason for which the server closed a websocket.
func closedError(payload []byte) error {
	if len(payload) < 2 {
		return ErrClosed
	}
	return fmt.Errorf("%w: %d %s", ErrClosed, binary.BigEndian.Uint16(payload), payload[2:])
}
