package socket

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/token"
	"github.com/revq/revq/internal/wire"
)

const (
	// maxWait is how long a request for one result may wait: proxies usually
	// end a request without an answer after a minute.
	maxWait = time.Minute

	// maxWaiting is how many requests may wait for a result at once. Each is a
	// connection with a goroutine and a read buffer, up to about 40 KiB.
	maxWaiting = 1000
)

// result answers with the last message about a task, or returns the problem.
func (s *Server) result(ctx *fasthttp.RequestCtx) *front.Problem {
	id, err := url.PathUnescape(string(front.NameIn(&ctx.Request.Header, wire.ResultPath)))
	if err == nil {
		err = wire.CheckID(id)
	}
	if err != nil {
		return front.NewProblem(fasthttp.StatusBadRequest, wire.ResultPath+"ID: "+err.Error())
	}
	var wait time.Duration
	if text := ctx.QueryArgs().Peek(wire.WaitParameter); len(text) > 0 {
		if wait, err = wire.ParseDelay(string(text), maxWait); err != nil {
			return front.NewProblem(fasthttp.StatusBadRequest, "?"+wire.WaitParameter+"=: "+err.Error())
		}
	}
	if wait > 0 {
		client := s.front.Client(ctx)
		if p := client.Listen(); p != nil {
			return p
		}
		defer client.Leave()
		defer s.waiting.Add(-1)
		if s.waiting.Add(1) > maxWaiting {
			return front.NewProblem(fasthttp.StatusServiceUnavailable,
				fmt.Sprintf("%d requests wait for results already, which is the maximum: ask without ?wait=, or at another site", maxWaiting))
		}
	}
	there, stop := whileThere(s.stopped, ctx.Conn(), wait)
	defer stop()
	message := s.feed.Await(there, id)
	if permit := front.PermitOf(ctx); message != nil && permit != nil && permit.Queues != nil {
		// Which queue a task is of shows only when its result is there.
		var m wire.Message
		if err := json.Unmarshal(message, &m); err != nil || !permit.Queues.Covers(token.Queues{m.Queue}) {
			return front.NewProblem(fasthttp.StatusForbidden, "the token is not for the queue of this task")
		}
	}
	switch {
	case message != nil:
		ctx.SetContentType("application/json")
		ctx.Response.Header.Set("Cache-Control", "no-store")
		ctx.Response.SetBodyRaw(message)
		return nil
	case s.stopped.Err() != nil:
		return front.NewProblem(fasthttp.StatusServiceUnavailable, "the server restarts: ask again")
	case errors.Is(context.Cause(there), errLeft):
		return front.NewProblem(fasthttp.StatusNotFound,
			"no result of this task is in memory, and the wait has ended because the client has closed its side of the connection: keep it open")
	}
	if err := s.source.Ready(); err != nil {
		return front.NewProblem(fasthttp.StatusServiceUnavailable, "the result is not known, and none can arrive: "+err.Error())
	}
	return front.NewProblem(fasthttp.StatusNotFound,
		"no result of this task is in memory: it may be waiting or running, or its result is older; wait with ?"+wire.WaitParameter+"=30s, or listen with ?after=")
}

// whileThere returns a context that ends when ctx does, after wait, or when the
// client at conn has closed its side. Nobody reads from conn meanwhile, and this
// does not either: what the client sends, such as its next request, stays in
// the kernel.
func whileThere(ctx context.Context, conn net.Conn, wait time.Duration) (context.Context, func()) {
	there, stop := context.WithTimeout(ctx, wait)
	fd, err := descriptor(front.Below(conn))
	if wait == 0 || err != nil {
		return there, stop
	}
	there, leave := context.WithCancelCause(there)
	go func() {
		ticker := time.NewTicker(leftTick)
		defer ticker.Stop()
		for {
			if hasLeft(fd) {
				leave(errLeft)
				return
			}
			select {
			case <-ticker.C:
			case <-there.Done():
				return
			}
		}
	}()
	return there, stop
}
