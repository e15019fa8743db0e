package api

import (
	"bytes"
	"fmt"
	"mime"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/wire"
)

// A media is a supported kind of body.
type media int

const (
	unsupported media = iota
	form
	object
	plain
	ndjson
)

const (
	typeForm   = "application/x-www-form-urlencoded"
	typeJSON   = "application/json"
	typePlain  = "text/plain"
	typeNDJSON = "application/x-ndjson"

	acceptPost = typeForm + ", " + typeJSON + ", " + typePlain + ", " + typeNDJSON
)

var medias = map[string]media{
	typeForm:   form,
	typeJSON:   object,
	typePlain:  plain,
	typeNDJSON: ndjson,

	// Common values, so that mime's parser need not run for them.
	typeForm + "; charset=utf-8":  form,
	typeJSON + "; charset=utf-8":  object,
	typePlain + "; charset=utf-8": plain,
}

// mediaOf returns the kind of body that a Content-Type announces. Any charset
// but UTF-8 and its subset US-ASCII is unsupported.
func mediaOf(contentType []byte) media {
	if m, ok := medias[string(contentType)]; ok {
		return m
	}
	name, params, err := mime.ParseMediaType(string(contentType))
	if err != nil {
		return unsupported
	}
	switch strings.ToLower(params["charset"]) {
	case "", "utf-8", "us-ascii":
		return medias[name]
	}
	return unsupported
}

// checkHead returns a problem if the headers announce a body that the API does
// not take. It does not guess the type of a body: a form and a plain text can
// look the same and mean different texts.
func checkHead(h *fasthttp.RequestHeader) *front.Problem {
	m := mediaOf(h.ContentType())
	switch {
	case len(h.ContentEncoding()) > 0 && !strings.EqualFold(string(h.ContentEncoding()), "identity"):
		return unsupportedMedia("send the body without Content-Encoding")
	case m == unsupported && len(h.ContentType()) == 0 && h.ContentLength() == 0:
		return errNoBody
	case m == unsupported:
		return unsupportedMedia("the Content-Type must be one of " + acceptPost + "; the only charset is utf-8")
	}
	if p := checkTimes(h, m); p != nil {
		return p
	}
	return checkKeys(h, m)
}

// checkTimes returns a problem if there is a time in a header although the body
// has a place for it: nothing that a client asks for is ignored.
func checkTimes(h *fasthttp.RequestHeader, m media) *front.Problem {
	for _, name := range []string{wire.DelayHeader, wire.ExpiresHeader} {
		switch {
		case len(h.Peek(name)) == 0:
		case m == object || m == ndjson:
			return badRequest(fmt.Sprintf("%s is for bodies without JSON: send %q in the object", name, strings.ToLower(strings.TrimPrefix(name, "Revq-"))))
		case len(front.HeaderLines(h, name)) != 1:
			return badRequest(fmt.Sprintf("there must be one %s header, outside of the trailer", name))
		}
	}
	return nil
}

func unsupportedMedia(detail string) *front.Problem {
	return front.NewProblem(fasthttp.StatusUnsupportedMediaType, detail).
		With("Accept-Post", acceptPost).With("Accept-Encoding", "identity")
}

// checkKeys returns a problem if the Idempotency-Key headers do not name one id
// for one text.
func checkKeys(h *fasthttp.RequestHeader, m media) *front.Problem {
	if len(h.Peek(wire.KeyHeader)) == 0 {
		return nil // the common case, without a search through the lines
	}
	keys := front.HeaderLines(h, wire.KeyHeader)
	for i, key := range keys {
		if m == ndjson {
			return badRequest(wire.KeyHeader + ` is for one text: give each line of a batch its own "id"`)
		}
		if i > 0 && !bytes.Equal(key, keys[0]) {
			return badRequest("there are " + wire.KeyHeader + " headers that differ: send one")
		}
	}
	return nil
}

// keyOf returns the Idempotency-Key of a request. It ignores one in the trailer
// of the body.
func keyOf(h *fasthttp.RequestHeader) []byte {
	if len(h.Peek(wire.KeyHeader)) == 0 {
		return nil
	}
	keys := front.HeaderLines(h, wire.KeyHeader)
	if len(keys) == 0 {
		return nil
	}
	return keys[0]
}

// traceOf returns the traceparent of a request, "" if it has none. One that is
// not valid, or that comes twice, counts as none: it must not cost a text.
func traceOf(h *fasthttp.RequestHeader) string {
	if len(h.Peek(wire.TraceparentHeader)) == 0 {
		return ""
	}
	values := front.HeaderLines(h, wire.TraceparentHeader)
	if len(values) != 1 {
		return ""
	}
	return wire.ParseTraceparent(string(values[0]))
}

// bodySlack is room for names, an id and white space, in addition to the text.
const bodySlack = 4 << 10

// bodyLimit returns the maximum length of a body of kind m, in bytes: that of
// the longest text in its longest encoding.
func (s *Server) bodyLimit(m media) int {
	switch m {
	case form:
		return 3*s.cfg.MaxText + bodySlack // %XX for each byte
	case object:
		return 6*s.cfg.MaxText + bodySlack // \u00XX for each byte
	case ndjson:
		return s.cfg.MaxBatch
	default:
		return s.cfg.MaxText + bodySlack
	}
}
