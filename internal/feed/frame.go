package feed

import (
	"encoding/binary"
	"strings"
)

// An Opcode is the kind of a websocket frame (RFC 6455, section 5.2).
type Opcode byte

// The kinds of frames that a server sends.
const (
	OpText  Opcode = 0x1
	OpClose Opcode = 0x8
	OpPing  Opcode = 0x9
	OpPong  Opcode = 0xA
)

// AppendFrame appends to dst a whole, final frame as a server sends it. Such a
// frame is not masked, so it is the same for every listener.
func AppendFrame(dst []byte, op Opcode, payload []byte) []byte {
	const final = 0x80
	dst = append(dst, final|byte(op))
	switch n := len(payload); {
	case n < 126:
		dst = append(dst, byte(n))
	case n < 1<<16:
		dst = binary.BigEndian.AppendUint16(append(dst, 126), uint16(n))
	default:
		dst = binary.BigEndian.AppendUint64(append(dst, 127), uint64(n))
	}
	return append(dst, payload...)
}

// maxReason is how many bytes the reason in a close frame may have: the 125 of
// a control frame less two for the status.
const maxReason = 123

// AppendClose appends a close frame with a status code (RFC 6455, section
// 7.4) and a reason, which is cut if it is too long.
func AppendClose(dst []byte, code uint16, reason string) []byte {
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "") // drops a cut character
	}
	return AppendFrame(dst, OpClose, append(binary.BigEndian.AppendUint16(nil, code), reason...))
}

// payload returns the payload of a frame that AppendFrame has made.
func payload(frame []byte) []byte {
	switch frame[1] {
	case 126:
		return frame[4:]
	case 127:
		return frame[10:]
	}
	return frame[2:]
}
