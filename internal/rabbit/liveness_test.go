package rabbit

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/revq/revq/internal/liveness"
)

// hangs returns an error if something is alive.
func hangs(alive func() error) func() error {
	return func() error {
		if alive() == nil {
			return errors.New("alive")
		}
		return nil
	}
}

// A loop that hangs is noticed, and so is that it continues.
func TestHangingLoops(t *testing.T) {
	t.Parallel()
	const limit = 300 * time.Millisecond
	short := func(l *link) { l.loop = liveness.New("the loop", limit) }

	t.Run("publisher", func(t *testing.T) {
		t.Parallel()
		r := setup(t).declared()
		p := NewPublisher(r.cfg, r.log)
		short(p.lanes[0].link)
		r.run(p.Run)
		r.ready(p.Ready)
		pipe, err := p.lanes[0].current()
		if err != nil {
			t.Fatal(err)
		}
		pipe.mu.Lock() // as somebody would who forgets to unlock it
		eventually(t, "noticed", hangs(p.Alive))
		pipe.mu.Unlock()
		eventually(t, "alive", p.Alive)
	})
	t.Run("reader", func(t *testing.T) {
		t.Parallel()
		r := setup(t).declared()
		publishResults(t, r.publisher(), 0, 1)
		reader := NewReader(r.cfg, everything, r.log)
		short(reader.link)
		f := &follower{results: make(chan read), gaps: make(chan string), live: make(chan struct{})}
		r.run(func(ctx context.Context) { reader.Run(ctx, f) })
		eventually(t, "noticed", hangs(reader.Alive))
		receive(t, "result", f.results)
		eventually(t, "alive", reader.Alive)
	})
	t.Run("between sessions", func(t *testing.T) {
		t.Parallel()
		r := setup(t).declared()
		l := newLink(r.cfg, "test", nil, r.log)
		short(l)
		goOn := make(chan struct{})
		r.run(func(ctx context.Context) {
			l.run(ctx, func(*session) error {
				<-goOn
				l.loop.Idle()
				<-ctx.Done()
				return nil
			})
		})
		eventually(t, "noticed", hangs(l.Alive))
		close(goOn)
		eventually(t, "alive", l.Alive)
	})
}

// A loop that waits for work may wait for ever, and is alive after its end,
// too.
func TestAliveWithoutWork(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	const limit = 10 * expiryInterval
	p, c, reader := NewPublisher(r.cfg, r.log), NewConsumer(r.cfg, 1, r.log), NewReader(r.cfg, everything, r.log)
	all := []func() error{p.Alive, c.Alive, reader.Alive}
	p.lanes[0].link.loop, c.link.loop, reader.link.loop = liveness.New("publisher", time.Minute), liveness.New("consumer", limit), liveness.New("reader", limit)
	stopPublisher := r.run(p.Run)
	_, stopConsumer := r.consumeUntil(c)
	f, stopReader := r.followUntil(reader)
	r.ready(p.Ready)
	r.ready(c.Ready)
	receive(t, "end of the backlog", f.live)
	check := func(when string) {
		t.Helper()
		<-time.After(2 * limit) // in which nothing may happen
		for _, alive := range all {
			if err := alive(); err != nil {
				t.Errorf("%s: %v", when, err)
			}
		}
	}
	check("without work")
	stopPublisher()
	stopConsumer()
	stopReader()
	check("after the end")
}
