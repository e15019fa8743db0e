package socket

import (
	"bytes"
	"encoding/binary"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/wire"
)

// An inbound parses what a listener sends (RFC 6455, section 5), in pieces of
// any size. It checks everything, but keeps only the payload of the current
// control frame, since revq ignores messages. The zero value is ready for the
// first frame.
type inbound struct {
	header  []byte // received bytes of the current frame's header
	control []byte // received payload of a control frame, unmasked
	read    uint64 // bytes of payload so far
	left    uint64 // bytes of payload still to come, once the header is complete
	inFrame bool   // the header is complete

	// The message whose first fragment has begun and whose last fragment has
	// not ended.
	inMessage bool
	isText    bool
	size      uint64    // of its fragments, including the current one
	text      utf8Check // checks the text so far
}

// Opcodes of messages (RFC 6455, section 5.2). Control frames have bit 3 set.
const (
	opContinuation = 0x0
	opText         = 0x1
	opBinary       = 0x2
)

var (
	errExtension    = &farewell{wire.CloseProtocolError, "a frame uses an extension that was not agreed on"}
	errOpcode       = &farewell{wire.CloseProtocolError, "a frame has an unknown opcode"}
	errUnmasked     = &farewell{wire.CloseProtocolError, "a frame is not masked"}
	errControl      = &farewell{wire.CloseProtocolError, "a control frame is fragmented or too long"}
	errNotMinimal   = &farewell{wire.CloseProtocolError, "a frame's length is not in its shortest form"}
	errLengthSign   = &farewell{wire.CloseProtocolError, "a frame's length has the most significant bit set"}
	errNoMessage    = &farewell{wire.CloseProtocolError, "a continuation frame belongs to no message"}
	errInterleaved  = &farewell{wire.CloseProtocolError, "a message begins before the last fragment of another"}
	errCloseCode    = &farewell{wire.CloseProtocolError, "a close frame has a status that must not be sent"}
	errNotUTF8      = &farewell{wire.CloseInvalidData, "a text is not UTF-8"}
	errMessageLarge = &farewell{wire.CloseTooBig, "listeners are not expected to send that much"}
)

// idle reports whether the next byte begins a new message, so that no state
// needs to be kept.
func (in *inbound) idle() bool { return len(in.header) == 0 && !in.inMessage }

// clone returns a copy that shares no memory with in.
func (in *inbound) clone() *inbound {
	c := *in
	c.header, c.control = bytes.Clone(in.header), bytes.Clone(in.control)
	return &c
}

// take parses b and calls onControl for each control frame that ends in it. The
// payload is valid only during the call. A message may have at most maxMessage
// bytes in all its fragments. take returns a violation of the protocol, or nil.
// After a violation, in must not be used any more.
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
			if v := in.parsePayload(b[:n]); v != nil {
				return v
			}
			b = b[n:]
		}
		if in.inFrame && in.left == 0 {
			if v := in.endFrame(onControl); v != nil {
				return v
			}
		}
	}
	return nil
}

// parseHeader checks the received part of the header, and begins the payload
// when the header is complete.
func (in *inbound) parseHeader(maxMessage int) *farewell {
	const (
		reserved, masked = 0x70, 0x80
		maskBytes        = 4
	)
	h := in.header
	if len(h) < 2 {
		return nil
	}
	size := 2 // of the header without the mask
	switch h[1] &^ masked {
	case 126:
		size += 2
	case 127:
		size += 8
	}
	op := h[0] & 0xf
	switch {
	case h[0]&reserved != 0:
		return errExtension
	case op > opBinary && !in.isControl() || op > byte(feed.OpPong):
		return errOpcode
	case h[1]&masked == 0:
		return errUnmasked
	case in.isControl() && (!in.isFinal() || size > 2):
		return errControl
	case op == opContinuation && !in.inMessage:
		return errNoMessage
	case (op == opText || op == opBinary) && in.inMessage:
		return errInterleaved
	case len(h) < size:
		return nil
	}
	length, v := parseLength(h[1:size])
	if v != nil {
		return v
	}
	if !in.isControl() && in.size+length > uint64(maxMessage) {
		return errMessageLarge
	}
	if len(h) < size+maskBytes {
		return nil
	}
	in.inFrame, in.read, in.left = true, 0, length
	if !in.isControl() {
		if op != opContinuation {
			in.inMessage, in.isText = true, op == opText
		}
		in.size += length
	}
	return nil
}

// parseLength parses the part of a header that has the length of the payload.
func parseLength(b []byte) (length uint64, v *farewell) {
	switch len(b) {
	case 3:
		if length = uint64(binary.BigEndian.Uint16(b[1:])); length < 126 {
			return 0, errNotMinimal
		}
	case 9:
		length = binary.BigEndian.Uint64(b[1:])
		if length >= 1<<63 {
			return 0, errLengthSign
		}
		if length < 1<<16 {
			return 0, errNotMinimal
		}
	default:
		length = uint64(b[0] & 0x7f)
	}
	return length, nil
}

func (in *inbound) isControl() bool { return in.header[0]&0x08 != 0 }
func (in *inbound) isFinal() bool   { return in.header[0]&0x80 != 0 }

// parsePayload parses the next bytes of the payload, which are masked.
func (in *inbound) parsePayload(b []byte) *farewell {
	mask := in.header[len(in.header)-4:]
	isControl := in.isControl()
	if isControl || in.isText {
		for i, c := range b {
			c ^= mask[(in.read+uint64(i))%4]
			if isControl {
				in.control = append(in.control, c)
			} else if !in.text.next(c) {
				return errNotUTF8
			}
		}
	}
	in.read += uint64(len(b))
	in.left -= uint64(len(b))
	return nil
}

// endFrame is called after the last byte of a frame.
func (in *inbound) endFrame(onControl func(feed.Opcode, []byte)) *farewell {
	if in.isControl() {
		op := feed.Opcode(in.header[0] & 0xf)
		if op == feed.OpClose {
			if v := checkClose(in.control); v != nil {
				return v
			}
		}
		onControl(op, in.control)
	} else if in.isFinal() {
		if in.isText && !in.text.complete() {
			return errNotUTF8
		}
		in.inMessage, in.isText, in.size = false, false, 0
	}
	in.header, in.control, in.inFrame = in.header[:0], in.control[:0], false
	return nil
}

// checkClose checks the payload of a close frame (RFC 6455, sections 5.5.1 and
// 7.4). Without a payload there is no status.
func checkClose(payload []byte) *farewell {
	if len(payload) == 0 {
		return nil
	}
	if len(payload) < 2 || !mayBeSent(binary.BigEndian.Uint16(payload)) {
		return errCloseCode
	}
	var reason utf8Check
	for _, c := range payload[2:] {
		if !reason.next(c) {
			return errNotUTF8
		}
	}
	if !reason.complete() {
		return errNotUTF8
	}
	return nil
}

// mayBeSent reports whether a close frame may have the status. It may have one
// that the protocol or its IANA registry defines, except those that stand for a
// missing close frame, and one of the ranges for libraries and applications.
func mayBeSent(status uint16) bool {
	switch status {
	case 1004, 1005, 1006:
		return false
	}
	return status >= 1000 && status <= 1014 || status >= 3000 && status <= 4999
}

// A utf8Check checks a text that comes byte by byte. The zero value is at the
// beginning of a text.
type utf8Check struct {
	missing   byte // bytes of a character that has begun
	low, high byte // the range of the first of them
}

// next reports whether the text can be UTF-8 with c as its next byte. The
// ranges are those of the Unicode Standard, table 3-7: no surrogates, nothing
// above U+10FFFF, no form that is longer than necessary.
func (u *utf8Check) next(c byte) bool {
	const low, high = 0x80, 0xBF
	switch {
	case u.missing > 0:
		if c < u.low || c > u.high {
			return false
		}
		*u = utf8Check{u.missing - 1, low, high}
	case c < 0x80:
	case c < 0xC2:
		return false
	case c < 0xE0:
		*u = utf8Check{1, low, high}
	case c == 0xE0:
		*u = utf8Check{2, 0xA0, high}
	case c == 0xED:
		*u = utf8Check{2, low, 0x9F}
	case c < 0xF0:
		*u = utf8Check{2, low, high}
	case c == 0xF0:
		*u = utf8Check{3, 0x90, high}
	case c < 0xF4:
		*u = utf8Check{3, low, high}
	case c == 0xF4:
		*u = utf8Check{3, low, 0x8F}
	default:
		return false
	}
	return true
}

// complete reports whether the text so far ends with a whole character.
func (u *utf8Check) complete() bool { return u.missing == 0 }
