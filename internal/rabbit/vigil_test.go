package rabbit

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/rabbit/rabbittest"
)

// queued publishes n tasks, which the broker then has.
func (r *rig) queued(p *Publisher, n int) {
	r.t.Helper()
	for i := range n {
		if err := receive(r.t, "answer", p.PublishTask(newTask(i))); err != nil {
			r.t.Fatal(err)
		}
	}
}

// A consumer that gets nothing while tasks wait goes to another node.
func TestAStarvingConsumerGoesToAnotherNode(t *testing.T) {
	n := rabbittest.StartNode(t) // a suspended process is nothing for the others
	r := setupOn(t, n).declared()
	p := r.publisher()
	r.cfg.Name = "starving"
	r.cfg.URLs = []string{r.url, r.url + "?heartbeat=60"} // the same node answers as another one
	c := NewConsumer(r.cfg, 1, r.log)
	c.vigil.after, c.vigil.within = 100*time.Millisecond, time.Second
	tasks := r.consume(c)
	r.ready(c.Ready)
	r.silence("starving consumer")
	r.queued(p, 2) // the broker has sent the first one, and keeps the second one
	h := receive(t, "a task", tasks)
	h.end(t, h.Ack)
	r.out.Says(t, errStarved.Error())
}

// A consumer whose node hangs goes to another one long before heartbeats fail.
func TestAConsumerLeavesANodeThatHangs(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	p := r.publisher()
	proxy := r.proxy()
	defer close(proxy.resume)
	r.cfg.URLs = append(r.cfg.URLs, r.url)
	c := NewConsumer(r.cfg, 1, r.log)
	c.link.first = 0
	tasks := r.consume(c)
	r.ready(c.Ready)
	proxy.after.Store(1)
	receive(t, "the hang", proxy.stopped)
	began := time.Now()
	r.out.Says(t, errNoAnswer.Error())
	t.Logf("noticed after %v", time.Since(began))
	r.ready(c.Ready)
	r.queued(p, 1)
	h := receive(t, "a task", tasks)
	h.end(t, h.Ack)
}

// Neither an empty queue nor a consumer that has as many tasks as it may have is
// taken for one that starves, nor one whose tasks others take.
func TestAConsumerThatDoesNotStarve(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	r.cfg.URLs = []string{r.url, r.url + "?heartbeat=60"}
	looks := func(c *Consumer) *Consumer {
		c.vigil.after, c.vigil.within = 10*time.Millisecond, 100*time.Millisecond
		return c
	}
	const prefetch = 2
	idle, full := looks(NewConsumer(r.cfg, 1, r.log)), looks(NewConsumer(r.cfg, prefetch, r.log))
	tasks := r.consume(full)
	r.ready(full.Ready)
	p := r.publisher()
	r.queued(p, prefetch)
	var last []*held
	for range prefetch {
		last = append(last, receive(t, "a task", tasks))
	}
	r.queued(p, 1) // waits, since nobody has room
	receive(t, "a while", time.After(time.Second))
	others := r.consume(idle)
	h := receive(t, "the task that waited", others)
	h.end(t, h.Ack)
	for _, h := range last {
		h.end(t, h.Ack)
	}
	receive(t, "a while", time.After(time.Second))
	if said := r.out.String(); strings.Contains(said, "no session") {
		t.Error("a session has ended")
	}
}

// The time before a consumer leaves a node grows if that is no help.
func TestStarvingAgainAndAgain(t *testing.T) {
	t.Parallel()
	v := &vigil{after: starveAfter}
	ended := func(before int64, why error) int {
		ctx, end := context.WithCancelCause(t.Context())
		end(why)
		v.ended(&session{ctx: ctx}, before)
		return v.starving
	}
	if n := ended(0, errStarved); n != 1 {
		t.Errorf("%d after the first", n)
	}
	if n := ended(0, errStarved); n != 2 {
		t.Errorf("%d after the second", n)
	}
	if n := ended(0, errNoAnswer); n != 0 {
		t.Errorf("%d after another end", n)
	}
	v.heard.Store(1)
	if n := ended(0, errStarved); n != 0 {
		t.Errorf("%d after a session with a task", n)
	}
}
