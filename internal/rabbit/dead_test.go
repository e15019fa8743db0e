package rabbit

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// letters returns what is in the dead letters.
func (r *rig) letters() []DeadLetter {
	r.t.Helper()
	var all []DeadLetter
	err := DeadLetters(r.t.Context(), r.cfg, func(l DeadLetter) (Fate, error) {
		all = append(all, l)
		return Keep, nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return all
}

// die has a consumer end each of n tasks with what end does.
func (r *rig) die(n int, end func(*Delivery) error) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		NewConsumer(r.cfg, 1, r.log).Run(ctx, func(_ context.Context, d *Delivery) { end(d) })
	}()
	eventually(r.t, "dead letters", func() error {
		if r.length(DeadQueue) < n {
			return errors.New("not all are dead yet")
		}
		return nil
	})
	cancel()
	<-done
}

func TestDeadLetters(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	r.enqueue(tasksKey, text("fails"))
	r.die(1, (*Delivery).Reject)
	r.enqueue(tasksKey, amqp.Publishing{MessageId: "odd", Body: []byte{0xff}, Headers: amqp.Table{"mine": "kept"}})
	r.die(2, (*Delivery).Refuse)

	for range 25 { // looking must not wear them out
		letters := r.letters()
		if len(letters) != 2 {
			t.Fatalf("%d letters, want 2: %+v", len(letters), letters)
		}
		fails, odd := letters[0], letters[1]
		if fails.Task.ID != "fails" || fails.Reason != "delivery_limit" || fails.Invalid != nil || fails.Task.Queue != wire.DefaultQueue || fails.Died.IsZero() || fails.Count != 1 {
			t.Errorf("letter %+v, want one of too many attempts", fails)
		}
		if odd.Task.ID != "odd" || odd.Reason != "rejected" || odd.Invalid == nil {
			t.Errorf("letter %+v, want one that is no proper task", odd)
		}
	}

	// Requeue one, purge the other.
	err := DeadLetters(t.Context(), r.cfg, func(l DeadLetter) (Fate, error) {
		if l.Task.ID == "odd" {
			return Requeue, nil
		}
		return Purge, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if letters := r.letters(); len(letters) > 0 {
		t.Errorf("left over: %+v", letters)
	}
	back := r.take(TasksQueue, 1)[0]
	if back.MessageId != "odd" || back.Headers["mine"] != "kept" || back.Headers["x-death"] != nil {
		t.Errorf("requeued %q with %v, want it as it was", back.MessageId, back.Headers)
	}
	r.empty(TasksQueue)
}

func TestDeadLettersKeepWhatCannotBeRequeued(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	r.enqueue(tasksKey, text("a"), text("b"))
	r.die(2, (*Delivery).Refuse)
	if err := r.ch.QueueUnbind(TasksQueue, tasksKey, Exchange, nil); err != nil {
		t.Fatal(err)
	}
	err := DeadLetters(t.Context(), r.cfg, func(DeadLetter) (Fate, error) { return Requeue, nil })
	if !errors.Is(err, task.ErrNoQueue) {
		t.Errorf("DeadLetters = %v, want task.ErrNoQueue", err)
	}
	var ids []string
	for _, l := range r.letters() {
		ids = append(ids, l.Task.ID)
	}
	if !slices.Equal(ids, []string{"a", "b"}) {
		t.Errorf("dead letters %q, want a and b", ids)
	}
	stop := errors.New("stop")
	if err := DeadLetters(t.Context(), r.cfg, func(DeadLetter) (Fate, error) { return Keep, stop }); err != stop {
		t.Errorf("DeadLetters = %v, want decide's error", err)
	}
}

// Letters that come back at once are not requeued for ever.
func TestDeadLettersThatComeBack(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	r.enqueue(tasksKey, text("a"), text("b"))
	r.die(2, (*Delivery).Refuse)
	r.run(func(ctx context.Context) {
		NewConsumer(r.cfg, 1, r.log).Run(ctx, func(_ context.Context, d *Delivery) { d.Refuse() })
	})
	var ids []string
	err := DeadLetters(t.Context(), r.cfg, func(l DeadLetter) (Fate, error) {
		if n := len(ids); n > 0 { // the one before is back
			eventually(t, "back", func() error {
				if r.length(DeadQueue) < 1 {
					return errors.New("no letter is there")
				}
				return nil
			})
		}
		ids = append(ids, l.Task.ID)
		return Requeue, nil
	})
	if err != nil || !slices.Equal(ids, []string{"a", "b"}) {
		t.Errorf("requeued %q, %v, want each once", ids, err)
	}
}

func TestDeadLettersWithoutQueue(t *testing.T) {
	t.Parallel()
	r := setup(t)
	err := DeadLetters(t.Context(), r.cfg, func(DeadLetter) (Fate, error) { return Keep, nil })
	if err == nil || err.Error() != "the broker has no queue revq.dead: see `revq setup`" {
		t.Errorf("DeadLetters = %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("stopped")
	r.declared().enqueue(deadKey, text("a"))
	err = DeadLetters(ctx, r.cfg, func(DeadLetter) (Fate, error) {
		cancel(stopped)
		<-ctx.Done()
		return Requeue, nil
	})
	if err != nil && err != stopped {
		t.Errorf("DeadLetters = %v, want why it was stopped", err)
	}
}

// A worker dead-letters a task itself, with the reason.
func TestPublishDead(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	p := r.publisher()
	accepted := time.Now().Truncate(time.Microsecond)
	why := "exit status 65\n" + strings.Repeat("no picture \xff", 1000)
	if err := <-p.PublishDead(task.Task{ID: "sick", Text: "abc", Accepted: accepted}, why, ""); err != nil {
		t.Fatal(err)
	}
	letters := r.letters()
	if len(letters) != 1 {
		t.Fatalf("%d letters, want 1", len(letters))
	}
	l := letters[0]
	if l.Task.ID != "sick" || l.Task.Text != "abc" || !l.Task.Accepted.Equal(accepted) || l.Invalid != nil {
		t.Errorf("letter %+v, want the task", l)
	}
	if l.Reason != "rejected" || l.Task.Queue != wire.DefaultQueue || l.Count != 1 || time.Since(l.Died) > time.Minute {
		t.Errorf("letter %+v, want what the broker would write", l)
	}
	if !strings.HasPrefix(l.Error, "exit status 65\nno picture \uFFFD") || len(l.Error) > 2*maxError {
		t.Errorf("its error has %d bytes: %.40q", len(l.Error), l.Error)
	}
	if err := DeadLetters(t.Context(), r.cfg, func(DeadLetter) (Fate, error) { return Requeue, nil }); err != nil {
		t.Fatal(err)
	}
	back := r.take(TasksQueue, 1)[0]
	if back.MessageId != "sick" || back.Headers[errorHeader] != nil || back.Headers[diedHeader] != nil || back.Headers[acceptedHeader] == nil {
		t.Errorf("requeued %q with %v, want it as it was", back.MessageId, back.Headers)
	}
}
