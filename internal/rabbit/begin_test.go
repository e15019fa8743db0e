package rabbit

import (
	"context"
	"testing"

	"github.com/revq/revq/internal/await"
)

// A queue can be seen before it runs: another client may have declared it a
// moment ago. Messages that it refuses meanwhile are not answered as if it were
// full.
func TestQueueThatBegins(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	server := func(do string) {
		r.eval(`{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<%q>>, queue, <<%q>>)), ok = ra:%s(quorum_queues, amqqueue:get_pid(Q))`, r.vhost(), TasksQueue, do)
	}
	server("stop_server")
	p := r.publisher()
	pipe := p.lanes[0].pipe.Load()
	pipe.mu.Lock()
	pipe.settleIn = patience
	pipe.mu.Unlock()
	answer := p.PublishTask(newTask(1))
	tried := func() bool {
		pipe.mu.Lock()
		defer pipe.mu.Unlock()
		return !pipe.targets[target{Exchange, tasksKey}].IsZero()
	}
	await.True(t, "refused", tried)
	server("restart_server")
	if err := r.answered(answer); err != nil {
		t.Errorf("answered with %v", err)
	}
	r.take(TasksQueue, 1)
}

// A session that takes for granted what its node no longer has fails, and the
// next one declares it.
func TestObjectsThatWereThere(t *testing.T) {
	t.Parallel()
	for _, role := range []string{"publisher", "consumer", "reader"} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			r := setup(t)
			switch role {
			case "publisher":
				p := NewPublisher(r.cfg, r.log)
				p.lanes[0].link.looked = true
				r.run(p.Run)
				eventually(t, "published", func() error { return <-p.PublishTask(newTask(1)) })
			case "consumer":
				c := NewConsumer(r.cfg, 1, r.log)
				c.link.looked = true
				r.run(func(ctx context.Context) { c.Run(ctx, func(context.Context, *Delivery) {}) })
				r.ready(c.Ready)
			case "reader":
				reader := NewReader(r.cfg, 0, r.log)
				reader.link.looked = true
				r.followUntil(reader)
			}
		})
	}
}
