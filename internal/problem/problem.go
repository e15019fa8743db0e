// Package problem is how both HTTP fronts answer what they cannot do: with
// problem details (RFC 9457), so that a client finds the reason and what to do
// about it in the same place for every error.
package problem

import (
	"encoding/json"

	"github.com/valyala/fasthttp"
)

// ContentType is the media type of a Problem.
const ContentType = "application/problem+json"

// RetryAfter is the value of the header of that name, in seconds. Places come free as the broker confirms, and a
// session is set up again within about a second of the broker's return.
const RetryAfter = "1"

// A Problem is an error as the client sees it.
type Problem struct {
	Type   string `json:"type"`  // about:blank: the status says it all
	Title  string `json:"title"` // the status in words
	Status int    `json:"status"`
	Detail string `json:"detail"`         // what is wrong and what to do
	ID     string `json:"id,omitempty"`   // of a task that may or may not be queued
	Line   int    `json:"line,omitempty"` // of a batch, from 1

	header []string // of the answer, names and values in turn
}

// New returns the problem with an HTTP status; detail says what is wrong and
// what to do.
func New(status int, detail string) *Problem {
	return &Problem{Type: "about:blank", Title: fasthttp.StatusMessage(status), Status: status, Detail: detail}
}

// With adds a header to the answer, and returns p.
func (p *Problem) With(name, value string) *Problem {
	p.header = append(p.header, name, value)
	return p
}

// Retryable reports whether the same request may succeed later.
func Retryable(status int) bool {
	return status == fasthttp.StatusTooManyRequests || status == fasthttp.StatusServiceUnavailable
}

// Answer makes p the response to ctx, with Retry-After where that may help.
func (p *Problem) Answer(ctx *fasthttp.RequestCtx) {
	ctx.SetStatusCode(p.Status)
	ctx.SetContentType(ContentType)
	ctx.Response.Header.Set("Cache-Control", "no-store")
	if Retryable(p.Status) {
		ctx.Response.Header.Set("Retry-After", RetryAfter)
	}
	for i := 0; i+1 < len(p.header); i += 2 {
		ctx.Response.Header.Set(p.header[i], p.header[i+1])
	}
	ctx.SetBody(p.JSON())
}

// JSON returns p encoded.
func (p *Problem) JSON() []byte {
	b, err := json.Marshal(p)
	if err != nil {
		panic(err) // a struct of strings and numbers always has an encoding
	}
	return b
}
