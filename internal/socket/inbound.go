package socket

import (
	"bytes"
	"encoding/binary"

	"github.com/revq/revq/internal/feed"
)

// An inbound takes apart what a listener sends (RFC 6455, section 5.2), in
// whatever pieces it comes. Only control frames matter; messages are skipped.
// The zero value is ready for the first frame.
type inbound struct {
	header  []byte // of the frame that has begun, as far as it has come
	left    uint64 // bytes of payload still to come, once the header is whole
	inFrame bool   // the header is whole
	control []byte // payload of a control frame so far, unmasked
}

// idle reports whether the next byte begins a new frame, so that nothing need
// be kept.
func (in *inbound) idle() bool { return len(in.header) == 0 }

// clone returns a copy that shares nothing with in.
func (in *inbound) clone() *inbound {
	c := *in
	c.header, c.control = bytes.Clone(in.header), bytes.Clone(in.control)
	return &c
}

// take goes through b and calls onControl for each control frame that ends in
// it. The payload is valid during the call. maxMessage is the most bytes that
// the payload of a message's frame may have.
func (in *inbound) take(b []byte, maxMessage int, onControl func(feed.Opcode, []byte)) *farewell {
	for len(b) > 0 {
		if !in.inFrame {
			in.header = append(in.header, b[0])
			b = b[1:]
			if v := in.parseHeader(maxMessage); v != nil {
				return v
			}
		} else {
			n := int(min(in.left, uint64(len(b))))
			if in.isControl() {
				in.addControl(b[:n])
			}
			in.left -= uint64(n)
			b = b[n:]
		}
		if in.inFrame && in.left == 0 {
			if in.isControl() {
				onControl(feed.Opcode(in.header[0]&0xf), in.control)
			}
			*in = inbound{header: in.header[:0], control: in.control[:0]}
		}
	}
	return nil
}

// parseHeader looks at what has come of the header, and begins the payload
// when it is whole.
func (in *inbound) parseHeader(maxMessage int) *farewell {
	h := in.header
	if len(h) < 2 {
		return nil
	}
	length, size := uint64(h[1]&0x7f), 2
	switch length {
	case 126:
		if size += 2; len(h) >= size {
			length = uint64(binary.BigEndian.Uint16(h[2:]))
		}
	case 127:
		if size += 8; len(h) >= size {
			length = binary.BigEndian.Uint64(h[2:])
		}
	}
	final, op := h[0]&0x80 != 0, h[0]&0xf
	switch {
	case h[0]&0x70 != 0:
		return &farewell{closeProtocolError, "a frame uses an extension that was not agreed on"}
	case op > 2 && op < 8 || op > 0xA:
		return &farewell{closeProtocolError, "a frame has an unknown opcode"}
	case h[1]&0x80 == 0:
		return &farewell{closeProtocolError, "a frame is not masked"}
	case op >= 8 && (!final || size > 2):
		return &farewell{closeProtocolError, "a control frame is fragmented or too long"}
	case len(h) >= size && op < 8 && length > uint64(maxMessage):
		return &farewell{closeTooBig, "listeners are not expected to send that much"}
	}
	const mask = 4 // bytes, behind the length
	if len(h) == size+mask {
		in.inFrame, in.left = true, length
	}
	return nil
}

func (in *inbound) isControl() bool { return in.header[0]&0x8 != 0 }

func (in *inbound) addControl(b []byte) {
	mask := in.header[len(in.header)-4:]
	for _, c := range b {
		in.control = append(in.control, c^mask[len(in.control)%4])
	}
}
