// Package worker takes tasks, has them handled, publishes the results, and
// acknowledges the tasks, in this order: a task is done at least once.
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"math/rand/v2"
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

// A Reporter is a Handler that can tell how far it is.
type Reporter interface {
	Handler

	// HandleReporting is Handle. Meanwhile it calls report, which never blocks,
	// as often as it likes.
	HandleReporting(ctx context.Context, t task.Task, report func(progress string)) (string, error)
}

// A Publisher hands messages to the broker. The channels get exactly one value,
// within the publisher's own deadline: nil once the broker has confirmed.
type Publisher interface {
	// PublishResult sends r to the listeners.
	PublishResult(r task.Result) <-chan error

	// PublishTask sends t to the end of its queue, with everything that is
	// known of it. If t.NotBefore is in the future, t waits until then outside
	// of the queue.
	PublishTask(t task.Task) <-chan error

	// PublishDead sends t to the dead letters, with the reason and with what
	// its handler said at last on its standard error. The same message tells
	// listeners the reason.
	PublishDead(t task.Task, reason, said string) <-chan error
}

// A Delivery is a task on loan. Exactly one of Ack, Reject, Refuse and Requeue
// ends the loan.
type Delivery interface {
	Task() (task.Task, error) // the error says why the task can never be handled
	Attempt() int64           // counts the deliveries of this message, from 1
	Ack() error               // it is done
	Reject() error            // return it to the queue, as a failed attempt
	Refuse() error            // no attempt can succeed
	Requeue() error           // return it to the queue
}

// The bounds of the waits between attempts to publish a message. Nothing is lost
// meanwhile: the task stays unacknowledged.
const (
	publishRetryMin = 100 * time.Millisecond
	publishRetryMax = 5 * time.Second
	resultRetryMax  = 500 * time.Millisecond // listeners wait

	// publishLimit is how long a worker attempts to publish a task again or as
	// a dead letter. Then it leaves the task to the broker, which can do
	// either in its own, poorer way. For a result there is no limit.
	publishLimit = time.Minute
)

// A Worker handles deliveries.
type Worker struct {
	cfg      Config
	handler  Handler
	reporter Reporter // the handler, if it is one; nil otherwise
	broker   Publisher
	log      *slog.Logger

	busy   atomic.Int64
	limit  atomic.Int64 // of an attempt, in nanoseconds; 0 for the handler's own. See TookBack.
	gate   *gate
	counts *counts
}

// New returns a Worker that has h handle tasks and publishes to broker.
func New(cfg Config, h Handler, broker Publisher, log *slog.Logger) *Worker {
	w := &Worker{cfg: cfg, handler: h, broker: broker, log: log, gate: newGate(cfg.Concurrency), counts: newCounts()}
	w.reporter, _ = h.(Reporter)
	return w
}

// Busy returns how many tasks are running.
func (w *Worker) Busy() int { return int(w.busy.Load()) }

// Status says in a few words how much there is to do.
func (w *Worker) Status() string {
	return fmt.Sprintf("%d of %d tasks running", w.Busy(), w.cfg.Concurrency)
}

// Ready returns why no tasks are attempted at present; nil if they are.
func (w *Worker) Ready() error { return w.gate.err() }

// TookBack says that the broker takes tasks back after its consumer_timeout, which
// may be shorter than the worker was told. Attempts then end within half of it:
// those that would take longer fail, and the built-in handler pauses for less.
// Otherwise the broker would take the same tasks back again and again, and
// those that this worker has beside them, until it gives them up.
func (w *Worker) TookBack(consumerTimeout time.Duration) {
	limit := consumerTimeout / 2
	if consumerTimeout >= w.cfg.ConsumerTimeout || w.limit.Swap(int64(limit)) == int64(limit) {
		return // as it was told, or learned before
	}
	w.log.Error("the broker takes tasks back sooner than this worker was told; from now on attempts end within half of that time: raise consumer_timeout at the broker, or lower --consumer-timeout and what it bounds here",
		"consumer_timeout", consumerTimeout, "told", w.cfg.ConsumerTimeout, "limit", limit)
}

// Handle handles one delivery and ends its loan. ctx ends with the cause
// context.Canceled when the worker is told to stop, or with another cause when
// the session of the delivery has ended. A task that is not handled yet then
// returns to the queue at once.
func (w *Worker) Handle(ctx context.Context, d Delivery) {
	w.busy.Add(1)
	defer w.busy.Add(-1)
	t, err := d.Task()
	defer w.counts.end(w.counts.begin(t))
	if err == nil && len(t.Text) > w.cfg.MaxText {
		err = fmt.Errorf("%w (--max-text)", task.CheckText(t.Text, w.cfg.MaxText))
	}
	if err != nil {
		w.about(t).Error("refused a task that cannot be handled", "error", err)
		w.settled(t, "refuse", d.Refuse())
		return
	}
	t.Last = t.Failed >= w.cfg.Retries
	if next := before(t, d.Attempt(), w.cfg.DeliveryLimit, time.Now()); next.step != attempt {
		w.take(ctx, next, t, d)
		return
	}
	round, err := w.enter(ctx)
	switch {
	case errors.Is(err, errHeld):
		w.take(ctx, decision{step: sendOn, task: t}, t, d)
	case err != nil:
		w.take(ctx, decision{step: giveBack}, t, d)
	default:
		next := before(t, d.Attempt(), w.cfg.DeliveryLimit, time.Now()) // it may have waited
		if next.step == attempt {
			w.try(ctx, t, d, round)
			return
		}
		w.gate.ended(round, Stopped, false, nil)
		w.take(ctx, next, t, d)
	}
}

// enter waits until a task may be attempted, as gate.enter does.
func (w *Worker) enter(ctx context.Context) (round int, err error) {
	if err := context.Cause(ctx); err != nil && w.cfg.Drain {
		return 0, err // a worker that drains begins no more tasks
	}
	hold := min(maxHold, w.cfg.ConsumerTimeout/4)
	if limit := time.Duration(w.limit.Load()); limit > 0 {
		hold = min(hold, limit/2)
	}
	return w.gate.enter(ctx, time.Now().Add(hold))
}

// try makes one attempt, and does with the task what its outcome says.
func (w *Worker) try(ctx context.Context, t task.Task, d Delivery, round int) {
	ctx, cancel := w.handlingContext(ctx)
	defer cancel()
	text, err := w.attemptWithin(ctx, t, time.Duration(w.limit.Load()))
	outcome := outcomeOf(ctx, err)
	w.note(round, outcome, t.Failed == 0, err)
	next := after(t, outcome, err, w.cfg.Retries, time.Now(), rand.Float64())
	if next.step == finish && w.publishResult(ctx, t, text) {
		w.settled(t, "acknowledge", d.Ack())
		return
	}
	if next.step == sendOn {
		w.about(t).Warn("an attempt did not succeed; there will be another one", "error", err,
			"counted", next.counted, "wait", time.Until(next.task.NotBefore).Round(time.Second))
		w.counts.retry(next.task, err)
	}
	w.take(ctx, next, t, d)
}

// take does with t what was decided.
func (w *Worker) take(ctx context.Context, next decision, t task.Task, d Delivery) {
	switch {
	case lost(ctx) || next.step == finish: // or nobody takes the result
		w.giveBack(ctx, t, d)
	case next.step == giveUp:
		w.giveUp(ctx, t, d, next.why)
	case next.step == sendOn && next.counted:
		w.sendOn(ctx, next.task, d, d.Reject)
	case next.step == sendOn:
		w.sendOn(ctx, next.task, d, d.Requeue)
	default:
		w.giveBack(ctx, t, d)
	}
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
		if lost(ctx) {
			cancel(context.Cause(ctx)) // another worker gets the task
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

// errDrained wraps context.Canceled, since the session of the task goes on.
var errDrained = fmt.Errorf("the worker was told to stop, and the time for running tasks is over: %w", context.Canceled)

// lost reports whether ctx has ended with the session of a delivery: the broker
// has taken the task back and delivers it again.
func lost(ctx context.Context) bool {
	return ctx.Err() != nil && !errors.Is(context.Cause(ctx), context.Canceled)
}

// note passes the outcome of an attempt to the gate, and logs when tasks begin
// or cease to wait.
func (w *Worker) note(round int, o Outcome, first bool, err error) {
	w.counts.attempts[o].Add(1)
	switch is, wait, changed := w.gate.ended(round, o, first, err); {
	case changed && is.phase == paused && o != Stopped:
		w.log.Warn("the handler is out of order; tasks wait", "error", err, "wait", wait.Round(time.Millisecond))
	case changed && is.phase == working && is.given:
		w.log.Warn("attempts have failed for a long time; tasks wait no longer for the handler, but each for its next attempt", "error", err)
	case changed && is.phase == working:
		w.log.Info("the handler works again")
	}
}

// noDeadQueueWait is how long a task waits for its next attempt when it should
// be given up and nothing would keep it: until somebody has run revq setup.
const noDeadQueueWait = time.Minute

// giveUp makes t a dead letter with the reason. The broker could make it one,
// too, but without the reason.
func (w *Worker) giveUp(ctx context.Context, t task.Task, d Delivery, why error) {
	w.about(t).Error("a task is given up and becomes a dead letter", "error", why)
	reason, said := told(why)
	err := w.publish(ctx, publishLimit, t, "dead letter", func() <-chan error { return w.broker.PublishDead(t, reason, said) })
	if errors.Is(err, task.ErrNoDeadQueue) {
		t.NotBefore = time.Now().Add(noDeadQueueWait)
		w.sendOn(ctx, t, d, d.Requeue)
		return
	}
	if err != nil {
		w.about(t).Warn("could not publish a dead letter; the broker will make it one without the reason", "error", err)
		w.settled(t, "refuse", d.Refuse())
		return
	}
	w.settled(t, "acknowledge", d.Ack())
}

// sendOn publishes t again, to its queue or to wait outside of it. If that
// fails, otherwise ends the loan.
func (w *Worker) sendOn(ctx context.Context, t task.Task, d Delivery, otherwise func() error) {
	err := w.publish(ctx, publishLimit, t, "task", func() <-chan error { return w.broker.PublishTask(t) })
	if err != nil {
		w.about(t).Warn("could not publish a task again; it is returned to the queue instead", "error", err)
		w.settled(t, "return", otherwise())
		return
	}
	w.settled(t, "acknowledge", d.Ack())
}

// giveBack returns t to the queue as it was, so that no attempt is counted.
func (w *Worker) giveBack(ctx context.Context, t task.Task, d Delivery) {
	if lost(ctx) {
		_ = d.Requeue() // fails: the broker has taken it back
		w.about(t).Warn("the session with the broker has ended; the broker will deliver the task again")
		return
	}
	if mayReturn(d.Attempt()) {
		w.settled(t, "return", d.Requeue())
		return
	}
	w.sendOn(ctx, t, d, d.Requeue)
}

// attemptWithin is attempt with a limit, unless that is 0.
func (w *Worker) attemptWithin(ctx context.Context, t task.Task, limit time.Duration) (text string, err error) {
	if limit == 0 {
		return w.attempt(ctx, t)
	}
	within, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	text, err = w.attempt(within, t)
	if err != nil && within.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("it took longer than %v, half of the broker's consumer_timeout", limit)
	}
	return text, err
}

// attempt calls the handler. A panic in it is an error like any other.
func (w *Worker) attempt(ctx context.Context, t task.Task) (text string, err error) {
	defer func(began time.Time) {
		w.counts.handling.Add(time.Since(began))
		if p := recover(); p != nil {
			w.about(t).Error("the handler panicked", "error", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("the handler panicked: %v", p) // which listeners may be told
		}
	}(time.Now())
	if w.reporter == nil {
		return w.handler.Handle(ctx, t)
	}
	return w.report(ctx, t)
}

// report calls a handler that can tell how far it is. It is not a part of
// attempt, where it would cost an allocation for every task.
func (w *Worker) report(ctx context.Context, t task.Task) (text string, err error) {
	p := &progress{publish: func(text string) {
		w.broker.PublishResult(task.Result{Kind: task.Progress, ID: t.ID, Queue: t.Queue, Text: text, Accepted: t.Accepted, Trace: t.Trace})
	}}
	defer p.end()
	return w.reporter.HandleReporting(ctx, t, p.report)
}

// publishResult publishes the result of t.
func (w *Worker) publishResult(ctx context.Context, t task.Task, text string) bool {
	r := task.Result{ID: t.ID, Queue: t.Queue, Text: text, Of: task.DigestOf(t.Text), Accepted: t.Accepted, Done: time.Now(), Trace: t.Trace}
	return w.publish(ctx, noLimit, t, "result", func() <-chan error { return w.broker.PublishResult(r) }) == nil
}

// noLimit is for messages that are published at some time.
const noLimit = 1<<63 - 1

// publish calls send again and again until the broker has confirmed the
// message, the limit is over or ctx ends. Then it returns the last error. When
// ctx ends, publish still waits for the answer to a message in flight, which
// comes soon.
func (w *Worker) publish(ctx context.Context, limit time.Duration, t task.Task, what string, send func() <-chan error) error {
	began := time.Now()
	wait, longest := publishRetryMin, publishRetryMax
	if limit == noLimit {
		longest = resultRetryMax
	}
	for tries := uint(1); ; tries++ {
		err := <-send()
		if err == nil {
			return nil
		}
		if time.Since(began)+wait > limit || errors.Is(err, task.ErrNoDeadQueue) {
			return err
		}
		level := slog.LevelDebug
		if bits.OnesCount(tries) == 1 { // less and less often
			level = slog.LevelWarn
		}
		w.about(t).Log(ctx, level, "a message was not published; will try again", "what", what, "error", err, "tries", tries)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
		wait = min(2*wait, longest)
	}
}

// settled logs an error at the end of a loan. It means that the session has
// ended: the broker then delivers the task again. If its result has been
// published already, the socket servers drop the second one.
func (w *Worker) settled(t task.Task, what string, err error) {
	if err != nil {
		w.about(t).Warn("could not settle a task; the broker will deliver it again", "action", what, "error", err)
	}
}

// about returns a log for messages about a task. Most tasks need none.
func (w *Worker) about(t task.Task) *slog.Logger {
	return w.log.With("task", t.ID, "attempt", t.Attempt())
}
