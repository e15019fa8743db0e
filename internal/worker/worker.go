// Package worker takes tasks, has them handled, publishes the results, and
// acknowledges the tasks, in this order: a task is done at least once.
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/revq/revq/internal/task"
)

// A Handler handles tasks.
type Handler interface {
	// Handle returns the processed text of t. An error means that this attempt
	// failed, unless it is an Error with another outcome. Handle must return
	// at once when ctx ends.
	Handle(ctx context.Context, t task.Task) (string, error)
}

// A Publisher hands messages to the broker. The channels get exactly one value,
// within the publisher's own deadline: nil once the broker has confirmed.
type Publisher interface {
	// PublishResult sends r to the listeners.
	PublishResult(r task.Result) <-chan error

	// PublishTask sends t to the end of the queue, as a task that was never
	// attempted.
	PublishTask(t task.Task) <-chan error

	// PublishDead sends t to the dead letters, with the reason.
	PublishDead(t task.Task, reason string) <-chan error
}

// A Delivery is a task on loan. Exactly one of Ack, Reject, Refuse and Requeue
// ends the loan.
type Delivery interface {
	Task() (task.Task, error) // the error says why the task can never be handled
	Attempt() int64           // counts the deliveries of this task, from 1
	Ack() error               // it is done
	Reject() error            // this attempt failed
	Refuse() error            // no attempt can succeed
	Requeue() error           // the attempt was not finished
}

// The bounds of the waits between attempts to publish a result. Nothing is lost
// meanwhile: the task stays unacknowledged.
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

	busy   atomic.Int64
	gate   *gate
	counts *counts
}

// New returns a Worker that has h handle tasks and publishes to results.
func New(cfg Config, h Handler, results Publisher, log *slog.Logger) *Worker {
	return &Worker{cfg: cfg, handler: h, results: results, log: log, gate: newGate(), counts: newCounts()}
}

// Busy returns how many tasks are running.
func (w *Worker) Busy() int { return int(w.busy.Load()) }

// Status says in a few words how much there is to do.
func (w *Worker) Status() string {
	return fmt.Sprintf("%d of %d tasks running", w.Busy(), w.cfg.Concurrency)
}

// Ready returns why no tasks are attempted at present; nil if they are.
func (w *Worker) Ready() error { return w.gate.err() }

// Handle handles one delivery and ends its loan. ctx ends with the cause
// context.Canceled when the worker is told to stop, or with another cause when
// the session of the delivery has ended. A task that is not handled yet then
// returns to the queue at once.
func (w *Worker) Handle(ctx context.Context, d Delivery) {
	w.busy.Add(1)
	defer w.busy.Add(-1)
	t, err := d.Task()
	defer w.counts.end(w.counts.begin(t, d.Attempt()))
	if err == nil && len(t.Text) > w.cfg.MaxText {
		err = fmt.Errorf("%w (--max-text)", task.CheckText(t.Text, w.cfg.MaxText))
	}
	if err != nil {
		w.about(t, d).Error("refused a task that cannot be handled", "error", err)
		w.settled(t, d, "refuse", d.Refuse())
		return
	}
	t.Failed = d.Attempt() - 1
	t.Last = t.Attempt() > w.cfg.DeliveryLimit
	held := time.Now().Add(min(maxHold, w.cfg.ConsumerTimeout/4))
	for wait := pauseMin; ; wait = min(2*wait, pauseMax) {
		var round int
		err := context.Cause(ctx)
		if err == nil || !w.cfg.Drain { // a worker that drains begins no more tasks
			round, err = w.gate.enter(ctx, held)
		}
		switch {
		case errors.Is(err, errHeld):
			w.republish(t, d)
			return
		case err != nil:
			w.settled(t, d, "return", d.Requeue())
			return
		}
		if again := w.try(ctx, t, d, round); !again {
			return
		}
		if !w.gate.rest(ctx, wait, held) {
			w.republish(t, d)
			return
		}
	}
}

// try makes one attempt. It returns true if the task must be attempted again.
// Otherwise it has ended the loan.
func (w *Worker) try(ctx context.Context, t task.Task, d Delivery, round int) (again bool) {
	handling, cancel := w.handlingContext(ctx)
	defer cancel()
	text, err := w.attempt(handling, t)
	outcome := outcomeOf(handling, err)
	w.note(round, outcome, err)
	switch {
	case outcome == Later || outcome == Misconfigured:
		w.about(t, d).Info("a task will be tried again later", "error", err)
		return true
	case outcome == Stopped:
		w.settled(t, d, "return", d.Requeue())
	case outcome == Never:
		w.bury(t, d, err)
	case outcome == Failed:
		w.about(t, d).Error("an attempt failed", "error", err)
		w.settled(t, d, "reject", d.Reject())
	case w.publish(handling, t, d, text):
		w.settled(t, d, "acknowledge", d.Ack())
	default:
		w.settled(t, d, "return", d.Requeue())
	}
	return false
}

// handlingContext returns the context for an attempt. It ends with ctx. If the
// worker drains, a stop ends it only after the DrainTimeout.
func (w *Worker) handlingContext(ctx context.Context) (context.Context, func()) {
	if !w.cfg.Drain {
		return ctx, func() {}
	}
	handling, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
			cancel(cause) // the session has ended, and another worker gets the task
			return
		}
		timer := time.NewTimer(w.cfg.DrainTimeout)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel(errDrained)
		case <-ended:
		}
	})
	return handling, func() {
		stop()
		close(ended)
		cancel(nil)
	}
}

var errDrained = errors.New("the worker was told to stop, and the time for running tasks is over")

// note passes the outcome of an attempt to the gate, and logs when tasks begin
// or cease to wait.
func (w *Worker) note(round int, o Outcome, err error) {
	w.counts.attempts[o].Add(1)
	switch is, wait, changed := w.gate.ended(round, o, err); {
	case changed && is == paused && o != Stopped:
		w.log.Warn("the handler is out of order; tasks wait", "error", err, "wait", wait.Round(time.Millisecond))
	case changed && is == working:
		w.log.Info("the handler works again")
	}
}

// bury makes t a dead letter with the reason. The broker could make it one,
// too, but without the reason.
func (w *Worker) bury(t task.Task, d Delivery, why error) {
	w.about(t, d).Error("a task becomes a dead letter: the handler says that no attempt can succeed", "error", why)
	if err := <-w.results.PublishDead(t, reason(why)); err != nil {
		w.about(t, d).Warn("could not publish a dead letter; the broker will make it one without the reason", "error", err)
		w.settled(t, d, "refuse", d.Refuse())
		return
	}
	w.settled(t, d, "acknowledge", d.Ack())
}

// republish sends a task that the handler could not take to the end of the
// queue. It publishes the task again rather than return it: before RabbitMQ
// 4.3, a return counts as a failed attempt, and a few of those make a dead
// letter.
func (w *Worker) republish(t task.Task, d Delivery) {
	if err := <-w.results.PublishTask(t); err != nil {
		w.about(t, d).Warn("could not publish a task again; it is returned instead", "error", err)
		w.settled(t, d, "return", d.Requeue())
		return
	}
	w.settled(t, d, "acknowledge", d.Ack())
}

// attempt calls the handler. A panic in it is an error like any other.
func (w *Worker) attempt(ctx context.Context, t task.Task) (text string, err error) {
	defer func(began time.Time) {
		w.counts.handling.Add(time.Since(began))
		if p := recover(); p != nil {
			err = fmt.Errorf("the handler panicked: %v\n%s", p, debug.Stack())
		}
	}(time.Now())
	return w.handler.Handle(ctx, t)
}

// publish publishes the result of t, again and again until the broker has
// confirmed it or ctx ends. When ctx ends, publish still waits for the answer
// to a result in flight: the work is done, and the publisher answers soon.
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

// settled logs an error at the end of a loan. It means that the session has
// ended: the broker then delivers the task again. If its result has been
// published already, the socket servers drop the second one.
func (w *Worker) settled(t task.Task, d Delivery, what string, err error) {
	if err != nil {
		w.about(t, d).Warn("could not settle a task; the broker will deliver it again", "action", what, "error", err)
	}
}

// about returns a log for messages about a task. Most tasks need none.
func (w *Worker) about(t task.Task, d Delivery) *slog.Logger {
	return w.log.With("task", t.ID, "attempt", d.Attempt())
}
