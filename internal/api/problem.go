package api

import (
	"errors"
	"fmt"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/problem"
	"github.com/revq/revq/internal/task"
)

func badRequest(detail string) *problem.Problem {
	return problem.New(fasthttp.StatusBadRequest, detail)
}

var (
	errNoBody   = badRequest("there is no text: send one as " + acceptPost)
	errInternal = problem.New(fasthttp.StatusInternalServerError, "this is a bug in revq: its log has the details")
)

// badText is the problem that task.CheckText found.
func badText(err error) *problem.Problem {
	if errors.Is(err, task.ErrTooLong) {
		return problem.New(fasthttp.StatusRequestEntityTooLarge, err.Error())
	}
	return badRequest(err.Error())
}

// otherText is the problem that a batch has two texts under one id.
func otherText(id string) *problem.Problem {
	return problem.New(fasthttp.StatusUnprocessableEntity, fmt.Sprintf(
		"an earlier line has another text under the id %q: give each text its own id", id))
}

// busy is the problem that MaxInFlight tasks wait for the broker.
func (s *Server) busy() *problem.Problem {
	return problem.New(fasthttp.StatusTooManyRequests, fmt.Sprintf(
		"%d texts are waiting for the broker already: send this one again in a second", s.cfg.MaxInFlight))
}

// unconfirmed is the problem that the task id is not known to be queued.
func unconfirmed(id string, err error) *problem.Problem {
	p := problem.New(fasthttp.StatusServiceUnavailable, err.Error()+": send the text again with this id")
	p.ID = id
	return p
}

// answer sends p, and with some problems what helps to avoid them.
func answer(ctx *fasthttp.RequestCtx, p *problem.Problem) {
	p.Answer(ctx)
	h := &ctx.Response.Header
	switch p.Status {
	case fasthttp.StatusMethodNotAllowed:
		h.Set("Allow", strings.Join(methods[string(ctx.Path())], ", "))
	case fasthttp.StatusUnsupportedMediaType:
		h.Set("Accept-Post", acceptPost)
		h.Set("Accept-Encoding", "identity")
	}
	if p.ID != "" {
		h.SetBytesK(headerTaskID, p.ID)
	}
}

// refuse answers a request that fasthttp could not read, and then closes the
// connection.
func (s *Server) refuse(ctx *fasthttp.RequestCtx, err error) {
	if c, ok := ctx.Conn().(*conn); ok {
		c.linger.Store(true)
	}
	s.gate.Expose(ctx)
	answer(ctx, s.unreadable(ctx, err))
}

func (s *Server) unreadable(ctx *fasthttp.RequestCtx, err error) *problem.Problem {
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
		return problem.New(fasthttp.StatusRequestEntityTooLarge, fmt.Sprintf(
			"the body is too big: a text may have %d bytes, a batch (%s) %d in all", s.cfg.MaxText, typeNDJSON, s.cfg.MaxBatch))
	case errors.As(err, &long):
		return problem.New(fasthttp.StatusRequestHeaderFieldsTooLarge,
			fmt.Sprintf("the request line and headers may have %d bytes together", headerLimit))
	case errors.As(err, &timeout) && timeout.Timeout():
		return problem.New(fasthttp.StatusRequestTimeout,
			fmt.Sprintf("the whole request must arrive within %v", s.cfg.ReadTimeout))
	}
	return badRequest("this is not valid HTTP: check the request line, the headers and the body's length or chunks")
}
