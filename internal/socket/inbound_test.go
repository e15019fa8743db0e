package socket

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/revq/revq/internal/feed"
)

// clientFrame returns a frame as a client sends it. length, if not negative,
// is claimed instead of the payload's.
func clientFrame(first byte, payload string, length int) []byte {
	if length < 0 {
		length = len(payload)
	}
	b := []byte{first}
	switch {
	case length < 126:
		b = append(b, 0x80|byte(length))
	case length < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(length))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(length))
	}
	mask := []byte{1, 2, 3, 4}
	b = append(b, mask...)
	for i := range len(payload) {
		b = append(b, payload[i]^mask[i%4])
	}
	return b
}

func TestInbound(t *testing.T) {
	long := string(bytes.Repeat([]byte("x"), 1000))
	for _, tc := range []struct {
		name  string
		bytes []byte
		want  []string // control frames
		code  uint16   // of the violation; 0 for none
	}{
		{"ping", clientFrame(0x89, "hi", -1), []string{"9 hi"}, 0},
		{"empty ping", clientFrame(0x89, "", -1), []string{"9 "}, 0},
		{"close with status", clientFrame(0x88, "\x03\xe8", -1), []string{"8 \x03\xe8"}, 0},
		{"messages are skipped", slices.Concat(clientFrame(0x81, long, -1), clientFrame(0x82, "", -1), clientFrame(0x8A, "x", -1)), []string{"10 x"}, 0},
		{"ping within a fragmented message", slices.Concat(clientFrame(0x01, "a", -1), clientFrame(0x89, "p", -1), clientFrame(0x80, "b", -1)), []string{"9 p"}, 0},
		{"longest message", clientFrame(0x81, "", 4096), nil, 0},
		{"message too long", clientFrame(0x81, "", 4097), nil, closeTooBig},
		{"message far too long", clientFrame(0x81, "", 1<<40), nil, closeTooBig},
		{"not masked", []byte{0x81, 0x01, 'a'}, nil, closeProtocolError},
		{"reserved bit", clientFrame(0xC1, "a", -1), nil, closeProtocolError},
		{"unknown opcode", clientFrame(0x83, "a", -1), nil, closeProtocolError},
		{"unknown control opcode", clientFrame(0x8B, "a", -1), nil, closeProtocolError},
		{"fragmented ping", clientFrame(0x09, "a", -1), nil, closeProtocolError},
		{"long ping", clientFrame(0x89, "", 126), nil, closeProtocolError},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, wrong := takeAll(tc.bytes, len(tc.bytes))
			var code uint16
			if wrong != nil {
				code = wrong.code
			}
			if !slices.Equal(got, tc.want) || code != tc.code {
				t.Errorf("take = %q, %v; want %q, %d", got, wrong, tc.want, tc.code)
			}
		})
	}
}

// takeAll gives b to an inbound in pieces.
func takeAll(b []byte, piece int) (controls []string, wrong *farewell) {
	var in inbound
	for part := range slices.Chunk(b, max(piece, 1)) {
		wrong = in.take(part, 4096, func(op feed.Opcode, payload []byte) {
			controls = append(controls, fmt.Sprintf("%d %s", op, payload))
		})
		if wrong != nil {
			break
		}
		if in.idle() {
			in = inbound{} // as a shard does
		} else {
			in = *in.clone()
		}
	}
	return controls, wrong
}

func FuzzInbound(f *testing.F) {
	f.Add(slices.Concat(clientFrame(0x81, "hello", -1), clientFrame(0x89, "ping", -1), clientFrame(0x88, "\x03\xe8bye", -1)), 3)
	f.Add([]byte{0x81, 0x01, 'a'}, 1)
	f.Add(clientFrame(0x82, "", 1<<20), 5)
	f.Fuzz(func(t *testing.T, b []byte, piece int) {
		whole, wrong := takeAll(b, len(b))
		parts, wrongInParts := takeAll(b, min(piece, len(b)))
		if !slices.Equal(whole, parts) {
			t.Fatalf("control frames %q at once, %q in pieces of %d", whole, parts, piece)
		}
		if (wrong == nil) != (wrongInParts == nil) || wrong != nil && *wrong != *wrongInParts {
			t.Fatalf("%v at once, %v in pieces of %d", wrong, wrongInParts, piece)
		}
		for _, c := range whole {
			if len(c) > 125+len("10 ") {
				t.Fatalf("a control frame of %d bytes was taken", len(c))
			}
		}
	})
}
