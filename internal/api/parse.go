package api

import (
	"bytes"
	"fmt"
	"net/url"
	"strings"

	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/wire"
)

// A submission is what a client sent, copied out of fasthttp's buffers.
type submission struct {
	text string
	id   string // passes CheckID, or is empty: none was given
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
