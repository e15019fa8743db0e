package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/task"
)

// A problem is an error as the client sees it (RFC 9457).
type problem struct {
	Type   string `json:"type"`  // about:blank: the status says it all
	Title  string `json:"title"` // the status in words
	Status int    `json:"status"`
	Detail string `json:"detail"`         // what is wrong and what to do
	ID     string `json:"id,omitempty"`   // of a task that may or may not be queued
	Line   int    `json:"line,omitempty"` // of a batch, from 1
}

// retryAfter is in seconds. Places come free as the broker confirms, and a
// session is set up again within about a second of the broker's return.
const retryAfter = "1"

func newProblem(status int, detail string) *problem {
	return &problem{Type: "about:blank", Title: fasthttp.StatusMessage(status), Status: status, Detail: detail}
}

func badRequest(detail string) *problem { return newProblem(fasthttp.StatusBadRequest, detail) }

var (
	errNoBody   = badRequest("there is no text: send one as " + acceptPost)
	errInternal = newProblem(fasthttp.StatusInternalServerError, "this is a bug in revq: its log has the details")
)

// badText is the problem that task.CheckText found.
func badText(err error) *problem {
	if errors.Is(err, task.ErrTooLong) {
		return newProblem(fasthttp.StatusRequestEntityTooLarge, err.Error())
	}
	return badRequest(err.Error())
}

// busy is the problem that MaxInFlight tasks wait for the broker.
func (s *Server) busy() *problem {
	return newProblem(fasthttp.StatusTooManyRequests, fmt.Sprintf(
		"%d texts are waiting for the broker already: send this one again in a second", s.cfg.MaxInFlight))
}

// unconfirmed is the problem that the task id is not known to be queued.
func unconfirmed(id string, err error) *problem {
	p := newProblem(fasthttp.StatusServiceUnavailable, err.Error()+": send the text again with this id")
	p.ID = id
	return p
}

// retryable reports whether the same request may succeed later.
func retryable(status int) bool {
	return status == fasthttp.StatusTooManyRequests || status == fasthttp.StatusServiceUnavailable
}

// answer sends p.
func (p *problem) answer(ctx *fasthttp.RequestCtx) {
	start(ctx, p.Status, "application/problem+json")
	h := &ctx.Response.Header
	switch {
	case p.Status == fasthttp.StatusMethodNotAllowed:
		h.Set("Allow", strings.Join(methods[string(ctx.Path())], ", "))
	case p.Status == fasthttp.StatusUnsupportedMediaType:
		h.Set("Accept-Post", acceptPost)
		h.Set("Accept-Encoding", "identity")
	case retryable(p.Status):
		h.Set("Retry-After", retryAfter)
	}
	if p.ID != "" {
		h.SetBytesK(headerTaskID, p.ID)
	}
	ctx.SetBody(p.json())
}

func (p *problem) json() []byte {
	b, err := json.Marshal(p)
	if err != nil {
		panic(err) // a struct of strings and numbers always has an encoding
	}
	return b
}

// refuse answers a request that fasthttp could not read, and then closes the
// connection.
func (s *Server) refuse(ctx *fasthttp.RequestCtx, err error) {
	if c, ok := ctx.Conn().(*conn); ok {
		c.linger.Store(true)
	}
	s.unreadable(ctx, err).answer(ctx)
}

func (s *Server) unreadable(ctx *fasthttp.RequestCtx, err error) *problem {
	var long *fasthttp.ErrSmallBuffer
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		// A smaller body would not help a request that is wrong otherwise. (Of a
		// chunked one fasthttp has dropped the headers by now, Host with them.)
		if len(ctx.Request.Header.Host()) > 0 {
			if p := misdirected(ctx); p != nil {
				return p
			}
		}
		return newProblem(fasthttp.StatusRequestEntityTooLarge, fmt.Sprintf(
			"the body is too big: a text may have %d bytes, a batch (%s) %d in all", s.cfg.MaxText, typeNDJSON, s.cfg.MaxBatch))
	case errors.As(err, &long):
		return newProblem(fasthttp.StatusRequestHeaderFieldsTooLarge,
			fmt.Sprintf("the request line and headers may have %d bytes together", headerLimit))
	case errors.As(err, &timeout) && timeout.Timeout():
		return newProblem(fasthttp.StatusRequestTimeout,
			fmt.Sprintf("the whole request must arrive within %v", s.cfg.ReadTimeout))
	}
	return badRequest("this is not valid HTTP: check the request line, the headers and the body's length or chunks")
}
