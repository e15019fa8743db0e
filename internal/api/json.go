package api

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/wire"
)

// parseJSON parses {"text": "...", "id": "...", "delay": "...", "expires": "..."},
// where all but "text" are optional. The times may also be numbers of seconds.
//
// encoding/json would accept "Text" for "text", pick one of two texts, and turn
// a lone surrogate into U+FFFD: revq would accept a text that nobody sent.
// parseJSON refuses unknown fields, since ignoring one (a misspelt "id") would
// ignore what the client asked for.
func parseJSON(data []byte) (submission, *front.Problem) {
	var sub submission
	d := decoder{data: data}
	if !d.take('{') {
		return sub, badRequest(`expected a JSON object such as {"text": "abcdef"}`)
	}
	var hasText, hasID, hasDelay, hasExpires bool
	var delay, expires string
	for first := true; !d.take('}'); first = false {
		if !first && !d.take(',') {
			return sub, d.problem(errSyntax)
		}
		name, err := d.str()
		if err != nil {
			return sub, d.problem(err)
		}
		var value *string
		var seen *bool
		switch name {
		case "text":
			value, seen = &sub.text, &hasText
		case "id":
			value, seen = &sub.id, &hasID
		case "delay":
			value, seen = &delay, &hasDelay
		case "expires":
			value, seen = &expires, &hasExpires
		default:
			return sub, badRequest(fmt.Sprintf(`the field %s is not known: send "text" and, if you like, "id", "delay" and "expires"`, quote(name)))
		}
		if *seen {
			return sub, badRequest(fmt.Sprintf("there is more than one %q", name))
		}
		*seen = true
		if !d.take(':') {
			return sub, d.problem(errSyntax)
		}
		isTime := value == &delay || value == &expires
		switch next := d.peek(); {
		case next == '"':
			*value, err = d.str()
		case isTime && next >= '0' && next <= '9':
			*value = d.number()
		case isTime:
			return sub, badRequest(fmt.Sprintf("%q must be a number of seconds or a string", name))
		default:
			return sub, badRequest(fmt.Sprintf("%q must be a string", name))
		}
		if err != nil {
			return sub, d.problem(err)
		}
	}
	d.peek()
	switch {
	case d.pos < len(d.data):
		return sub, badRequest(fmt.Sprintf("there is more after the JSON object, at byte %d: send one object", d.pos))
	case !hasText:
		return sub, badRequest(`"text" is missing: send {"text": "abcdef"}`)
	case hasID && wire.CheckID(sub.id) != nil:
		return sub, badRequest(`"id": ` + wire.ErrBadID.Error())
	}
	var err error
	if hasDelay { // no loop over pointers: sub would escape to the heap
		if sub.delay, err = parseTime(delay, false); err != nil {
			return sub, badRequest(`"delay": ` + err.Error())
		}
	}
	if hasExpires {
		if sub.expires, err = parseTime(expires, true); err != nil {
			return sub, badRequest(`"expires": ` + err.Error())
		}
	}
	return sub, sub.checkTimes()
}

// quote returns name quoted, and shortened if it is long.
func quote(name string) string {
	const maximum = 40
	if len(name) > maximum {
		name = name[:maximum] + "…"
	}
	return strconv.Quote(name)
}

var (
	errSyntax    = errors.New("malformed JSON")
	errSurrogate = errors.New("an escape that is half of a surrogate pair, which is not a character,")
)

// A decoder reads the tokens of a JSON object of strings and numbers (RFC 8259). It does
// not check that strings are UTF-8: the checks of texts and ids do.
type decoder struct {
	data []byte
	pos  int
}

func (d *decoder) problem(err error) *front.Problem {
	return badRequest(fmt.Sprintf("%v at byte %d", err, d.pos))
}

// peek skips white space and returns the byte that follows, or 0 at the end. (A
// zero byte in the data is not a token either.)
func (d *decoder) peek() byte {
	for ; d.pos < len(d.data); d.pos++ {
		switch c := d.data[d.pos]; c {
		case ' ', '\t', '\n', '\r':
		default:
			return c
		}
	}
	return 0
}

// take skips white space and then c, if c is next.
func (d *decoder) take(c byte) bool {
	if d.peek() != c {
		return false
	}
	d.pos++
	return true
}

// number returns the digits, points and exponents that come next. Whoever
// converts them finds out whether they are a number.
func (d *decoder) number() string {
	start := d.pos
	for d.pos < len(d.data) && strings.IndexByte("0123456789.eE+-", d.data[d.pos]) >= 0 {
		d.pos++
	}
	return string(d.data[start:d.pos])
}

// str reads a string.
func (d *decoder) str() (string, error) {
	if !d.take('"') {
		return "", errSyntax
	}
	start := d.pos
	for ; d.pos < len(d.data); d.pos++ {
		switch c := d.data[d.pos]; {
		case c == '"':
			d.pos++
			return string(d.data[start : d.pos-1]), nil
		case c == '\\':
			return d.escaped(start)
		case c < ' ':
			return "", errSyntax
		}
	}
	return "", errSyntax
}

// escaped reads the rest of a string that begins at start and has its first
// escape at d.pos.
func (d *decoder) escaped(start int) (string, error) {
	buf := append([]byte(nil), d.data[start:d.pos]...)
	for d.pos < len(d.data) {
		c := d.data[d.pos]
		switch {
		case c == '"':
			d.pos++
			return string(buf), nil
		case c < ' ':
			return "", errSyntax
		case c != '\\':
			buf = append(buf, c)
			d.pos++
			continue
		}
		r, err := d.escape()
		if err != nil {
			return "", err
		}
		buf = utf8.AppendRune(buf, r)
	}
	return "", errSyntax
}

// escapes maps the character after a backslash to the one that it stands for.
var escapes = [256]rune{
	'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t',
}

// escape reads one escape, or two that form a surrogate pair.
func (d *decoder) escape() (rune, error) {
	if rest := d.data[d.pos:]; len(rest) >= 2 && escapes[rest[1]] != 0 {
		d.pos += 2
		return escapes[rest[1]], nil
	}
	r, err := d.unicodeEscape()
	if err != nil || !utf16.IsSurrogate(r) {
		return r, err
	}
	low, err := d.unicodeEscape()
	if r = utf16.DecodeRune(r, low); err != nil || r == unicode.ReplacementChar {
		return 0, errSurrogate
	}
	return r, nil
}

// unicodeEscape reads \uXXXX.
func (d *decoder) unicodeEscape() (rune, error) {
	rest := d.data[d.pos:]
	if len(rest) < 6 || rest[0] != '\\' || rest[1] != 'u' {
		return 0, errSyntax
	}
	n, err := strconv.ParseUint(string(rest[2:6]), 16, 16)
	if err != nil {
		return 0, errSyntax
	}
	d.pos += 6
	return rune(n), nil
}
