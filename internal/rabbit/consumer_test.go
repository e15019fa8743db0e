package rabbit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// held is a delivery that a handler holds until end.
type held struct {
	*Delivery
	ctx  context.Context
	done chan struct{}
}

func (h *held) end(t testing.TB, settle func() error) {
	t.Helper()
	if err := settle(); err != nil {
		t.Errorf("the end of %s: %v", h.task.ID, err)
	}
	close(h.done)
}

// consume runs c with handlers that pass their delivery on and return when it
// is ended, or when their context is.
func (r *rig) consume(c *Consumer) <-chan *held {
	tasks, _ := r.consumeUntil(c)
	return tasks
}

func (r *rig) consumeUntil(c *Consumer) (tasks <-chan *held, stop func()) {
	all := make(chan *held, 1000)
	stop = r.run(func(ctx context.Context) {
		c.Run(ctx, func(ctx context.Context, d *Delivery) {
			h := &held{d, ctx, make(chan struct{})}
			all <- h
			select {
			case <-h.done:
			case <-ctx.Done():
			}
		})
	})
	return all, stop
}

func TestAck(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	tasks, stop := r.consumeUntil(NewConsumer(r.cfg, 1, r.log))
	p := r.publisher()
	sent := newTask(1)
	if err := receive(t, "answer", p.PublishTask(sent)); err != nil {
		t.Fatal(err)
	}
	h := receive(t, "task", tasks)
	got, err := h.Task()
	if err != nil || got.ID != sent.ID || got.Text != sent.Text || !got.Accepted.Equal(sent.Accepted.Truncate(time.Microsecond)) {
		t.Errorf("Task() = %+v, %v, want %+v", got, err, sent)
	}
	if h.Attempt() != 1 {
		t.Errorf("Attempt() = %d, want 1", h.Attempt())
	}
	h.end(t, h.Ack)
	stop()
	r.empty(TasksQueue)
	r.empty(DeadQueue)
}

func TestRejectUntilDead(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.cfg.Topology.DeliveryLimit = 2
	r.declared()
	tasks := r.consume(NewConsumer(r.cfg, 1, r.log))
	sent := text("a")
	sent.Headers = amqp.Table{"mine": "kept"}
	r.enqueue(tasksKey, sent)
	// The limit is on deliveries after the first one.
	for attempt := range r.cfg.Topology.DeliveryLimit + spareDeliveries + 1 {
		h := receive(t, "task", tasks)
		if h.Attempt() != attempt+1 {
			t.Errorf("Attempt() = %d, want %d", h.Attempt(), attempt+1)
		}
		h.end(t, h.Reject)
	}
	r.dead("a", "delivery_limit")
}

func TestRefuse(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	tasks := r.consume(NewConsumer(r.cfg, 1, r.log))
	r.enqueue(tasksKey, text("a"))
	h := receive(t, "task", tasks)
	h.end(t, h.Refuse)
	r.dead("a", "rejected")
}

// If somebody deletes the queue of dead letters, listeners are told of a dead
// letter, but nobody keeps it. The worker that refused the task notices.
func TestDeadQueueIsMissing(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		configure string
		says      string
		declared  bool
	}{
		"may declare it": {"^revq", "a queue of dead letters was missing; declared it", true},
		"may not":        {"^$", "run `revq setup`", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := setup(t).declared()
			rights := "^revq"
			if !tc.declared {
				rights = `^revq\.tasks$`
			}
			tasks := r.consume(NewConsumer(r.user("worker", tc.configure, "^revq", rights), 1, r.log))
			r.remove(DeadQueue)
			r.enqueue(tasksKey, text("a"))
			h := receive(t, "task", tasks)
			h.end(t, h.Refuse)
			r.out.Says(t, tc.says)
			if !tc.declared {
				if _, err := Setup(t.Context(), r.cfg); err != nil {
					t.Fatal(err)
				}
			}
			r.exists()
			r.enqueue(tasksKey, text("b"))
			h = receive(t, "next task", tasks)
			h.end(t, h.Refuse)
			r.dead("b", "rejected")
		})
	}
}

// A given-up task is kept even if somebody has deleted the queue of dead
// letters: the stream, which gets each dead letter, too, keeps it only for a
// while.
func TestDeadLetterWithoutDeadQueue(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		configure, read string
		want            error
	}{
		"may declare it": {"^revq", "^revq", nil},
		"may not":        {"^$", `^revq\.tasks$`, task.ErrNoDeadQueue},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := setup(t).declared()
			p := NewPublisher(r.user("worker", tc.configure, "^revq", tc.read), r.log)
			r.run(func(ctx context.Context) { p.Run(ctx) })
			r.ready(p.Ready)
			r.remove(DeadQueue)
			publish := func() error { return r.answered(p.PublishDead(newTask(1), "exit status 65", "")) }
			if err := publish(); !errors.Is(err, tc.want) {
				t.Fatalf("PublishDead = %v, want %v", err, tc.want)
			}
			if tc.want != nil {
				if _, err := Setup(t.Context(), r.cfg); err != nil {
					t.Fatal(err)
				}
				eventually(t, "published after the setup", publish)
			}
			if d := r.take(DeadQueue, 1)[0]; d.MessageId != newTask(1).ID {
				t.Errorf("the dead letter is %q", d.MessageId)
			}
		})
	}
}

// dead fails the test unless the only dead letter is id, for reason.
func (r *rig) dead(id, reason string) {
	r.t.Helper()
	d := r.take(DeadQueue, 1)[0]
	if d.MessageId != id || string(d.Body) != "text of "+id {
		r.t.Errorf("the dead letter is %q: %q", d.MessageId, d.Body)
	}
	deaths, _ := d.Headers["x-death"].([]any)
	if len(deaths) != 1 {
		r.t.Fatalf("x-death is %v", d.Headers["x-death"])
	}
	death := deaths[0].(amqp.Table)
	if death["queue"] != TasksQueue || death["reason"] != reason {
		r.t.Errorf("x-death is %v, want %s from %s", death, reason, TasksQueue)
	}
}

func TestRequeue(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	tasks := r.consume(NewConsumer(r.cfg, 1, r.log))
	r.enqueue(tasksKey, text("a"))
	h := receive(t, "task", tasks)
	h.end(t, h.Requeue)
	h = receive(t, "task", tasks)
	// From RabbitMQ 4.3 on, a return is not counted.
	if n := h.Attempt(); n != 1 && n != 2 {
		t.Errorf("Attempt() = %d", n)
	}
	h.end(t, h.Ack)
}

// Any client may enqueue anything. What is not a task says so.
func TestForeignMessages(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	tasks := r.consume(NewConsumer(r.cfg, 1, r.log))
	for _, tc := range []struct {
		name    string
		message amqp.Publishing
		want    error
	}{
		{"a bare text", amqp.Publishing{MessageId: "id", Body: []byte("текст")}, nil},
		{"no id", amqp.Publishing{Body: []byte("text")}, nil},
		{"not UTF-8", amqp.Publishing{MessageId: "id", Body: []byte{'a', 0xff}}, task.ErrNotUTF8},
		{"empty", amqp.Publishing{MessageId: "id"}, task.ErrNoText},
		{"a bad id", amqp.Publishing{MessageId: "with space", Body: []byte("text")}, wire.ErrBadID},
		{"a long id", amqp.Publishing{MessageId: strings.Repeat("a", 255), Body: []byte("text")}, wire.ErrBadID},
		{"other headers", amqp.Publishing{MessageId: "id", Body: []byte("text"), Headers: amqp.Table{acceptedHeader: "today", deliveryCountHeader: "many"}}, nil},
	} {
		r.enqueue(tasksKey, tc.message)
		h := receive(t, "task", tasks)
		got, err := h.Task()
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
		if got.Text != string(tc.message.Body) || !got.Accepted.IsZero() {
			t.Errorf("%s: %+v", tc.name, got)
		}
		if id := tc.message.MessageId; id != "" && got.ID != id || wire.CheckID(got.ID) != nil && tc.want != wire.ErrBadID {
			t.Errorf("%s: the id is %q", tc.name, got.ID)
		}
		if h.Attempt() != 1 {
			t.Errorf("%s: Attempt() = %d", tc.name, h.Attempt())
		}
		h.end(t, h.Ack)
	}
}

func TestStopGivesTasksBack(t *testing.T) {
	noLeaks(t)
	r := setup(t).declared()
	const n = 5
	var all []amqp.Publishing
	for i := range 2 * n {
		all = append(all, text(fmt.Sprint(i)))
	}
	r.enqueue(tasksKey, all...)

	began, returned := make(chan struct{}, n), make(chan error, 2*n)
	c := NewConsumer(r.cfg, n, r.log)
	stop := r.run(func(ctx context.Context) {
		c.Run(ctx, func(ctx context.Context, d *Delivery) {
			began <- struct{}{}
			<-ctx.Done()
			returned <- d.Requeue()
		})
	})
	for range n {
		receive(t, "task", began)
	}
	stop()
	// Run has waited for all of them.
	if len(returned) != n {
		t.Errorf("%d handlers have returned, want %d", len(returned), n)
	}
	for range len(returned) {
		if err := <-returned; err != nil {
			t.Errorf("Requeue = %v", err)
		}
	}
	r.take(TasksQueue, 2*n)
}

// Also one whose session has died meanwhile.
func TestRunWaitsForAllHandlers(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	r.enqueue(tasksKey, text("a"))
	c := NewConsumer(r.cfg, 1, r.log)
	ended, release := make(chan struct{}, 10), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	began := make(chan struct{}, 10)
	go func() {
		defer close(done)
		c.Run(ctx, func(ctx context.Context, d *Delivery) {
			began <- struct{}{}
			<-ctx.Done()
			ended <- struct{}{}
			<-release
		})
	}()
	receive(t, "task", began)
	r.cut("test consumer")
	receive(t, "end of the first context", ended)
	receive(t, "task in the next session", began)
	cancel()
	receive(t, "end of the second context", ended)
	select {
	case <-done:
		t.Error("Run has returned before its handlers")
	case release <- struct{}{}:
	}
	close(release)
	receive(t, "end of Run", done)
}

func TestConsumerSurvives(t *testing.T) {
	t.Parallel()
	for name, trouble := range map[string]struct {
		cause func(*rig)
		says  string
		kept  bool
	}{
		"closed connection": {func(r *rig) { r.cut("test consumer") }, "CONNECTION_FORCED - closed by a test", true},
		"deleted queue":     {func(r *rig) { r.remove(TasksQueue) }, "the broker cancelled the consumer", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := setup(t).declared()
			c := NewConsumer(r.cfg, 1, r.log)
			tasks := r.consume(c)
			r.enqueue(tasksKey, text("a"))
			first := receive(t, "task", tasks)
			trouble.cause(r)
			receive(t, "end of the handler's context", first.ctx.Done())
			if cause := context.Cause(first.ctx); !strings.Contains(cause.Error(), trouble.says) {
				t.Errorf("the context ended with %q, want %q", cause, trouble.says)
			}
			r.out.Says(t, trouble.says)
			if err := first.Ack(); err == nil {
				t.Error("a task of a dead session was acknowledged")
			}
			if trouble.kept {
				again := receive(t, "task again", tasks)
				if again.task.ID != "a" || again.Attempt() != 2 {
					t.Errorf("got %s, attempt %d; want a again", again.task.ID, again.Attempt())
				}
				again.end(t, again.Ack)
			}
			r.ready(c.Ready)
			r.enqueue(tasksKey, text("b"))
			if h := receive(t, "next task", tasks); h.task.ID != "b" {
				t.Errorf("got %s, want b", h.task.ID)
			} else {
				h.end(t, h.Ack)
			}
		})
	}
}

// A late acknowledgement of a dead session must not remove what has the same
// delivery tag in the next one.
func TestStaleAcknowledgement(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	worker := func(name string) (*Consumer, <-chan *held, func()) {
		cfg := r.cfg
		cfg.Name = name
		c := NewConsumer(cfg, 1, r.log)
		tasks, stop := r.consumeUntil(c)
		r.ready(c.Ready)
		return c, tasks, stop
	}
	_, tasks1, stop1 := worker("worker-1")
	r.enqueue(tasksKey, text("A"))
	stale := receive(t, "A at worker 1", tasks1)
	_, tasks2, _ := worker("worker-2")

	r.cut("worker-1 consumer")
	a := receive(t, "A at worker 2", tasks2)
	if a.task.ID != "A" {
		t.Fatalf("worker 2 got %s, want A", a.task.ID)
	}
	r.enqueue(tasksKey, text("C"))
	c := receive(t, "C at worker 1", tasks1)
	if c.task.ID != "C" || c.d.DeliveryTag != stale.d.DeliveryTag {
		t.Fatalf("worker 1 got %s with tag %d, want C with tag %d", c.task.ID, c.d.DeliveryTag, stale.d.DeliveryTag)
	}
	if err := stale.Ack(); err == nil {
		t.Error("the stale acknowledgement was sent")
	}
	if err := stale.Reject(); err == nil {
		t.Error("the stale rejection was sent")
	}
	// C is still on loan: when worker 1 ends, it comes to worker 2.
	stop1()
	a.end(t, a.Ack)
	c = receive(t, "C at worker 2", tasks2)
	if c.task.ID != "C" {
		t.Errorf("worker 2 got %s, want C", c.task.ID)
	}
	c.end(t, c.Ack)
}
