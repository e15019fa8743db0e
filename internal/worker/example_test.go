package worker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/worker"
)

var (
	errNoLetters = errors.New("there is no letter in it")
	errClosed    = errors.New("the shop is closed")
)

// A shout is a Handler that writes texts in capitals.
type shout struct{ open func() bool }

func (s shout) Handle(ctx context.Context, t task.Task) (string, error) {
	switch {
	case ctx.Err() != nil: // the worker stops: the task returns to the queue
		return "", ctx.Err()
	case !s.open(): // the task is retried, and this attempt is not counted
		return "", &worker.Error{Outcome: worker.Later, Err: errClosed}
	case strings.ToUpper(t.Text) == t.Text: // no attempt can succeed: a dead letter
		return "", &worker.Error{Outcome: worker.Never, Err: errNoLetters}
	}
	return strings.ToUpper(t.Text), nil
}

// A handler returns the processed text, or an error that says what becomes of
// the task. Any error that is no worker.Error is a failed attempt.
func ExampleHandler() {
	open := true
	var h worker.Handler = shout{open: func() bool { return open }}
	handle := func(text string) {
		result, err := h.Handle(context.Background(), task.Task{ID: task.NewID(), Text: text})
		fmt.Printf("%q %v\n", result, err)
	}
	handle("abc")
	handle("123")
	open = false
	handle("abc")
	// Output:
	// "ABC" <nil>
	// "" there is no letter in it
	// "" the shop is closed
}
