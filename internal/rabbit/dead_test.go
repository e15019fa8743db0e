package rabbit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
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

// A task that was given up again because the broker did not know of the first
// time is one dead letter. So are the copies of a task, but not other tasks with
// its id, nor the same one after it was requeued.
func TestDeadLettersOfOneDeath(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	p := r.publisher()
	sick := task.Task{ID: "sick", Queue: wire.DefaultQueue, Text: "abc"}
	again, other, elsewhere := sick, sick, sick
	again.Deaths, other.Text, elsewhere.Queue = 1, "def", "pictures"
	for i, dead := range []task.Task{sick, sick, other, again, sick, elsewhere} {
		if err := r.answered(p.PublishDead(dead, "why", fmt.Sprint("copy ", i))); err != nil {
			t.Fatal(err)
		}
	}
	r.enqueueBy("", DeadQueue, amqp.Publishing{MessageId: "odd"}, amqp.Publishing{MessageId: "odd"})
	for range 2 {
		var got []string
		for _, l := range r.letters() {
			got = append(got, cmp.Or(l.Said, l.Task.ID))
		}
		if want := []string{"copy 0", "copy 2", "copy 3", "copy 5", "odd", "odd"}; !slices.Equal(got, want) {
			t.Errorf("letters %q, want %q", got, want)
		}
		eventually(t, "the others are back, and no more", func() error {
			if n := r.length(DeadQueue); n != 6 {
				return fmt.Errorf("there are %d", n)
			}
			return nil
		})
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
	said := strings.Repeat("x", maxSaid) + "last words"
	why := "exit status 65\n" + strings.Repeat("no picture \xff", 1000)
	if err := <-p.PublishDead(task.Task{ID: "sick", Text: "abc", Accepted: accepted}, why, said); err != nil {
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
	if len(l.Said) != maxSaid || !strings.HasSuffix(l.Said, "xlast words") {
		t.Errorf("its handler said %d bytes: %.40q", len(l.Said), l.Said)
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

// While a broker begins again, it routes to each queue as soon as that has been
// recovered. A dead letter that came before the stream would be told to nobody.
func TestDeadLetterBeforeTheStream(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	p := r.publisher()
	sick := newTask(1)
	const hide = `Name = rabbit_misc:r(<<%q>>, queue, <<%q>>), ` +
		`case catch mnesia:dirty_read(rabbit_queue, Name) of [Q] -> mnesia:dirty_delete(rabbit_queue, Name), persistent_term:put(Name, Q), hidden; _ -> none end`
	if r.eval(hide, r.vhost(), ResultsQueue) != "hidden" {
		t.Skip("from RabbitMQ 4.2 on, a broker that begins again knows all queues at once")
	}
	back := func() {
		r.eval(`Name = rabbit_misc:r(<<%q>>, queue, <<%q>>), mnesia:dirty_write(rabbit_queue, persistent_term:get(Name)), persistent_term:erase(Name)`, r.vhost(), ResultsQueue)
	}
	back = sync.OnceFunc(back)
	defer back() // also for whoever removes the virtual host
	_, err := r.channel().QueueDeclarePassive(ResultsQueue, true, false, false, false, nil)
	var refused *amqp.Error
	if !errors.As(err, &refused) || !isDown(refused) {
		t.Fatalf("the stream is not down: %v", err)
	}
	if err := r.answered(p.PublishDead(sick, "sick", "")); !errors.As(err, &refused) || !isDown(refused) {
		t.Errorf("PublishDead = %v, want that the stream is down", err)
	}
	back()
	eventually(t, "given up", func() error { return r.answered(p.PublishDead(sick, "sick", "")) })
	r.take(DeadQueue, 1)
}

// Listeners are told of each task that is given up, once for each time: whether
// a worker gave it up, or the broker, or because its queue is gone.
func TestGivenUpIsTold(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	cfg := r.declaredQueue("thumbnails")
	p := r.publisher()
	r.ready(p.Ready)
	f, _ := r.followUntil(NewReader(r.cfg, everything, r.log))
	receive(t, "live", f.live)
	told := func(id, queue, text string) task.Digest {
		t.Helper()
		got := receive(t, "what listeners are told of "+id, f.results)
		if got.Kind != task.GivenUp || got.ID != id || got.Queue != queue || got.Text != text || got.Of == 0 {
			t.Errorf("told %+v, want that %s of %s was given up: %s", got, id, queue, text)
		}
		return got.Of
	}

	// By a worker. It may do so twice, if it dies before the acknowledgement.
	sick := task.Task{ID: "sick", Queue: "thumbnails", Text: "abc", Accepted: time.Now(), Failed: 9, Expires: time.Now()}
	var before task.Digest
	for range 2 {
		if err := r.answered(p.PublishDead(sick, "no picture", "some secret")); err != nil {
			t.Fatal(err)
		}
		if of := told("sick", "thumbnails", "no picture"); before != 0 && of != before {
			t.Errorf("repeated with the digest %x, was %x", of, before)
		} else {
			before = of
		}
	}
	// Again, after it was requeued.
	n := 0
	if err := DeadLetters(t.Context(), r.cfg, func(DeadLetter) (Fate, error) { n++; return Fate(n), nil }); err != nil {
		t.Fatal(err)
	}
	tasks, stop := r.consumeUntil(NewConsumer(cfg, 1, r.log))
	h := receive(t, "requeued task", tasks)
	again, err := h.Task()
	if err != nil || again.ID != "sick" || again.Failed != 0 || !again.Expires.IsZero() || again.Deaths != 1 {
		t.Errorf("requeued %+v, %v, want it as new", again, err)
	}
	if err := r.answered(p.PublishDead(again, "no picture", "")); err != nil {
		t.Fatal(err)
	}
	h.end(t, h.Ack)
	if of := told("sick", "thumbnails", "no picture"); of == before {
		t.Error("a task that was requeued and given up again is a repetition for listeners")
	}

	// By the broker.
	r.enqueue(tasksKeyOf("thumbnails"), text("fails"))
	for range cfg.Topology.DeliveryLimit + spareDeliveries + 1 {
		h := receive(t, "attempt", tasks)
		h.end(t, h.Reject)
	}
	told("fails", "thumbnails", "too many attempts failed")
	r.enqueue(tasksKeyOf("thumbnails"), text("refused"))
	h = receive(t, "task", tasks)
	h.end(t, h.Refuse)
	told("refused", "thumbnails", "a worker refused it")
	stop()

	// Because its queue is gone.
	if err := r.answered(p.PublishTask(later(7, "thumbnails", time.Second))); err != nil {
		t.Fatal(err)
	}
	r.remove(TasksQueueOf("thumbnails"))
	told(newTask(7).ID, "thumbnails", "its queue was removed while it waited")

	for _, l := range r.letters() {
		if l.Task.Queue != "thumbnails" {
			t.Errorf("dead letter of the queue %s: %+v", l.Task.Queue, l)
		}
	}
}

// An installation of an earlier version, with tasks and dead letters in its
// queues, is set up for this one.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	r := setup(t).connected()
	tasks := r.cfg.Topology.tasks()
	tasks.args[deliveryLimitArg] = r.cfg.Topology.DeliveryLimit
	for _, q := range append(r.cfg.Topology.queues()[:2], tasks) { // as version 1 did
		if _, err := r.ch.QueueDeclare(q.name, true, false, false, false, q.args); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.ch.ExchangeDeclare(Exchange, amqp.ExchangeDirect, true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	for _, q := range []struct{ name, key string }{{DeadQueue, deadKey}, {ResultsQueue, resultsKey}, {TasksQueue, tasksKey}} {
		if err := r.ch.QueueBind(q.name, q.key, Exchange, false, nil); err != nil {
			t.Fatal(err)
		}
	}
	r.enqueue(tasksKey, text("old"))
	r.enqueue(deadKey, text("dead"))
	r.enqueue(resultsKey, text("result"))
	if _, err := Setup(t.Context(), r.cfg); err != nil {
		t.Fatal(err)
	}
	r.exists()
	f, _ := r.followUntil(NewReader(r.cfg, everything, r.log))
	if got := receive(t, "old result", f.results); got.ID != "result" || got.Kind != task.Done || got.Queue != wire.DefaultQueue {
		t.Errorf("old result %+v", got)
	}
	h := receive(t, "old task", r.consume(NewConsumer(r.cfg, 1, r.log)))
	if got, err := h.Task(); err != nil || got.ID != "old" || got.Queue != wire.DefaultQueue || got.Failed != 0 {
		t.Errorf("old task %+v, %v", got, err)
	}
	h.end(t, h.Refuse)
	if got := receive(t, "what listeners are told of it", f.results); got.Kind != task.GivenUp || got.ID != "old" {
		t.Errorf("told %+v", got)
	}
	if letters := r.letters(); len(letters) != 2 || letters[0].Task.ID != "dead" || letters[1].Task.ID != "old" {
		t.Errorf("dead letters %+v", letters)
	}
}
