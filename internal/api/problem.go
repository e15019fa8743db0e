package api

import (
	"errors"
	"fmt"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

func badRequest(detail string) *front.Problem {
	return front.NewProblem(fasthttp.StatusBadRequest, detail)
}

var errNoBody = badRequest("there is no text: send one as " + acceptPost)

// badText is the problem that task.CheckText found.
func badText(err error) *front.Problem {
	if errors.Is(err, task.ErrTooLong) {
		return front.NewProblem(fasthttp.StatusRequestEntityTooLarge, err.Error())
	}
	return badRequest(err.Error())
}

// otherText is the problem that a batch has two texts under one id.
func otherText(id string) *front.Problem {
	return front.NewProblem(fasthttp.StatusUnprocessableEntity, fmt.Sprintf(
		"an earlier line has another text under the id %q: give each text its own id", id))
}

// busy is the problem that MaxInFlight tasks wait for the broker.
func (s *Server) busy() *front.Problem {
	return front.NewProblem(fasthttp.StatusTooManyRequests, fmt.Sprintf(
		"%d texts are waiting for the broker already: send this one again in a second", s.cfg.MaxInFlight))
}

// unconfirmed is the problem that the task id is not known to be queued.
func unconfirmed(id string, err error) *front.Problem {
	p := front.NewProblem(fasthttp.StatusServiceUnavailable, err.Error()+": send the text again with this id").
		With(wire.TaskIDHeader, id)
	p.ID = id
	return p
}
