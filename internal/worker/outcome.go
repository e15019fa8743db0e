package worker

import (
	"context"
	"errors"
)

// An Outcome says how an attempt ended, and so what the worker does with the
// task.
type Outcome int

// The outcomes. Done and Stopped are never those of an Error.
const (
	Done          Outcome = iota
	Failed                // counts as an attempt; the task is retried after a wait
	Never                 // no attempt can succeed: the task becomes a dead letter
	Later                 // not the task's fault: the task is retried, and the attempt is not counted
	Misconfigured         // the handler cannot be started or reached: like Later, and tasks wait until it can
	Stopped               // the attempt was cut short: the task returns to the queue, and the attempt is not counted
)

// An Error is an error of a Handler with the outcome of the attempt. Any other
// error means Failed.
type Error struct {
	Outcome Outcome
	Err     error

	// Said is the end of what the handler wrote to its standard error. It goes
	// into the dead letter. It is not part of the message, since it was logged
	// when it was written.
	Said string
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// outcomeOf returns the outcome of an attempt with ctx that returned err.
func outcomeOf(ctx context.Context, err error) Outcome {
	if err == nil {
		return Done
	}
	if ctx.Err() != nil {
		return Stopped
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Outcome
	}
	return Failed
}
