package worker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/reverse"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
	"github.com/revq/revq/internal/worker"
)

func TestResults(t *testing.T) {
	t.Parallel()
	r := setup(t)
	_, stop := r.work("worker", 10, reverse.New(reverse.Config{PausePerChar: time.Millisecond, MaxPause: time.Second}))
	began := time.Now()
	sent := map[string]task.Task{}
	var all []task.Task
	for i := range 50 {
		tk := newTask(i)
		sent[tk.ID] = tk
		all = append(all, tk)
	}
	r.publish(all...)
	for range all {
		got := receive(t, "result", r.results)
		tk, ok := sent[got.ID]
		if !ok {
			t.Fatalf("%s came twice, or was never sent", got.ID)
		}
		delete(sent, got.ID)
		if got.Text != reverse.Reverse(tk.Text) || !got.Accepted.Equal(tk.Accepted.Truncate(time.Microsecond)) {
			t.Errorf("the result of %+v is %+v", tk, got)
		}
		if got.Done.Before(began.Truncate(time.Microsecond)) || got.Done.After(time.Now()) {
			t.Errorf("%s was done at %v", got.ID, got.Done)
		}
	}
	stop()
	if n := r.left(rabbit.TasksQueue); n != 0 {
		t.Errorf("%d tasks were not acknowledged", n)
	}
}

// A task that no attempt can handle is retried after a wait, in which other
// tasks are handled, and then becomes a dead letter.
func TestFailures(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func() (string, error){
		"panic": func() (string, error) { panic("a bug") },
		"error": func() (string, error) { return "", errors.New("no luck") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := setup(t)
			h, began := begun(handlerFunc(func(_ context.Context, tk task.Task) (string, error) {
				if tk.ID == newTask(1).ID {
					return fail()
				}
				return tk.Text, nil
			}))
			w, _ := r.work("worker", 1, h)
			r.publish(newTask(1))
			if got := receive(t, "first attempt", began); got.Attempt() != 1 || got.Last {
				t.Errorf("first attempt: %+v", got)
			}
			failed := time.Now()
			r.publish(newTask(2))
			receive(t, "attempt of another task", began)
			if got := receive(t, "result of the next task", r.results); got.ID != newTask(2).ID {
				t.Errorf("the result is of %s", got.ID)
			}
			if got := receive(t, "second attempt", began); got.Attempt() != 2 || !got.Last || got.ID != newTask(1).ID {
				t.Errorf("second attempt: %+v", got)
			}
			if waited := time.Since(failed); waited < 900*time.Millisecond {
				t.Errorf("the second attempt began after %v", waited)
			}
			r.eventually("dead", func() error {
				d, ok, err := r.ch.Get(rabbit.DeadQueue, true)
				if err != nil || !ok {
					return fmt.Errorf("no dead letter (%v)", err)
				}
				if d.MessageId != newTask(1).ID {
					t.Errorf("the dead letter is %s", d.MessageId)
				}
				return nil
			})
			if len(began) != 0 {
				t.Errorf("%d attempts too many", len(began))
			}
			r.eventually("idle", func() error {
				if n := w.Busy(); n != 0 {
					return fmt.Errorf("busy with %d", n)
				}
				return nil
			})
		})
	}
}

// A task whose workers are lost again and again is given up by a worker, and not
// by the broker, which may do so while it begins again and cannot tell anybody.
// The queue is one of any version.
func TestLostTooOften(t *testing.T) {
	t.Parallel()
	r := setup(t)
	h, began := begun(handlerFunc(func(ctx context.Context, tk task.Task) (string, error) {
		<-ctx.Done()
		return "", ctx.Err()
	}))
	r.work("worker", 1, h)
	r.publish(newTask(1))
	for range task.DeliveryLimit {
		receive(t, "attempt", began)
		r.eventually("cut", func() error {
			if n := rabbittest.CloseConnections(t, rabbittest.Shared(t), r.url, "worker consumer"); n != 1 {
				return fmt.Errorf("the worker has %d connections", n)
			}
			return nil
		})
	}
	told := receive(t, "what listeners are told", r.told)
	if told.Kind != task.GivenUp || told.ID != newTask(1).ID || told.Text != "its workers died or lost their connection, 5 times in all (--delivery-limit)" {
		t.Errorf("told %+v", told)
	}
	if n := len(began); n != 0 {
		t.Errorf("%d attempts too many", n)
	}
	r.eventually("acknowledged", func() error {
		if n := r.left(rabbit.TasksQueue); n != 0 || r.left(rabbit.DeadQueue) != 1 {
			return fmt.Errorf("%d tasks are left, and %d dead letters", n, r.left(rabbit.DeadQueue))
		}
		return nil
	})
}

func TestForeignMessageIsRefused(t *testing.T) {
	t.Parallel()
	maxText := worker.DefaultConfig().MaxText
	r := setup(t)
	h, began := begun(reverse.New(reverse.Config{}))
	var out *rabbittest.Output
	r.log, out = rabbittest.Log(t)
	r.work("worker", 1, h)
	for _, tc := range []struct {
		id   string
		body []byte
		says string
	}{
		{"not-a-text", []byte{0xff}, "UTF-8"},
		{"too-long", bytes.Repeat([]byte("x"), maxText+1), "1048577 bytes, at most 1048576 are taken (--max-text)"},
	} {
		if err := r.ch.Publish(rabbit.Exchange, "tasks", true, false, amqp.Publishing{MessageId: tc.id, Body: tc.body}); err != nil {
			t.Fatal(err)
		}
		r.eventually("dead", func() error {
			d, ok, err := r.ch.Get(rabbit.DeadQueue, true)
			if err != nil || !ok || d.MessageId != tc.id {
				return fmt.Errorf("the dead letter is %q (%v, %v)", d.MessageId, ok, err)
			}
			return nil
		})
		if said := out.String(); !strings.Contains(said, tc.says) {
			t.Errorf("%s: %s", tc.id, said)
		}
	}
	if len(began) > 0 {
		t.Error("the handler was called")
	}
	longest := task.Task{ID: "longest", Text: strings.Repeat("x", maxText)}
	r.publish(longest)
	if got := receive(t, "result", r.results); got.ID != longest.ID || len(got.Text) != maxText {
		t.Errorf("the result of %s has %d bytes", got.ID, len(got.Text))
	}
}

// Two workers share the tasks. What one held when it was cut off, or stopped,
// the other one does.
func TestOneWorkerGoesAway(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]func(r *rig, stop func()){
		"cut off": func(r *rig, _ func()) {
			if n := rabbittest.CloseConnections(r.t, rabbittest.Shared(r.t), r.url, "first consumer"); n != 1 {
				r.t.Errorf("%d connections were closed, want 1", n)
			}
		},
		"stopped": func(_ *rig, stop func()) { stop() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := setup(t)
			h, began := begun(reverse.New(reverse.Config{PausePerChar: 50 * time.Millisecond, MaxPause: 300 * time.Millisecond}))
			_, stop := r.work("first", 2, h)
			var all []task.Task
			for i := range 20 {
				all = append(all, newTask(i))
			}
			r.publish(all...)
			r.work("second", 2, reverse.New(reverse.Config{PausePerChar: 10 * time.Millisecond, MaxPause: time.Second}))
			receive(t, "task at the first worker", began)
			away(r, stop)
			seen := map[string]bool{}
			for len(seen) < len(all) {
				seen[receive(t, "result", r.results).ID] = true
			}
			if n := r.left(rabbit.DeadQueue); n != 0 {
				t.Errorf("%d tasks are dead", n)
			}
		})
	}
}

func TestStopInAPause(t *testing.T) {
	t.Parallel()
	r := setup(t)
	h, began := begun(reverse.New(reverse.Config{PausePerChar: time.Minute, MaxPause: time.Minute}))
	_, stop := r.work("worker", 1, h)
	r.publish(newTask(1))
	receive(t, "task", began)
	stopped := time.Now()
	stop()
	if took := time.Since(stopped); took > 20*time.Second {
		t.Errorf("the stop took %v", took)
	}
	d, ok, err := r.ch.Get(rabbit.TasksQueue, true)
	if err != nil || !ok || d.MessageId != newTask(1).ID {
		t.Errorf("the queue has %q (%v, %v)", d.MessageId, ok, err)
	}
	if len(r.results) > 0 {
		t.Error("there is a result")
	}
}

// A result that the broker does not take is published when it does. Its task
// is acknowledged once.
func TestResultDuringAnAlarm(t *testing.T) {
	r := setup(t)
	release := make(chan struct{})
	h, began := begun(handlerFunc(func(_ context.Context, tk task.Task) (string, error) {
		<-release
		return tk.Text, nil
	}))
	var out *rabbittest.Output
	r.log, out = rabbittest.Log(t)
	w, stop := r.work("worker", 10, h)
	var all []task.Task
	for i := range 10 {
		all = append(all, newTask(i))
	}
	r.publish(all...)
	for range all {
		receive(t, "task", began)
	}
	node := rabbittest.Shared(t)
	rabbittest.SetAlarm(t, node)
	close(release)
	out.Says(t, "a message was not published; will try again")
	if w.Busy() == 0 {
		t.Error("no task is running")
	}
	rabbittest.ClearAlarm(t, node)
	seen := map[string]bool{}
	for len(seen) < len(all) {
		seen[receive(t, "result", r.results).ID] = true
	}
	r.eventually("acknowledged", func() error {
		if n := w.Busy(); n > 0 {
			return fmt.Errorf("%d tasks are running", n)
		}
		return nil
	})
	stop()
	if n := r.left(rabbit.TasksQueue); n != 0 {
		t.Errorf("%d tasks were not acknowledged", n)
	}
	if said := out.String(); strings.Contains(said, "could not") {
		t.Errorf("a second acknowledgement: %s", said)
	}
}

// The broker takes tasks back long before the worker was told that it does. Its
// error says when. No task is given up for that, neither those that take long
// nor those beside them.
func TestShortConsumerTimeout(t *testing.T) {
	t.Parallel()
	n := rabbittest.StartNode(t, "consumer_timeout = 2000")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := n.Eval(ctx, `application:set_env(rabbit, channel_tick_interval, 200)`); err != nil { // a minute, otherwise
		t.Fatal(err)
	}
	r := setupAt(t, rabbittest.NewVhost(t, n))
	r.work("worker", 5, reverse.New(reverse.DefaultConfig()))
	const long, short = 4, 20
	for i := range long + short {
		tk := newTask(i)
		if i < long {
			tk.Text = strings.Repeat("long", 20) // 8 s
		} else {
			tk.Text = "short"
		}
		r.publish(tk)
	}
	for range long + short {
		receive(t, "result", r.results)
	}
	if dead := r.left(rabbit.DeadQueue); dead != 0 {
		t.Errorf("%d dead letters", dead)
	}
	r.out.Says(t, "consumer_timeout=2s")
	if times := strings.Count(r.out.String(), "the broker takes tasks back"); times != 1 {
		t.Errorf("said %d times", times)
	}
}

// While a handler is out of order, tasks go back and come again more often than
// the delivery limit allows. No version of the broker counts that.
func TestOutOfOrder(t *testing.T) {
	t.Parallel()
	r := setup(t)
	var attempts atomic.Int64
	cfg := worker.DefaultConfig()
	cfg.Concurrency, cfg.ConsumerTimeout = 2, 400*time.Millisecond // a task waits for 100 ms, a pause is 500 ms or more
	h, began := begun(handlerFunc(func(_ context.Context, tk task.Task) (string, error) {
		if attempts.Add(1) <= 2 {
			return "", &worker.Error{Outcome: worker.Misconfigured, Err: errors.New("it is not there")}
		}
		if tk.Attempt() != 1 {
			return "", fmt.Errorf("it is attempt %d", tk.Attempt())
		}
		return tk.Text, nil
	}))
	w, _ := r.workAs("worker", cfg, h)
	r.publish(newTask(1), newTask(2))
	receive(t, "attempt", began)
	r.eventually("out of order", func() error {
		if w.Ready() == nil {
			return errors.New("it seems to work")
		}
		return nil
	})
	seen := map[string]bool{}
	for len(seen) < 2 {
		seen[receive(t, "result", r.results).ID] = true
	}
	if n := r.left(rabbit.DeadQueue); n != 0 {
		t.Errorf("%d tasks are dead", n)
	}
	r.eventually("acknowledged", func() error {
		if n := w.Busy() + r.left(rabbit.TasksQueue); n > 0 {
			return fmt.Errorf("%d tasks are left", n)
		}
		return nil
	})
}

// What a handler says of its progress reaches listeners before the result.
func TestProgressReachesListeners(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work("worker", 1, reporterFunc(func(_ context.Context, tk task.Task, report func(string)) (string, error) {
		report("half of it")
		return tk.Text, nil
	}))
	tk := newTask(1)
	r.publish(tk)
	got := receive(t, "progress", r.told)
	if got.Kind != task.Progress || got.ID != tk.ID || got.Text != "half of it" || got.Queue != wire.DefaultQueue {
		t.Errorf("progress %+v", got)
	}
	if got := receive(t, "result", r.results); got.Kind != task.Done || got.ID != tk.ID || got.Text != tk.Text {
		t.Errorf("result %+v", got)
	}
}

type reporterFunc func(context.Context, task.Task, func(string)) (string, error)

func (f reporterFunc) Handle(ctx context.Context, t task.Task) (string, error) {
	return f(ctx, t, func(string) {})
}

func (f reporterFunc) HandleReporting(ctx context.Context, t task.Task, report func(string)) (string, error) {
	return f(ctx, t, report)
}
