package api

import (
	"errors"
	"fmt"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/token"
	"github.com/revq/revq/internal/wire"
)

func badRequest(detail string) *front.Problem {
	return front.NewProblem(fasthttp.StatusBadRequest, detail)
}

var errNoBody = badRequest("there is no text: send one as " + acceptPost)

// badText returns the problem for an error of task.CheckText.
func badText(err error) *front.Problem {
	if errors.Is(err, task.ErrTooLong) {
		return front.NewProblem(fasthttp.StatusRequestEntityTooLarge, err.Error())
	}
	return badRequest(err.Error())
}

// otherText is the problem of a batch with two texts under one id.
func otherText(id string) *front.Problem {
	return front.NewProblem(fasthttp.StatusUnprocessableEntity, fmt.Sprintf(
		"an earlier line has another text under the id %q: give each text its own id", id))
}

// busy is the problem of a text beyond MaxInFlight.
func (s *Server) busy() *front.Problem {
	return front.NewProblem(fasthttp.StatusTooManyRequests, fmt.Sprintf(
		"%d texts are waiting for the broker already: retry this one in a second", s.cfg.MaxInFlight))
}

// unqueued is the problem of a task that is not known to be queued. Only without
// its queue it is known not to be, and the problem does not have its id then.
// permit is that of the sender.
func (s *Server) unqueued(t task.Task, permit *token.Permit, err error) *front.Problem {
	if errors.Is(err, task.ErrNoQueue) {
		return s.known.missing(t.Queue, permit).With(wire.TaskIDHeader, t.ID)
	}
	p := front.NewProblem(fasthttp.StatusServiceUnavailable, err.Error()+": send the text again with this id").
		With(wire.TaskIDHeader, t.ID)
	p.ID = t.ID
	return p
}
