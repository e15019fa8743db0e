package front

import (
	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/wire"
)

// A Problem is what a front answers to a request that it cannot handle.
type Problem struct {
	wire.Problem
	header []string // of the answer, names and values in turn
}

// NewProblem returns the problem with an HTTP status; detail says what is wrong
// and what to do.
func NewProblem(status int, detail string) *Problem {
	return &Problem{Problem: wire.NewProblem(status, detail)}
}

// With adds a header to the answer, and returns p.
func (p *Problem) With(name, value string) *Problem {
	p.header = append(p.header, name, value)
	return p
}

// answer makes p the response to ctx, with Retry-After where that may help.
func (p *Problem) answer(ctx *fasthttp.RequestCtx) {
	noStore(ctx)
	ctx.SetStatusCode(p.Status)
	ctx.SetContentType(wire.ProblemType)
	if wire.Retryable(p.Status) {
		ctx.Response.Header.Set("Retry-After", wire.RetryAfter)
	}
	for i := 0; i+1 < len(p.header); i += 2 {
		ctx.Response.Header.Set(p.header[i], p.header[i+1])
	}
	ctx.SetBody(p.JSON())
}
