// Package visible makes text from others safe to show. A text may hold
// escape sequences that a terminal obeys, line breaks that look like the next
// result, or characters that reverse the direction of what follows. Everything
// that revq prints of a text, a server's answer or a broker's error goes
// through here.
package visible

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Text returns a text unchanged if all of it is visible, and otherwise quoted as
// a Go string. A text that begins with a quotation mark is quoted, too, so that
// no two texts are shown alike.
func Text(s string) string {
	if !strings.HasPrefix(s, `"`) && isVisible(s) {
		return s
	}
	return strconv.Quote(s)
}

func isVisible(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) < 0
}

// Line returns a part of a message with escapes in place of invisible characters
// and line breaks.
func Line(s string) string { return escape(s, "") }

// Lines is Line for messages that may have several lines.
func Lines(s string) string { return escape(s, "\n\t") }

func escape(s, except string) string {
	if isVisible(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		part := s[i : i+size]
		i += size
		switch {
		case r == utf8.RuneError && size == 1, !strconv.IsPrint(r) && !strings.ContainsRune(except, r):
			quoted := strconv.Quote(part)
			b.WriteString(quoted[1 : len(quoted)-1])
		default:
			b.WriteString(part)
		}
	}
	return b.String()
}

// JSON returns an equal JSON value in one line, with escapes in place of
// invisible characters.
func JSON(value []byte) []byte {
	var compact bytes.Buffer
	if json.Compact(&compact, value) != nil {
		return []byte(Line(string(value)))
	}
	if isVisible(compact.String()) {
		return compact.Bytes()
	}
	var b []byte
	for _, r := range compact.String() { // only strings can hold invisible characters
		switch {
		case strconv.IsPrint(r):
			b = utf8.AppendRune(b, r)
		case r > 0xffff:
			r -= 0x10000
			b = fmt.Appendf(b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			b = fmt.Appendf(b, `\u%04x`, r)
		}
	}
	return b
}

// JSONWriter returns a writer that writes JSON values to w as JSON returns them.
// Each Write must have one value and a line break.
func JSONWriter(w io.Writer) io.Writer { return jsonWriter{w} }

type jsonWriter struct{ w io.Writer }

func (j jsonWriter) Write(value []byte) (int, error) {
	if _, err := j.w.Write(append(JSON(value), '\n')); err != nil {
		return 0, err
	}
	return len(value), nil
}
