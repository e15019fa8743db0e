package feed

import (
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/revq/revq/internal/wire"
)

// messageOverhead is room for everything in an encoded Message except its id
// and text, if these need no escapes.
const messageOverhead = 256

// appendJSON appends m as encoding/json would. encoding/json takes longer and
// allocates for each result. A time with a year of five digits cannot be
// written in RFC 3339 and is left out: any client that enqueues a task can set
// such a time.
func appendJSON(dst []byte, m wire.Message) []byte {
	dst = appendString(append(dst, `{"type":`...), m.Type)
	dst = strconv.AppendInt(append(dst, `,"offset":`...), m.Offset, 10)
	if m.ID != "" {
		dst = appendString(append(dst, `,"id":`...), m.ID)
	}
	if m.Queue != "" {
		dst = appendString(append(dst, `,"queue":`...), m.Queue)
	}
	dst = appendString(append(dst, `,"text":`...), m.Text)
	dst = appendTime(dst, `,"accepted":"`, m.Accepted)
	dst = appendTime(dst, `,"done":"`, m.Done)
	if m.Traceparent != "" {
		dst = appendString(append(dst, `,"traceparent":`...), m.Traceparent)
	}
	return append(dst, '}')
}

func appendTime(dst []byte, name string, t time.Time) []byte {
	if t.IsZero() {
		return dst
	}
	with, err := t.AppendText(append(dst, name...))
	if err != nil {
		return dst
	}
	return append(with, '"')
}

// plain has the ASCII characters that need no escape in JSON, nor in HTML.
var plain = func() (set [256]bool) {
	for c := ' '; c < utf8.RuneSelf; c++ {
		set[c] = !strings.ContainsRune(`"\<>&`, c)
	}
	return set
}()

// appendString appends s as a JSON string with the escapes of encoding/json:
// those that JSON requires, characters that have a meaning in HTML, and the two
// line separators that JavaScript once did not allow in strings. Bytes that are
// not UTF-8 become U+FFFD.
func appendString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	begin := 0 // of the part to append unchanged
	for i := 0; i < len(s); {
		if plain[s[i]] {
			i++
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if size > 1 && r != '\u2028' && r != '\u2029' {
			i += size
			continue
		}
		dst = append(append(dst, s[begin:i]...), '\\')
		if at := strings.IndexRune("\"\\\b\f\n\r\t", r); at >= 0 {
			dst = append(dst, `"\bfnrt`[at])
		} else {
			dst = append(dst, 'u', hex[r>>12&0xf], hex[r>>8&0xf], hex[r>>4&0xf], hex[r&0xf])
		}
		i += size
		begin = i
	}
	return append(append(dst, s[begin:]...), '"')
}
