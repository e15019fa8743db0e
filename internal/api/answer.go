package api

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/front"
)

// Header names and values, as the bytes that fasthttp takes without converting.
var (
	headerCacheControl = []byte("Cache-Control")
	headerTaskID       = []byte("Revq-Task-Id")
	noStore            = []byte("no-store")
)

// start sets what all answers share.
func start(ctx *fasthttp.RequestCtx, status int, contentType string) {
	ctx.SetStatusCode(status)
	ctx.SetContentType(contentType)
	ctx.Response.Header.SetCanonical(headerCacheControl, noStore)
}

func answerText(ctx *fasthttp.RequestCtx, status int, text string) {
	start(ctx, status, "text/plain; charset=utf-8")
	ctx.SetBodyString(text)
}

// answerAccepted says that the broker has confirmed the task id.
func answerAccepted(ctx *fasthttp.RequestCtx, id string) {
	ctx.Response.Header.SetBytesK(headerTaskID, id)
	if !prefersJSON(ctx.Request.Header.Peek("Accept")) {
		answerText(ctx, fasthttp.StatusAccepted, "Got it")
		return
	}
	start(ctx, fasthttp.StatusAccepted, typeJSON)
	ctx.Response.AppendBodyString(`{"status":"accepted","message":"Got it","id":`)
	ctx.Response.AppendBody(appendID(nil, id))
	ctx.Response.AppendBodyString("}")
}

// appendID appends id as a JSON string. For what CheckID lets through, Go's
// quoting and JSON's are the same.
func appendID(b []byte, id string) []byte { return strconv.AppendQuote(b, id) }

// prefersJSON reports whether an Accept header names JSON before plain text.
// Quality values are not looked at, and a client that accepts neither gets text.
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

// answerOptions says what the path takes.
func answerOptions(ctx *fasthttp.RequestCtx) {
	start(ctx, fasthttp.StatusNoContent, "")
	path := string(ctx.Path())
	ctx.Response.Header.Set("Allow", strings.Join(methods[path], ", "))
	front.AnswerPreflight(ctx, methods[path])
	if path == queuePath {
		ctx.Response.Header.Set("Accept-Post", acceptPost)
	}
}
