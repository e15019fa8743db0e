// Package worker takes tasks, has them handled, publishes the results, and
// acknowledges the tasks, in this order: a task is done at least once.
package worker

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/revq/revq/internal/task"
)

// A Handler does the job.
type Handler interface {
	// Handle returns the processed text of t. An error means that this
	// attempt failed. It returns at once when ctx ends.
	Handle(ctx context.Context, t task.Task) (string, error)
}

// A Publisher hands results to the broker.
type Publisher interface {
	// PublishResult sends r. The channel gets exactly one value, within the
	// publisher's own deadline: nil once the broker has confirmed r.
	PublishResult(r task.Result) <-chan error
}

// A Delivery is a task on loan. Exactly one of Ack, Reject, Refuse and Requeue
// ends the loan.
type Delivery interface {
	Task() (task.Task, error) // the error says why it cannot be handled, ever
	Attempt() int64           // counts the deliveries of this task, from 1
	Ack() error               // it is done
	Reject() error            // this attempt failed
	Refuse() error            // no attempt can succeed
	Requeue() error           // it was not attempted to the end
}

// The waits between attempts to publish a result. Nothing is lost meanwhile:
// the task stays unacknowledged.
const (
	publishRetryMin = 100 * time.Millisecond
	publishRetryMax = 5 * time.Second
)

// A Worker handles deliveries.
type Worker struct {
	cfg     Config
	handler Handler
	results Publisher
	log     *slog.Logger

	busy atomic.Int64
}

// New returns a Worker that has tasks handled by h and sends what comes of it
// to results.
func New(cfg Config, h Handler, results Publisher, log *slog.Logger) *Worker {
	return &Worker{cfg: cfg, handler: h, results: results, log: log}
}

// Busy returns how many tasks are in hand.
func (w *Worker) Busy() int { return int(w.busy.Load()) }

// Status says in a few words how much there is to do.
func (w *Worker) Status() string {
	return fmt.Sprintf("%d of %d tasks in hand", w.Busy(), w.cfg.Concurrency)
}

// Handle sees one delivery to its end. ctx ends when the worker is to stop or
// when the delivery has become void because its session ended: then a task
// that is not handled yet goes back, unharmed and at once.
func (w *Worker) Handle(ctx context.Context, d Delivery) {
	w.busy.Add(1)
	defer w.busy.Add(-1)
	t, err := d.Task()
	if err == nil && len(t.Text) > w.cfg.MaxText {
		err = fmt.Errorf("%w (--max-text)", task.CheckText(t.Text, w.cfg.MaxText))
	}
	if err != nil {
		w.about(t, d).Error("refused a task that cannot be handled", "error", err)
		w.settled(t, d, "refuse", d.Refuse())
		return
	}
	text, err := w.attempt(ctx, t)
	switch {
	case err != nil && ctx.Err() != nil:
		w.settled(t, d, "give back", d.Requeue())
	case err != nil:
		w.about(t, d).Error("an attempt failed", "error", err)
		w.settled(t, d, "reject", d.Reject())
	case w.publish(ctx, t, d, text):
		w.settled(t, d, "acknowledge", d.Ack())
	default:
		w.settled(t, d, "give back", d.Requeue())
	}
}

// attempt calls the handler; a panic in it is an error like any other.
func (w *Worker) attempt(ctx context.Context, t task.Task) (text string, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the handler panicked: %v\n%s", p, debug.Stack())
		}
	}()
	return w.handler.Handle(ctx, t)
}

// publish sends the result of t until the broker has confirmed it, or ctx ends.
// An attempt under way when ctx ends is waited for: the work is done, and the
// publisher answers soon.
func (w *Worker) publish(ctx context.Context, t task.Task, d Delivery, text string) bool {
	r := task.Result{ID: t.ID, Text: text, Of: task.DigestOf(t.Text), Accepted: t.Accepted, Done: time.Now()}
	for wait := publishRetryMin; ; wait = min(2*wait, publishRetryMax) {
		err := <-w.results.PublishResult(r)
		if err == nil {
			return true
		}
		w.about(t, d).Warn("a result was not published; will try again", "error", err, "wait", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return false
		}
	}
}

// settled looks at how the loan of a task ended. An error means that the session
// has ended, and then the broker gives the task to another worker by itself. If
// its result is out already, the listeners' servers drop the second one.
func (w *Worker) settled(t task.Task, d Delivery, what string, err error) {
	if err != nil {
		w.about(t, d).Warn("could not settle a task; the broker will deliver it again", "action", what, "error", err)
	}
}

// about returns the log for what is worth telling of a task. Of most there is nothing.
func (w *Worker) about(t task.Task, d Delivery) *slog.Logger {
	return w.log.With("task", t.ID, "attempt", d.Attempt())
}
