package api

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/wire"
)

// headerTaskID has the type that fasthttp takes without a conversion.
var headerTaskID = []byte(wire.TaskIDHeader)

// answerAccepted says that the broker has confirmed the task id.
func answerAccepted(ctx *fasthttp.RequestCtx, id string) {
	ctx.Response.Header.SetBytesK(headerTaskID, id)
	if !prefersJSON(ctx.Request.Header.Peek("Accept")) {
		front.Text(ctx, fasthttp.StatusAccepted, "Got it")
		return
	}
	ctx.SetStatusCode(fasthttp.StatusAccepted)
	ctx.SetContentType(typeJSON)
	ctx.Response.AppendBodyString(`{"status":"accepted","message":"Got it","id":`)
	ctx.Response.AppendBody(appendID(nil, id))
	ctx.Response.AppendBodyString("}")
}

// appendID appends id as a JSON string. Go and JSON quote an id that passes
// CheckID in the same way.
func appendID(b []byte, id string) []byte { return strconv.AppendQuote(b, id) }

// prefersJSON reports whether an Accept header names JSON before plain text.
// It ignores quality values. A client that accepts neither gets text.
func prefersJSON(accept []byte) bool {
	if len(accept) == 0 || string(accept) == "*/*" {
		return false
	}
	for item := range bytes.SplitSeq(accept, []byte(",")) {
		name, _, _ := bytes.Cut(item, []byte(";"))
		switch strings.ToLower(string(bytes.TrimSpace(name))) {
		case typeJSON, "application/*":
			return true
		case typePlain, "text/*", "*/*":
			return false
		}
	}
	return false
}
