package socket

import (
	"fmt"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/token"
	"github.com/revq/revq/internal/wire"
)

// queuesOf returns the queues that a request to listen names.
func queuesOf(h *fasthttp.RequestHeader) (names []string) {
	for _, name := range front.QueryOf(h).PeekMulti(wire.QueueParameter) {
		names = append(names, string(name))
	}
	return names
}

// ticket answers with a ticket for listening, to the queues that the request
// names, or to all that its token is for.
func ticket(ctx *fasthttp.RequestCtx) *front.Problem {
	permit := front.PermitOf(ctx)
	if permit == nil {
		return front.NewProblem(fasthttp.StatusNotFound, "this server has no tokens (--tokens): listen without a ticket")
	}
	queues := permit.Queues
	if names := queuesOf(&ctx.Request.Header); len(names) > 0 {
		queues = names
	}
	for _, name := range queues {
		if err := wire.CheckQueue(name); err != nil {
			return front.NewProblem(fasthttp.StatusBadRequest, fmt.Sprintf("?%s=%.100s: %v", wire.QueueParameter, name, err))
		}
	}
	if len(queues) > token.MaxQueues {
		return front.NewProblem(fasthttp.StatusBadRequest, fmt.Sprintf("%d queues, at most %d are taken", len(queues), token.MaxQueues))
	}
	text, err := permit.Ticket(queues, time.Now())
	if err != nil {
		return front.NewProblem(fasthttp.StatusUnauthorized, err.Error())
	}
	ctx.SetContentType("application/json")
	ctx.SetBodyString(fmt.Sprintf(`{"ticket":%q,"expires_in":%d}`, text, int(token.MaxTicket.Seconds())))
	return nil
}
