package rabbit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"
)

// away cuts the connection called name off its own node, the first one, and
// waits until it is back.
func (r *rig) away(l *link, name string) {
	r.t.Helper()
	before := l.session.Load()
	r.cut(name)
	var elsewhere *session
	eventually(r.t, "back", func() error {
		switch s := l.session.Load(); {
		case s == nil || s == before:
		case s.url != r.cfg.URLs[0]:
			elsewhere = s
		case elsewhere == nil:
			r.t.Fatal("it has not left")
		default:
			return nil
		}
		return errors.New("it is elsewhere")
	})
}

// Connections that had to leave their own node move back to it, and nothing is
// lost or done twice.
func TestConnectionsMoveBack(t *testing.T) {
	t.Parallel()
	start := func(t *testing.T, l func(r *rig) *link) (*rig, *link) {
		r := setup(t).declared()
		r.cfg.URLs = []string{r.url, r.url + "?heartbeat=60"} // the same node answers as another one
		link := l(r)
		link.first, link.home.after = 0, 100*time.Millisecond
		return r, link
	}
	t.Run("publisher", func(t *testing.T) {
		t.Parallel()
		var p *Publisher
		r, l := start(t, func(r *rig) *link {
			p = NewPublisher(r.cfg, r.log)
			return p.lanes[0].link
		})
		r.run(p.Run)
		r.ready(p.Ready)
		r.away(l, "test publisher")
		r.ready(p.Ready)
		r.queued(p, 1)
	})
	t.Run("reader", func(t *testing.T) {
		t.Parallel()
		var reader *Reader
		r, l := start(t, func(r *rig) *link {
			reader = NewReader(r.cfg, everything, r.log)
			return reader.link
		})
		p := r.publisher()
		publishResults(t, p, 0, 10)
		f, _ := r.followUntil(reader)
		last := inOrder(t, f.results, 0, 10, -1)
		receive(t, "end of the backlog", f.live)
		r.away(l, "test reader")
		publishResults(t, p, 10, 20)
		inOrder(t, f.results, 10, 20, last)
		if len(f.gaps) > 0 {
			t.Errorf("told of a gap: %s", <-f.gaps)
		}
	})
	t.Run("consumer", func(t *testing.T) {
		t.Parallel()
		var c *Consumer
		r, l := start(t, func(r *rig) *link {
			c = NewConsumer(r.cfg, 2, r.log)
			return c.link
		})
		p := r.publisher()
		tasks := r.consume(c)
		r.ready(c.Ready)
		r.cut("test consumer")
		r.queued(p, 1)
		h := receive(t, "a task", tasks)
		at := l.session.Load()
		receive(t, "a while", time.After(time.Second))
		if l.session.Load() != at || h.ctx.Err() != nil {
			t.Error("a session with a task has ended")
		}
		h.end(t, h.Ack)
		eventually(t, "back", func() error {
			if s := l.session.Load(); s == nil || s == at || s.url != r.cfg.URLs[0] {
				return errors.New("it is elsewhere")
			}
			return nil
		})
		r.queued(p, 1)
		h = receive(t, "a task", tasks)
		if n := h.Attempt(); n != 1 {
			t.Errorf("attempt %d", n)
		}
		h.end(t, h.Ack)
	})
}

// A reader does not move back to a node that cannot serve it: one that has lost
// its data takes connections long before it has a replica of the stream.
func TestNotBackToANodeThatServesNothing(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	r.cfg.URLs = []string{r.url, r.url + "?heartbeat=60"} // the same node answers as another one
	reader := NewReader(r.cfg, everything, r.log)
	l := reader.link
	l.first, l.home.after = 0, 100*time.Millisecond
	asks, asked, good := l.serves, make(chan error, 100), make(chan struct{})
	l.serves = func(ctx context.Context, s *session) error {
		err := asks(ctx, s)
		asked <- err
		select {
		case <-good:
			return err
		default:
			return errors.New("it has no replica")
		}
	}
	f, _ := r.followUntil(reader)
	receive(t, "end of the backlog", f.live)
	r.cut("test reader")
	for range 3 {
		if err := receive(t, "a look at its own node", asked); err != nil {
			t.Errorf("a good node does not serve: %v", err)
		}
		if s := l.session.Load(); s == nil || s.url == r.cfg.URLs[0] {
			t.Error("it has moved back")
		}
	}
	close(good)
	eventually(t, "back", func() error {
		if s := l.session.Load(); s == nil || s.url != r.cfg.URLs[0] {
			return errors.New("it is elsewhere")
		}
		return nil
	})
}

// A link whose own node is no good moves back to it ever more rarely.
func TestMovingBackAgainAndAgain(t *testing.T) {
	t.Parallel()
	h := &home{after: homeAfter}
	other := errors.New("the node is no good")
	for i, step := range []struct {
		why    error
		lasted time.Duration
		back   bool
		wait   time.Duration
	}{
		{other, time.Hour, false, homeAfter},
		{errHome, homeAfter, true, homeAfter},
		{other, time.Second, false, 2 * homeAfter},
		{other, time.Second, false, 2 * homeAfter}, // of another node
		{fmt.Errorf("closed: %w", errHome), 2 * homeAfter, true, 2 * homeAfter},
		{other, time.Second, false, 4 * homeAfter},
		{errHome, 4 * homeAfter, true, 4 * homeAfter},
		{other, time.Hour, false, homeAfter},
	} {
		if back := h.ended(step.why, step.lasted); back != step.back || h.wait() != step.wait {
			t.Errorf("step %d: back %v, then %v; want %v, %v", i, back, h.wait(), step.back, step.wait)
		}
	}
	h.fails = 100
	if h.wait() != homeLimit {
		t.Errorf("at most %v", h.wait())
	}
}

// A node that takes connections and says nothing, as one that hangs, does not
// hold a connection up for long while there is another one.
func TestANodeThatSaysNothingIsPassedOver(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	r := setup(t).declared()
	r.cfg.URLs = []string{"amqp://" + silent.Addr().String(), r.url}
	r.cfg.DialTimeout = time.Hour
	p := NewPublisher(r.cfg, r.log)
	p.lanes[0].link.first = 0
	r.run(p.Run)
	r.ready(p.Ready)
}
