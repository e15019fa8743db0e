package socket

import (
	"bufio"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/wire"
)

// The Autobahn|Testsuite is the public conformance suite for websockets. These
// are its cases by number, as far as they apply to a server that ignores
// messages: where the suite expects an echo, a ping afterwards shows that the
// message was accepted. The suite's messages beyond MaxMessage are refused.
//
// notApplicable are the groups that have no case here, and why.
var notApplicable = map[string]string{
	"12": "compression is not offered; TestNoExtensionIsAgreedOn",
	"13": "compression is not offered; TestNoExtensionIsAgreedOn",
}

// suiteSizes are the numbers of cases in the suite's groups.
var suiteSizes = map[string]int{
	"1.1": 8, "1.2": 8, "2": 11, "3": 7, "4.1": 5, "4.2": 5, "5": 20,
	"6.1": 3, "6.2": 4, "6.3": 2, "6.4": 4, "6.5": 5, "6.6": 11, "6.7": 4, "6.8": 2, "6.9": 4, "6.10": 3, "6.11": 5,
	"6.12": 8, "6.13": 5, "6.14": 10, "6.15": 1, "6.16": 3, "6.17": 5, "6.18": 5, "6.19": 5, "6.20": 7, "6.21": 8, "6.22": 34, "6.23": 7,
	"7.1": 6, "7.3": 6, "7.5": 1, "7.7": 13, "7.9": 9, "7.13": 2,
	"9.1": 6, "9.2": 6, "9.3": 9, "9.4": 9, "9.5": 6, "9.6": 6, "9.7": 6, "9.8": 6, "10.1": 1,
	"12": 0, "13": 0,
}

// Each case of the suite has its place in the table, or a reason why not.
func TestSuiteIsComplete(t *testing.T) {
	have := map[string]bool{}
	for _, tc := range suiteCases() {
		numbers, _, _ := strings.Cut(tc.name, ": ")
		for number := range strings.FieldsSeq(numbers) {
			if have[number] {
				t.Errorf("%s is there twice", number)
			}
			have[number] = true
		}
	}
	total := 0
	for group, size := range suiteSizes {
		if (size == 0) != (notApplicable[group] != "") {
			t.Errorf("group %s has %d cases, and the reason %q", group, size, notApplicable[group])
		}
		for i := 1; i <= size; i++ {
			number := fmt.Sprintf("%s.%d", group, i)
			if !have[number] {
				t.Errorf("%s is missing", number)
			}
			delete(have, number)
			total++
		}
	}
	if len(have) > 0 {
		t.Errorf("not in the suite: %v", slices.Sorted(maps.Keys(have)))
	}
	t.Logf("%d cases of the suite", total)
}

// suiteCases are the cases of the suite. A name begins with their numbers;
// cases that differ only in how their bytes are cut into writes are one, since
// each is sent in several ways.
func suiteCases() []inboundCase {
	const (
		text, binary    = opText, opBinary
		ping, pong, end = byte(feed.OpPing), byte(feed.OpPong), byte(feed.OpClose)
		broken, notText = wire.CloseProtocolError, wire.CloseInvalidData
	)
	whole := func(op byte, payload string) []byte { return clientFrame(final|op, payload, -1) }
	part := func(op byte, payload string) []byte { return clientFrame(op, payload, -1) }
	then := func(frames ...[]byte) []byte { return slices.Concat(frames...) }
	x := func(n int) string { return strings.Repeat("x", n) }
	lastPing, pinged := whole(ping, "!"), []string{"9 !"}
	accepted := func(name string, frames ...[]byte) inboundCase {
		return inboundCase{name, then(then(frames...), lastPing), pinged, 0}
	}
	refused := func(name string, code uint16, frames ...[]byte) inboundCase {
		return inboundCase{name, then(frames...), nil, code}
	}
	closed := func(name string, status string, frames ...[]byte) inboundCase {
		return inboundCase{name, then(frames...), []string{"8 " + status}, 0}
	}
	const normal = "\x03\xe8"

	cases := []inboundCase{
		{"2.1: a ping without payload", whole(ping, ""), []string{"9 "}, 0},
		{"2.2: a ping with a text", whole(ping, "hello"), []string{"9 hello"}, 0},
		{"2.3: a ping with bytes", whole(ping, "\x00\xff\xfe\xfd"), []string{"9 \x00\xff\xfe\xfd"}, 0},
		{"2.4 2.6: a ping of 125 bytes", whole(ping, x(125)), []string{"9 " + x(125)}, 0},
		refused("2.5: a ping of 126 bytes", broken, whole(ping, x(126))),
		{"2.7: a pong that nobody asked for", whole(pong, ""), []string{"10 "}, 0},
		{"2.8: a pong with payload", whole(pong, "hello"), []string{"10 hello"}, 0},
		{"2.9: a pong, then a ping", then(whole(pong, "a"), whole(ping, "b")), []string{"10 a", "9 b"}, 0},
		{"2.10 2.11: ten pings", nil, nil, 0}, // below

		refused("3.1: reserved bit 3", broken, whole(0x10|text, "a")),
		refused("3.2 3.3 3.4: a text, then reserved bits", broken, whole(text, "a"), whole(0x20|text, "a"), lastPing),
		refused("3.5: reserved bits 1 and 3 of a binary message", broken, whole(0x50|binary, "\xff")),
		refused("3.6: reserved bits 1 and 2 of a ping", broken, whole(0x60|ping, "a")),
		refused("3.7: all reserved bits of a close", broken, whole(0x70|end, normal)),

		refused("4.1.1: opcode 3", broken, whole(3, "")),
		refused("4.1.2: opcode 4 with payload", broken, whole(4, "a")),
		refused("4.1.3: a text, then opcode 5", broken, whole(text, "a"), whole(5, ""), lastPing),
		refused("4.1.4: a text, then opcode 6 with payload", broken, whole(text, "a"), whole(6, "a"), lastPing),
		refused("4.1.5: a text, then opcode 7", broken, whole(text, "a"), whole(7, "a"), lastPing),
		refused("4.2.1: opcode 11", broken, whole(11, "")),
		refused("4.2.2: opcode 12 with payload", broken, whole(12, "a")),
		refused("4.2.3: a text, then opcode 13", broken, whole(text, "a"), whole(13, ""), lastPing),
		refused("4.2.4: a text, then opcode 14 with payload", broken, whole(text, "a"), whole(14, "a"), lastPing),
		refused("4.2.5: a text, then opcode 15", broken, whole(text, "a"), whole(15, "a"), lastPing),

		refused("5.1: a ping in two fragments", broken, fragments(ping, "a", "b")),
		refused("5.2: a pong in two fragments", broken, fragments(pong, "a", "b")),
		accepted("5.3 5.4 5.5: a text in two fragments", fragments(text, "a", "b")),
		{"5.6 5.7 5.8: a ping between fragments", then(part(text, "a"), whole(ping, "p"), whole(0, "b"), lastPing), []string{"9 p", "9 !"}, 0},
		refused("5.9 5.10 5.11: a last fragment of nothing, then a text", broken, whole(0, "a"), whole(text, "b")),
		refused("5.12 5.13 5.14: a fragment of nothing, then a text", broken, part(0, "a"), whole(text, "b")),
		refused("5.15: a fragment after the last one, then a text", broken, fragments(text, "a", "b"), part(0, "c"), whole(text, "d")),
		refused("5.16: twice a fragment of nothing, then a text in fragments", broken, part(0, "a"), fragments(text, "b", "c"), part(0, "a"), fragments(text, "b", "c")),
		refused("5.17: twice a last fragment of nothing, then a text in fragments", broken, whole(0, "a"), fragments(text, "b", "c"), whole(0, "a"), fragments(text, "b", "c")),
		refused("5.18: a second fragment that is a text", broken, part(text, "a"), whole(text, "b")),
		{"5.19 5.20: pings between five fragments", then(part(text, "a"), part(0, "b"), whole(ping, "p"), part(0, "c"), part(0, "d"), whole(ping, "q"), whole(0, "e"), lastPing),
			[]string{"9 p", "9 q", "9 !"}, 0},

		accepted("6.1.1: an empty text", whole(text, "")),
		accepted("6.1.2: three empty fragments", fragments(text, "", "", "")),
		accepted("6.1.3: empty fragments around another", fragments(text, "", "a", "")),
		accepted("6.2.1: a text with long characters", whole(text, "Grüße-µ@ßöäüàá")),
		accepted("6.2.2: fragments that end with a character", fragments(text, "Grüße-µ", "@ßöäüàá")),
		accepted("6.2.3: fragments of one byte", singleBytes("Grüße-µ@ßöäüàá")),
		accepted("6.2.4: fragments of one byte of longer characters", singleBytes("κόσμε")),
		refused("6.3.1: a surrogate", notText, whole(text, "κόσμε\xed\xa0\x80ed")),
		refused("6.3.2: a surrogate in fragments of one byte", notText, singleBytes("κόσμε\xed\xa0\x80ed")),
		// It is refused as soon as it is wrong, without waiting for the rest.
		refused("6.4.1: too large a character in the second of three fragments", notText, part(text, "κόσμε"), part(0, "\xf4\x90\x80\x80")),
		refused("6.4.2: the second fragment ends with the byte that is wrong", notText, part(text, "κόσμε\xf4"), part(0, "\x90")),
		refused("6.4.3: too large a character, and the rest of the frame is missing", notText, clientFrame(final|text, "κόσμε\xf4\x90\x80\x80", 30)),
		refused("6.4.4: the byte that is wrong, and the rest of the frame is missing", notText, clientFrame(final|text, "κόσμε\xf4\x90", 30)),

		closed("7.1.1: a text, then a close", normal, whole(text, "a"), closeFrame(1000, "")),
		// What comes after a close is parsed, but not answered.
		{"7.1.2: two closes", then(closeFrame(1000, ""), closeFrame(1000, "")), []string{"8 " + normal, "8 " + normal}, 0},
		{"7.1.3: a close, then a ping", then(closeFrame(1000, ""), lastPing), []string{"8 " + normal, "9 !"}, 0},
		closed("7.1.4: a close, then a text", normal, closeFrame(1000, ""), whole(text, "a")),
		closed("7.1.5: a close between fragments", normal, part(text, "a"), closeFrame(1000, ""), whole(0, "b")),
		refused("7.1.6: a long text, then a close and a ping", wire.CloseTooBig, whole(text, x(256<<10)), whole(text, "a"), closeFrame(1000, ""), whole(ping, "")),
		closed("7.3.1: an empty close", "", whole(end, "")),
		refused("7.3.2: a close of one byte", broken, whole(end, "a")),
		closed("7.3.3: a close with a status", normal, closeFrame(1000, "")),
		closed("7.3.4: a close with a reason", normal+"bye", closeFrame(1000, "bye")),
		closed("7.3.5: a close with the longest reason", normal+x(123), closeFrame(1000, x(123))),
		refused("7.3.6: a close that is too long", broken, closeFrame(1000, x(124))),
		refused("7.5.1: a reason that is not UTF-8", notText, closeFrame(1000, "κόσμε\xed\xa0\x80ed")),
		refused("7.13.1: a close with 5000", broken, closeFrame(5000, "")),
		refused("7.13.2: a close with 65535", broken, closeFrame(65535, "")),
		refused("10.1.1: 65536 bytes in fragments of 1300", wire.CloseTooBig, fragments(text, cut(x(65536), 1300)...)),
	}
	for i := range cases {
		if strings.HasPrefix(cases[i].name, "2.10 ") {
			for n := range 10 {
				payload := fmt.Sprint("payload ", n)
				cases[i].bytes = append(cases[i].bytes, whole(ping, payload)...)
				cases[i].want = append(cases[i].want, "9 "+payload)
			}
		}
	}
	sized := func(name string, size int, frames []byte) {
		if size <= 4096 {
			cases = append(cases, accepted(name, frames))
		} else {
			cases = append(cases, refused(name, wire.CloseTooBig, frames))
		}
	}
	for i, size := range []int{0, 125, 126, 127, 128, 65535, 65536, 65536} {
		sized(fmt.Sprintf("1.1.%d: a text of %d", i+1, size), size, whole(text, x(size)))
		sized(fmt.Sprintf("1.2.%d: %d bytes", i+1, size), size, whole(binary, strings.Repeat("\xfe", size)))
	}
	for i, status := range []uint16{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999} {
		cases = append(cases, closed(fmt.Sprintf("7.7.%d: a close with %d", i+1, status), string(binary16(status)), closeFrame(status, "")))
	}
	for i, status := range []uint16{0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999} {
		cases = append(cases, refused(fmt.Sprintf("7.9.%d: a close with %d", i+1, status), broken, closeFrame(status, "")))
	}
	// Sizes and speed. The suite's sizes are beyond MaxMessage, so the beginning
	// is refused, and the suite's rest would not be read.
	for i, size := range []int{64 << 10, 256 << 10, 1 << 20, 4 << 20, 8 << 20, 16 << 20} {
		sized(fmt.Sprintf("9.1.%d: a text of %d", i+1, size), size, clientFrame(final|text, "", size))
		sized(fmt.Sprintf("9.2.%d: %d bytes", i+1, size), size, clientFrame(final|binary, "", size))
		cases = append(cases,
			refused(fmt.Sprintf("9.5.%d: a text of 1 MiB, in writes of %d", i+1, 64<<i), wire.CloseTooBig, clientFrame(final|text, x(64<<i), 1<<20)),
			refused(fmt.Sprintf("9.6.%d: 1 MiB, in writes of %d", i+1, 64<<i), wire.CloseTooBig, clientFrame(final|binary, x(64<<i), 1<<20)))
	}
	for i := range 9 {
		size := 64 << (2 * i) // of a fragment
		part := min(size, 8192)
		var fragment, rest []byte
		for range 4096/part + 1 {
			fragment = append(fragment, clientFrame(opContinuation, x(part), size)...)
		}
		rest = fragment[1:] // the first one says what the message is
		cases = append(cases,
			refused(fmt.Sprintf("9.3.%d: 4 MiB of text in fragments of %d", i+1, size), wire.CloseTooBig, []byte{text}, rest),
			refused(fmt.Sprintf("9.4.%d: 4 MiB in fragments of %d", i+1, size), wire.CloseTooBig, []byte{binary}, rest))
	}
	for i, size := range []int{0, 16, 64, 256, 1024, 4096} {
		ten := func(op byte) []byte { return slices.Repeat(whole(op, x(size)), 10) }
		cases = append(cases,
			accepted(fmt.Sprintf("9.7.%d: texts of %d", i+1, size), ten(text)),
			accepted(fmt.Sprintf("9.8.%d: messages of %d bytes", i+1, size), ten(binary)))
	}
	for group, payloads := range suiteTexts() {
		for i, payload := range payloads {
			name := fmt.Sprintf("6.%d.%d: %q", group+5, i+1, payload)
			if utf8.ValidString(payload) {
				cases = append(cases, accepted(name, whole(text, payload)))
			} else {
				cases = append(cases, refused(name, notText, whole(text, payload)))
			}
		}
	}
	return cases
}

// suiteTexts returns the texts of the suite's groups from 6.5 on, which are
// those of Markus Kuhn's stress test for UTF-8 decoders.
func suiteTexts() [][]string {
	const kosme = "\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5"
	var prefixes, lonely []string
	for i := range len(kosme) {
		prefixes = append(prefixes, kosme[:i+1])
	}
	bytesFrom := func(first, end byte, after string) (s string) {
		for c := first; c < end; c++ {
			s += string([]byte{c}) + after
		}
		return s
	}
	for _, starts := range [][2]byte{{0xc0, 0xdf}, {0xe0, 0xef}, {0xf0, 0xf7}, {0xf8, 0xfb}, {0xfc, 0xfd}} {
		lonely = append(lonely, bytesFrom(starts[0], starts[1], " "))
	}
	cutShort := []string{"\xc0", "\xe0\x80", "\xf0\x80\x80", "\xf8\x80\x80\x80", "\xfc\x80\x80\x80\x80",
		"\xdf", "\xef\xbf", "\xf7\xbf\xbf", "\xfb\xbf\xbf\xbf", "\xfd\xbf\xbf\xbf\xbf"}
	noCharacters := []string{"\ufffe", "\uffff"}
	for plane := rune(1); plane <= 16; plane++ {
		noCharacters = append(noCharacters, string(plane<<16|0xfffe), string(plane<<16|0xffff))
	}
	return [][]string{
		{"hello$world", "hello¢world", "hello€world", "hello𤭢world", kosme},
		prefixes,
		{"\x00", "\u0080", "\u0800", "\U00010000"},
		{"\xf8\x88\x80\x80\x80", "\xfc\x84\x80\x80\x80\x80"},
		{"\x7f", "\u07ff", "\uffff", "\U0010ffff"},
		{"\xf7\xbf\xbf\xbf", "\xfb\xbf\xbf\xbf\xbf", "\xfd\xbf\xbf\xbf\xbf\xbf"},
		{"\ud7ff", "\ue000", "\ufffd", "\U0010ffff", "\xf4\x90\x80\x80"},
		{"\x80", "\xbf", "\x80\xbf", "\x80\xbf\x80", "\x80\xbf\x80\xbf", "\x80\xbf\x80\xbf\x80", "\x80\xbf\x80\xbf\x80\xbf", bytesFrom(0x80, 0xbf, "")},
		lonely,
		cutShort,
		{strings.Join(cutShort, "")},
		{"\xfe", "\xff", "\xfe\xfe\xff\xff"},
		{"\xc0\xaf", "\xe0\x80\xaf", "\xf0\x80\x80\xaf", "\xf8\x80\x80\x80\xaf", "\xfc\x80\x80\x80\x80\xaf"},
		{"\xc1\xbf", "\xe0\x9f\xbf", "\xf0\x8f\xbf\xbf", "\xf8\x87\xbf\xbf\xbf", "\xfc\x83\xbf\xbf\xbf\xbf"},
		{"\xc0\x80", "\xe0\x80\x80", "\xf0\x80\x80\x80", "\xf8\x80\x80\x80\x80", "\xfc\x80\x80\x80\x80\x80"},
		{"\xed\xa0\x80", "\xed\xad\xbf", "\xed\xae\x80", "\xed\xaf\xbf", "\xed\xb0\x80", "\xed\xbe\x80", "\xed\xbf\xbf"},
		{"\xed\xa0\x80\xed\xb0\x80", "\xed\xa0\x80\xed\xbf\xbf", "\xed\xad\xbf\xed\xb0\x80", "\xed\xad\xbf\xed\xbf\xbf",
			"\xed\xae\x80\xed\xb0\x80", "\xed\xae\x80\xed\xbf\xbf", "\xed\xaf\xbf\xed\xb0\x80", "\xed\xaf\xbf\xed\xbf\xbf"},
		noCharacters,
		{"\ufff9", "\ufffa", "\ufffb", "\ufffc", "\ufffd", "\ufffe", "\uffff"},
	}
}

// singleBytes returns a text in fragments of one byte.
func singleBytes(s string) []byte { return fragments(opText, cut(s, 1)...) }

// cut cuts s into parts of n bytes.
func cut(s string, n int) (parts []string) {
	for part := range slices.Chunk([]byte(s), n) {
		parts = append(parts, string(part))
	}
	return parts
}

// A client that offers compression gets a listener without it: reserved bits
// stay forbidden.
func TestNoExtensionIsAgreedOn(t *testing.T) {
	_, b := setup(t, DefaultConfig(), feed.DefaultConfig())
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(c, "GET /listen_results HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", res, err)
	}
	if got := res.Header.Values("Sec-WebSocket-Extensions"); got != nil {
		t.Errorf("the server agreed on %q", got)
	}
}
