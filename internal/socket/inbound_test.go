package socket

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/wire"
)

// final is the bit of a frame that ends a message.
const final = 0x80

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

// closeFrame returns a close frame as a client sends it.
func closeFrame(status uint16, reason string) []byte {
	return clientFrame(final|byte(feed.OpClose), string(binary.BigEndian.AppendUint16(nil, status))+reason, -1)
}

// fragments returns a message in several frames.
func fragments(op byte, parts ...string) (b []byte) {
	for i, part := range parts {
		first := byte(opContinuation)
		if i == 0 {
			first = op
		}
		if i == len(parts)-1 {
			first |= final
		}
		b = append(b, clientFrame(first, part, -1)...)
	}
	return b
}

// An inboundCase is what a listener may send, and what is made of it: the
// control frames that are taken, and the status of the violation that ends it.
type inboundCase struct {
	name  string
	bytes []byte
	want  []string
	code  uint16
}

// inboundCases are those of the public conformance suite, and more.
func inboundCases() []inboundCase {
	const text, binary, ping, pong, end = opText, opBinary, byte(feed.OpPing), byte(feed.OpPong), byte(feed.OpClose)
	long := strings.Repeat("x", 1000)
	part := strings.Repeat("x", 4000)
	whole := func(op byte, payload string) []byte { return clientFrame(final|op, payload, -1) }
	then := func(frames ...[]byte) []byte { return slices.Concat(frames...) }
	lastPing, pinged := whole(ping, "!"), []string{"9 !"} // after a message: shows that it was accepted
	cases := []inboundCase{
		// Lengths.
		{"messages are skipped", then(whole(text, long), whole(binary, ""), whole(pong, "x")), []string{"10 x"}, 0},
		{"the longest message", clientFrame(final|text, "", 4096), nil, 0},
		{"a message too long", clientFrame(final|text, "", 4097), nil, wire.CloseTooBig},
		{"a message far too long", clientFrame(final|text, "", 1<<40), nil, wire.CloseTooBig},
		{"fragments too long in sum", fragments(binary, part, part, part, part, part), nil, wire.CloseTooBig},
		{"a last fragment too long in sum", fragments(text, part, long), nil, wire.CloseTooBig},
		{"fragments as long as a message", then(fragments(text, part, long[:96]), lastPing), pinged, 0},
		{"messages that are short each", then(whole(text, part), whole(text, part), fragments(text, part, "x"), lastPing), pinged, 0},
		{"16 bits for 125", []byte{final | text, 0x80 | 126, 0, 125, 0, 0, 0, 0}, nil, wire.CloseProtocolError},
		{"16 bits for 0", []byte{final | binary, 0x80 | 126, 0, 0, 0, 0, 0, 0}, nil, wire.CloseProtocolError},
		{"64 bits for 65535", []byte{final | binary, 0x80 | 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0}, nil, wire.CloseProtocolError},
		{"64 bits for 5", []byte{final | binary, 0x80 | 127, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0}, nil, wire.CloseProtocolError},
		{"64 bits with the top one set", []byte{final | binary, 0x80 | 127, 0x80, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0}, nil, wire.CloseProtocolError},
		{"not masked", []byte{final | text, 1, 'a'}, nil, wire.CloseProtocolError},
		{"empty and not masked", []byte{final | text, 0}, nil, wire.CloseProtocolError},

		// Pings and pongs.
		{"a fragmented ping", clientFrame(ping, "a", -1), nil, wire.CloseProtocolError},
		{"a fragmented pong", clientFrame(pong, "a", -1), nil, wire.CloseProtocolError},
		{"a fragmented close", clientFrame(end, "", -1), nil, wire.CloseProtocolError},

		// Fragments.
		{"a ping between fragments", then(clientFrame(text, "a", -1), whole(ping, "p"), clientFrame(final, "b", -1)), []string{"9 p"}, 0},
		{"a continuation after a message", then(whole(text, "a"), clientFrame(final, "b", -1)), nil, wire.CloseProtocolError},
		{"a fragment of another message", then(clientFrame(binary, "a", -1), clientFrame(binary, "b", -1)), nil, wire.CloseProtocolError},
		{"a message within one, after a ping", then(clientFrame(text, "a", -1), whole(ping, "p"), whole(binary, "b")), []string{"9 p"}, wire.CloseProtocolError},

		// Close frames.
		{"a reason that is not UTF-8", closeFrame(1000, "\xce\xba\xed\xa0\x80"), nil, wire.CloseInvalidData},
		{"a reason cut within a character", closeFrame(3000, "\xe2\x82"), nil, wire.CloseInvalidData},
		{"a close between fragments", then(clientFrame(text, "a", -1), closeFrame(1001, "")), []string{"8 \x03\xe9"}, 0},

		// Texts.
		{"a text", then(whole(text, "κόσμε 𝄞 \U0010ffff"), lastPing), pinged, 0},
		{"a character in two fragments", then(fragments(text, "\xf0\x9d", "\x84\x9e"), lastPing), pinged, 0},
		{"a character in four fragments", then(fragments(text, "\xf0", "\x9d", "", "\x84", "\x9e"), lastPing), pinged, 0},
		{"a character around a ping", then(clientFrame(text, "\xe2\x82", -1), whole(ping, "p"), clientFrame(final, "\xac", -1)), []string{"9 p"}, 0},
		{"a text that ends within a character", whole(text, "a\xe2\x82"), nil, wire.CloseInvalidData},
		{"fragments that end within a character", fragments(text, "a\xe2", "\x82"), nil, wire.CloseInvalidData},
		{"what is certain in the first fragment", clientFrame(text, "a\xed\xa0", -1), nil, wire.CloseInvalidData},
		{"what is certain in the middle of a frame", clientFrame(final|text, "a\xf4\x90", 1000)[:11], nil, wire.CloseInvalidData},
		{"a text after one that is valid", then(whole(text, "é"), whole(text, "\x80")), nil, wire.CloseInvalidData},
		{"binary need not be UTF-8", then(whole(binary, "\xff\xfe"), lastPing), pinged, 0},
		{"a binary message after a text", then(fragments(text, "a", "b"), whole(binary, "\xff"), lastPing), pinged, 0},
	}
	for _, bit := range []byte{0x40, 0x20, 0x10, 0x70} {
		for _, op := range []byte{text, ping, end} {
			cases = append(cases, inboundCase{fmt.Sprintf("reserved bits %#x with opcode %d", bit, op), whole(bit|op, ""), nil, wire.CloseProtocolError})
		}
	}
	for _, op := range []byte{3, 4, 5, 6, 7, 0xB, 0xC, 0xD, 0xE, 0xF} {
		cases = append(cases, inboundCase{fmt.Sprintf("opcode %d", op), then(lastPing, whole(op, "")), pinged, wire.CloseProtocolError})
	}
	for _, status := range []uint16{1, 1015} {
		cases = append(cases, inboundCase{fmt.Sprintf("a close with %d", status), closeFrame(status, ""), nil, wire.CloseProtocolError})
	}
	for _, status := range []uint16{1012, 1013, 1014} {
		cases = append(cases, inboundCase{fmt.Sprintf("a close with %d", status), closeFrame(status, ""), []string{"8 " + string(binary16(status))}, 0})
	}
	return append(cases, suiteCases()...)
}

func binary16(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }

func TestInbound(t *testing.T) {
	for _, tc := range inboundCases() {
		for _, piece := range []int{len(tc.bytes), 1, 3} {
			t.Run(fmt.Sprintf("%s/%d", tc.name, piece), func(t *testing.T) {
				got, wrong := takeAll(tc.bytes, piece)
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
}

// The same at a server, without TLS and with it: what is wrong is answered with
// its status, and then the connection ends.
func TestListenersThatBreakTheProtocolAreClosed(t *testing.T) {
	_, b, site := setupTLS(t, DefaultConfig(), feed.DefaultConfig())
	sites := []struct {
		name    string
		connect func(*testing.T) (io.Writer, *bufio.Reader)
	}{
		{"plain", func(t *testing.T) (io.Writer, *bufio.Reader) { return b.raw(t) }},
		{"TLS", func(t *testing.T) (io.Writer, *bufio.Reader) { return site.raw(t) }},
	}
	for _, at := range sites {
		for _, tc := range inboundCases() {
			for _, chopped := range []bool{false, true} {
				if chopped && len(tc.bytes) > 500 {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/%t", at.name, tc.name, chopped), func(t *testing.T) {
					c, r := at.connect(t)
					tc.check(t, c, r, chopped)
				})
			}
		}
	}
}

// check sends what a listener may send, at once or byte by byte, and checks the
// answers.
func (tc inboundCase) check(t *testing.T, c io.Writer, r *bufio.Reader, chopped bool) {
	piece := max(len(tc.bytes), 1)
	if chopped {
		piece = 1
	}
	want, bytes := tc.want, tc.bytes
	if len(want) > 0 && strings.HasPrefix(want[len(want)-1], "10 ") {
		want, bytes = append(slices.Clone(want), "9 last"), append(slices.Clone(bytes), clientFrame(final|byte(feed.OpPing), "last", -1)...)
	}
	for part := range slices.Chunk(bytes, piece) {
		c.Write(part) // an error shows below
	}
	closed := false
	for _, frame := range want {
		kind, want, _ := strings.Cut(frame, " ")
		answer := feed.OpPong
		switch kind {
		case "8":
			answer, closed = feed.OpClose, true
		case "10": // which is not answered; the ping at the end is, if it was taken
			continue
		}
		if op, payload := readFrame(t, r); op != byte(answer) || string(payload) != want {
			t.Errorf("answer is %d %q, want %d %q", op, payload, answer, want)
		}
		if closed {
			break
		}
	}
	if tc.code != 0 {
		op, payload := readFrame(t, r)
		if op != byte(feed.OpClose) || len(payload) < 3 || binary.BigEndian.Uint16(payload) != tc.code || !utf8.Valid(payload[2:]) {
			t.Errorf("answer is %d %q, want a close frame with %d", op, payload, tc.code)
		}
		closed = true
	}
	if closed {
		if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
			t.Errorf("after the close frame came %q, %v; want the end", rest, err)
		}
	}
}

// A listener that sends too much is told why before its connection ends, however
// fast it sends. What it sends after that is bounded, too.
func TestAFloodIsToldWhyItEnds(t *testing.T) {
	cfg := DefaultConfig()
	l := &listener{dialect: websocketDialect{}, counts: newCounts(feed.New(feed.DefaultConfig()))}
	var parser inbound
	send := func() (gone bool) { return l.receive(make([]byte, maxHeard), &cfg, &parser) }
	l.receive(clientFrame(final|byte(feed.OpText), "", 1<<30), &cfg, &parser)
	for range 8 {
		if send() {
			t.Fatal("it is gone before the farewell was written")
		}
	}
	if b, fromLog, err := l.next(); err != nil || len(b) == 0 || !l.wrote(b, len(b), fromLog, time.Now()) {
		t.Fatalf("next = %q, %v; want the farewell, and nothing after it", b, err)
	}
	for n := 1; !send(); n++ {
		if n > 4 {
			t.Fatal("it may go on for ever")
		}
	}
	l.phase = blocked // it does not read
	for n := 1; !send(); n++ {
		if n > maxFlood/maxHeard {
			t.Fatal("it may go on for ever without reading")
		}
	}
}

// Between messages a listener costs nothing but its place: what was parsed of a
// message is forgotten when it ends.
func TestNothingIsKeptBetweenMessages(t *testing.T) {
	var parser inbound
	l := &listener{dialect: websocketDialect{}}
	for _, tc := range inboundCases() {
		if tc.code != 0 || l.leaving {
			continue
		}
		for _, c := range tc.bytes {
			l.receive([]byte{c}, &Config{MaxMessage: 4096}, &parser)
			l.control = nil // as if it was sent
			l.heard = 0
		}
		if !l.leaving && l.in != nil && !l.in.idle() && !strings.Contains(tc.name, "longest message") {
			t.Errorf("%s: %+v is kept", tc.name, *l.in)
		}
		if parser.header != nil || parser.control != nil || parser.inMessage {
			t.Errorf("%s: %+v is in the parser that all use", tc.name, parser)
		}
		*l = listener{dialect: websocketDialect{}}
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

// takeWhole is what takeAll has to come to, by way of whole frames and whole
// texts, and of the library's own idea of UTF-8.
func takeWhole(b []byte) (controls []string, code uint16) {
	var text []byte
	var size uint64
	inMessage, isText := false, false
	for len(b) >= 2 {
		op, isFinal := b[0]&0xf, b[0]&final != 0
		length, head := uint64(b[1]&0x7f), 2
		isControl := op >= 8
		switch {
		case b[0]&0x70 != 0, op > 2 && op < 8, op > 10, b[1]&0x80 == 0, isControl && (!isFinal || length > 125),
			!isControl && inMessage != (op == 0):
			return controls, wire.CloseProtocolError
		}
		if bytes := map[uint64]int{126: 2, 127: 8}[length]; bytes > 0 {
			if head += bytes; len(b) < head {
				return controls, 0
			}
			short := length
			if short == 126 {
				length = uint64(binary.BigEndian.Uint16(b[2:]))
			} else {
				length = binary.BigEndian.Uint64(b[2:])
			}
			if short == 126 && length < 126 || short == 127 && (length < 1<<16 || length>>63 == 1) {
				return controls, wire.CloseProtocolError
			}
		}
		if !isControl && size+length > 4096 {
			return controls, wire.CloseTooBig
		}
		if head += 4; len(b) < head {
			return controls, 0
		}
		mask, payload := b[head-4:head], slices.Clone(b[head:min(uint64(len(b)), uint64(head)+length)])
		for i := range payload {
			payload[i] ^= mask[i%4]
		}
		ended := uint64(len(payload)) == length
		b = b[head+len(payload):]
		switch {
		case isControl && !ended:
			return controls, 0
		case op == byte(feed.OpClose) && len(payload) > 0:
			if len(payload) == 1 || !mayBeSent(binary.BigEndian.Uint16(payload)) {
				return controls, wire.CloseProtocolError
			}
			if !utf8.Valid(payload[2:]) {
				return controls, wire.CloseInvalidData
			}
			fallthrough
		case isControl:
			controls = append(controls, fmt.Sprintf("%d %s", op, payload))
			continue
		}
		if op != opContinuation {
			isText = op == opText
		}
		inMessage, size = true, size+length
		if text = append(text, payload...); !isText {
			text = nil
		}
		for len(text) > 0 && utf8.FullRune(text) {
			r, n := utf8.DecodeRune(text)
			if r == utf8.RuneError && n == 1 {
				return controls, wire.CloseInvalidData
			}
			text = text[n:]
		}
		switch {
		case !ended:
			return controls, 0
		case isFinal && len(text) > 0:
			return controls, wire.CloseInvalidData
		case isFinal:
			inMessage, size = false, 0
		}
	}
	return controls, 0
}

func FuzzInbound(f *testing.F) {
	for i, tc := range inboundCases() {
		f.Add(tc.bytes, i%5)
	}
	f.Add(slices.Concat(clientFrame(0x81, "hello", -1), clientFrame(0x89, "ping", -1), clientFrame(0x88, "\x03\xe8bye", -1)), 3)
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
		var code uint16
		if wrong != nil {
			code = wrong.code
		}
		if controls, want := takeWhole(b); code != want || !slices.Equal(whole, controls) {
			t.Fatalf("control frames %q and status %d, want %q and %d", whole, code, controls, want)
		}
	})
}
