package api

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/wire"
)

// A submission is what a client sent, copied out of fasthttp's buffers.
type submission struct {
	text string
	id   string // passes CheckID, or is empty: none was given

	// The task may begin no sooner than this after it was accepted, and is
	// given up if it has not begun after expires; 0 for no limit.
	delay, expires time.Duration
}

// parse parses a body that holds one text.
func parse(m media, body []byte) (submission, *front.Problem) {
	switch m {
	case form:
		return parseForm(body)
	case object:
		return parseJSON(body)
	default:
		return submission{text: string(body)}, nil
	}
}

// parseForm parses the field "text" of a form. It ignores other fields, such as
// the name of the button that was pressed.
func parseForm(body []byte) (submission, *front.Problem) {
	var sub submission
	found := false
	for pair := range bytes.SplitSeq(body, []byte("&")) {
		name, value, _ := bytes.Cut(pair, []byte("="))
		if !isText(name) {
			continue
		}
		if found {
			return sub, badRequest(`the form has more than one "text": send one text a request, or many as ` + typeNDJSON)
		}
		found = true
		var err error
		if sub.text, err = url.QueryUnescape(string(value)); err != nil {
			return sub, badRequest(fmt.Sprintf(`"text" is not percent-encoded: %v (write a percent sign as %%25)`, err))
		}
	}
	if !found {
		return sub, badRequest(`the form has no "text": send text=abcdef`)
	}
	return sub, nil
}

// isText reports whether name is "text", percent-encoded or not.
func isText(name []byte) bool {
	if bytes.IndexByte(name, '%') < 0 {
		return string(name) == "text"
	}
	s, err := url.QueryUnescape(string(name))
	return err == nil && s == "text"
}

// takeTimes sets the delay and the time after which the task expires from the
// headers of a request, if there are any.
func (sub *submission) takeTimes(h *fasthttp.RequestHeader) *front.Problem {
	var err error
	if value := h.Peek(wire.DelayHeader); len(value) > 0 {
		if sub.delay, err = parseTime(string(value), false); err != nil {
			return badRequest(wire.DelayHeader + ": " + err.Error())
		}
	}
	if value := h.Peek(wire.ExpiresHeader); len(value) > 0 {
		if sub.expires, err = parseTime(string(value), true); err != nil {
			return badRequest(wire.ExpiresHeader + ": " + err.Error())
		}
	}
	return sub.checkTimes()
}

// parseTime reads a delay, or the time after which a task expires.
func parseTime(text string, expires bool) (time.Duration, error) {
	if expires {
		d, err := wire.ParseDelay(text, wire.MaxExpires)
		if err == nil && d == 0 {
			err = errors.New("the time must be more than 0")
		}
		return d, err
	}
	return wire.ParseDelay(text, wire.MaxDelay)
}

// checkTimes returns the problem of times that do not fit together.
func (sub *submission) checkTimes() *front.Problem {
	if sub.expires > 0 && sub.expires <= sub.delay {
		return badRequest(fmt.Sprintf("the task would expire after %v, before its delay of %v is over", sub.expires, sub.delay))
	}
	return nil
}

// takeKey sets the id from the value of an Idempotency-Key header, if any.
func (sub *submission) takeKey(header []byte) *front.Problem {
	if len(header) == 0 {
		return nil
	}
	key := string(header)
	// The header's draft standard makes it a quoted string; most clients send it
	// bare.
	if len(key) >= 2 && key[0] == '"' && key[len(key)-1] == '"' {
		key = key[1 : len(key)-1]
		if strings.ContainsAny(key, `"\`) {
			return badRequest(wire.KeyHeader + `: a quoted key holds no quotes and no backslashes`)
		}
	}
	if err := wire.CheckID(key); err != nil {
		return badRequest(wire.KeyHeader + ": " + err.Error())
	}
	if sub.id != "" && sub.id != key {
		return badRequest(wire.KeyHeader + ` and "id" differ: send one of them`)
	}
	sub.id = key
	return nil
}
