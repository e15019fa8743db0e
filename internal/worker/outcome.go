package worker

import (
	"context"
	"errors"
)

// An Outcome is what came of an attempt, and so what is done with the task.
type Outcome int

// The outcomes. Done and Stopped are never those of an Error.
const (
	Done          Outcome = iota
	Failed                // counts as an attempt; the task is tried again
	Never                 // no attempt can succeed: the task becomes a dead letter
	Later                 // not the task's fault: tried again, not counted
	Misconfigured         // the handler cannot be started or reached: as Later, and tasks wait until it can
	Stopped               // the attempt was cut short: the task goes back
)

// An Error is the error of a Handler that says what came of the attempt. Any
// other error stands for Failed.
type Error struct {
	Outcome Outcome
	Err     error

	// Said is the end of what the handler wrote to its standard error. It goes
	// into the dead letter, and is not part of the message: it was logged when
	// it came.
	Said string
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// outcomeOf returns what err, returned for an attempt with ctx, stands for.
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

// reason returns what a dead letter says of err.
func reason(err error) string {
	if e, ok := errors.AsType[*Error](err); ok && e.Said != "" {
		return err.Error() + "\n" + e.Said
	}
	return err.Error()
}
