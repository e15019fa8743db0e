package rabbit

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/rabbit/rabbittest"
)

// borrowed returns n deliveries that a handler holds, in the order of their
// tags.
func (r *rig) borrowed(n int) (_ []*held, stop func()) {
	r.t.Helper()
	all := make([]amqp.Publishing, n)
	for i := range all {
		all[i] = text(fmt.Sprint(i + 1))
	}
	r.enqueue(tasksKey, all...)
	tasks, stop := r.consumeUntil(NewConsumer(r.cfg, n, r.log))
	byTag := make([]*held, n)
	for range n {
		h := receive(r.t, "task", tasks)
		byTag[h.d.DeliveryTag-1] = h
	}
	return byTag, stop
}

// eventuallyLeft waits until n tasks are in the queue, held by a consumer or
// not.
func (r *rig) eventuallyLeft(n int) {
	r.t.Helper()
	eventually(r.t, "acknowledged", func() error {
		if got := rabbittest.QueueLength(r.t, r.node, r.url, TasksQueue); got != n {
			return fmt.Errorf("%d tasks are in the queue, want %d", got, n)
		}
		return nil
	})
}

// An acknowledgement for several loans includes none that is not done.
func TestAcksAreOnlyForWhatIsDone(t *testing.T) {
	t.Parallel()
	const n = 300
	r := setup(t).declared()
	tasks, stop := r.borrowed(n)
	// In any order and from many goroutines at once; one in ten not at all,
	// and some are returned or refused in between.
	var kept, refused int
	var wg sync.WaitGroup
	for _, i := range rand.Perm(n) {
		h := tasks[i]
		switch i % 10 {
		case 3:
			kept++ // until the stop, whose handlers return without an answer
		case 5:
			refused++
			wg.Go(func() { h.end(t, h.Refuse) })
		default:
			wg.Go(func() { h.end(t, h.Ack) })
		}
	}
	wg.Wait()
	r.eventuallyLeft(kept)
	stop()
	for _, d := range r.take(TasksQueue, kept) {
		var i int
		if _, err := fmt.Sscan(d.MessageId, &i); err != nil || (i-1)%10 != 3 {
			t.Errorf("%s came back", d.MessageId)
		}
	}
	r.empty(TasksQueue)
	r.take(DeadQueue, refused)
}

// What is done when the connection dies comes back or is gone; what is not
// done comes back.
func TestAcksOfADyingSession(t *testing.T) {
	t.Parallel()
	const n = 300
	r := setup(t).declared()
	r.cfg.Name = "dying"
	var mu sync.Mutex
	handled := make(map[string]int)
	allOnce := make(chan struct{})
	r.run(func(ctx context.Context) {
		NewConsumer(r.cfg, n/4, r.log).Run(ctx, func(_ context.Context, d *Delivery) {
			mu.Lock()
			handled[d.task.ID]++
			all := len(handled) == n
			first := handled[d.task.ID] == 1
			mu.Unlock()
			if err := d.Ack(); err != nil {
				t.Logf("the acknowledgement of %s: %v", d.task.ID, err)
			}
			if all && first {
				close(allOnce)
			}
		})
	})
	all := make([]amqp.Publishing, n)
	for i := range all {
		all[i] = text(fmt.Sprint(i))
	}
	for i := 0; i < n; i += n / 3 {
		r.enqueue(tasksKey, all[i:i+n/3]...)
		r.cut("dying consumer")
	}
	receive(t, "the last task", allOnce)
}

// Acknowledgements are gathered, and sent all the same when no more come.
func TestAcksAreSentSoon(t *testing.T) {
	t.Parallel()
	const n = 40
	r := setup(t).declared()
	tasks, stop := r.borrowed(n)
	left := n
	for _, some := range []int{1, 1, n/2 - 1} { // one at once; what is fewer than half of the prefetch later
		for _, h := range tasks[n-left:][:some] {
			h.end(t, h.Ack)
		}
		left -= some
		r.eventuallyLeft(left)
	}
	// What is gathered when a stop comes is sent, too.
	for _, h := range tasks[n-left:][:2] {
		h.end(t, h.Ack)
	}
	stop()
	r.take(TasksQueue, left-2)
	r.empty(TasksQueue)
}
