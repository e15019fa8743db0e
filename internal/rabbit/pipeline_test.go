package rabbit

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/task"
)

// fakePipeline returns a pipeline over a session without a broker.
func fakePipeline(cfg Config) *pipeline {
	s := &session{}
	s.ctx, s.end = context.WithCancelCause(context.Background())
	return &pipeline{
		targets: make(map[target]time.Time),
		s:       s, cfg: cfg, log: slog.New(slog.DiscardHandler), shared: &shared{},
		handed:  make(chan confirmation, cfg.MaxInFlight),
		closed:  func() bool { return s.ctx.Err() != nil },
		returns: make(chan amqp.Return, cfg.MaxInFlight),
		blocks:  make(chan amqp.Blocking, 1),
		wake:    make(chan struct{}, 1),
	}
}

// said is what the broker has said about a message.
type said bool

func (ack said) Acked() bool { return bool(ack) }
func (ack said) Done() <-chan struct{} {
	done := make(chan struct{})
	close(done)
	return done
}

func published(p *pipeline, id string) chan error {
	pub := &publication{key: tasksKey, message: text(id), answer: make(chan error, 2)}
	if err := p.take(pub); err != nil {
		pub.settle(err)
	}
	return pub.answer
}

// The channel of returns is closed with the session, maybe before all
// confirmations were received: it must not be read for ever.
func TestWatchEndsWithTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := fakePipeline(DefaultConfig("test"))
		answer := published(p, "a")
		published(p, "b")
		p.next()
		p.handed <- said(true)
		p.handed <- said(false)
		close(p.returns)
		cut := errors.New("cut")
		p.s.end(cut)
		if err := p.watch(t.Context()); err != cut {
			t.Errorf("watch = %v, want %v", err, cut)
		}
		if err := <-answer; err != nil {
			t.Errorf("a confirmed message was answered with %v", err)
		}
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig("test")
		p := fakePipeline(cfg)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { p.watch(ctx) })
		began := time.Now()
		sent := published(p, "sent")
		p.next()
		waiting := published(p, "waiting")
		for _, answer := range []chan error{sent, waiting} {
			if err := <-answer; err != ErrTimeout {
				t.Errorf("answered with %v, want %v", err, ErrTimeout)
			}
		}
		if took := time.Since(began); took < cfg.ConfirmTimeout || took > cfg.ConfirmTimeout+expiryInterval {
			t.Errorf("answered after %v, want %v to %v more", took, cfg.ConfirmTimeout, expiryInterval)
		}
		// While the broker owes a confirmation, nobody waits in vain.
		if err := <-published(p, "refused"); err != ErrTimeout {
			t.Errorf("the next was answered with %v, want %v", err, ErrTimeout)
		}
		p.handed <- said(true)
		synctest.Wait()
		if err := p.ready(); err != nil {
			t.Errorf("not ready after the late confirmation: %v", err)
		}
		if batch := p.next(); len(batch) != 0 {
			t.Errorf("%d overdue messages would be sent", len(batch))
		}
		if len(sent)+len(waiting) != 0 {
			t.Error("answered twice")
		}
		cancel()
		wg.Wait()
	})
}

// What a queue refuses that has accepted nothing is published again for a while.
// What another one refuses is full.
func TestRefusedMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig("test")
		cfg.MaxInFlight = 1
		p := fakePipeline(cfg)
		p.settleIn = settleIn
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { p.watch(ctx) })
		says := func(ack bool) {
			t.Helper()
			if n := len(p.next()); n != 1 {
				t.Fatalf("%d messages are written, want 1", n)
			}
			p.handed <- said(ack)
			synctest.Wait()
		}
		refused := func(answer chan error) bool {
			select {
			case err := <-answer:
				return err == ErrRefused
			default:
				return false
			}
		}

		// It never accepts anything.
		answer, began := published(p, "a"), time.Now()
		for says(false); !refused(answer); says(false) {
			if err := <-published(p, "b"); err != ErrBusy {
				t.Errorf("a message that was refused does not count: %v", err)
			}
			time.Sleep(expiryInterval)
			synctest.Wait()
		}
		if took := time.Since(began); took < settleIn || took > settleIn+2*expiryInterval {
			t.Errorf("answered after %v, want %v", took, settleIn)
		}
		answer = published(p, "c")
		if says(false); !refused(answer) {
			t.Error("not answered at once after that")
		}

		// It was deleted, and another one takes its place, and then is full.
		gone := &publication{key: tasksKey, message: text("d"), answer: make(chan error, 1), optional: true}
		if err := p.take(gone); err != nil {
			t.Fatal(err)
		}
		p.returns <- amqp.Return{RoutingKey: tasksKey, MessageId: "d"}
		if says(true); <-gone.answer != task.ErrNoQueue {
			t.Error("the message was not returned")
		}
		answer = published(p, "e")
		says(false)
		time.Sleep(expiryInterval)
		synctest.Wait()
		if says(true); <-answer != nil {
			t.Error("not published again")
		}
		answer = published(p, "f")
		if says(false); !refused(answer) {
			t.Error("not answered at once when the queue is full")
		}
		cancel()
		wg.Wait()
	})
}

func TestAbandonedAnswersGiveTheReason(t *testing.T) {
	p := fakePipeline(DefaultConfig("test"))
	sent := published(p, "sent")
	p.next()
	waiting := published(p, "waiting")
	reason := errors.New("cut")
	p.abandon(reason)
	if err := <-sent; err != ErrLost {
		t.Errorf("sent: %v, want %v", err, ErrLost)
	}
	for name, answer := range map[string]chan error{"waiting": waiting, "later": published(p, "later")} {
		if err := <-answer; !errors.Is(err, ErrNotConnected) || !errors.Is(err, reason) {
			t.Errorf("%s: %v, want %v with the reason", name, err, ErrNotConnected)
		}
	}
}

// waits collects what link logs.
type waits struct {
	slog.Handler
	all *[]time.Duration
}

func (w waits) WithAttrs([]slog.Attr) slog.Handler { return w }
func (w waits) Enabled(context.Context, slog.Level) bool {
	return true
}
func (w waits) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "wait" {
			*w.all = append(*w.all, a.Value.Duration())
		}
		return true
	})
	return nil
}

// retries returns how long a link waited between tries within a time.
func retries(t *testing.T, cfg Config, within time.Duration) (all []time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		l := newLink(cfg, "test", nil, slog.New(waits{all: &all}))
		began := time.Now()
		l.run(ctx, func(*session) error { panic("connected") })
		if took := time.Since(began); took != within {
			t.Errorf("run returned after %v, want %v", took, within)
		}
		if err := l.Ready(); !errors.Is(err, ErrNotConnected) {
			t.Errorf("Ready = %v, want %v", err, ErrNotConnected)
		}
	})
	return all
}

func TestWaitsGrowAndAreJittered(t *testing.T) {
	cfg := DefaultConfig("test")
	cfg.URLs = []string{"amqp://127.0.0.1:1/"} // nothing listens there
	first := retries(t, cfg, time.Minute)
	if slowest := int(time.Minute / cfg.RetryMax); len(first) < slowest || len(first) > 2*slowest+10 {
		t.Fatalf("%d tries in a minute", len(first))
	}
	want := cfg.RetryMin
	for i, wait := range first {
		if wait < want/2 || wait > want {
			t.Errorf("wait %d is %v, want %v to %v", i, wait, want/2, want)
		}
		want = min(2*want, cfg.RetryMax)
	}
	if slices.Equal(first, retries(t, cfg, time.Minute)) {
		t.Error("two links wait the same times")
	}
}

func TestASessionThatConfirmsNothingIsGivenUp(t *testing.T) {
	t.Parallel()
	now := time.Now()
	waiting := func(suspect time.Duration) *pipeline {
		return &pipeline{s: &session{}, sent: []*publication{{deadline: now, answer: make(chan error, 1)}}, shared: &shared{}, suspect: suspect,
			answers: func(time.Duration) bool { return true }}
	}
	p := waiting(0)
	if err := p.expire(now.Add(stuckTimeout)); err != nil {
		t.Errorf("given up in time: %v", err)
	}
	if err := p.expire(now.Add(stuckTimeout + 1)); err == nil {
		t.Error("kept for ever")
	}
	p.shared.blocked.Store(1) // the broker says by itself when it goes on
	if err := p.expire(now.Add(2 * stuckTimeout)); err != nil {
		t.Errorf("given up while the broker is blocked: %v", err)
	}

	// With other nodes it is given up much sooner, but not because the process
	// itself was suspended.
	p = waiting(suspectAfter)
	for range suspectAfter/expiryInterval - 1 {
		if err := p.expire(now.Add(stuckTimeout)); err != nil {
			t.Fatalf("given up after %v: %v", p.silence, err)
		}
	}
	if !p.lags.Load() {
		t.Error("new messages still go to it")
	}
	if err := p.expire(now); err != errSuspect {
		t.Errorf("kept after %v: %v", p.silence, err)
	}
}

// Sessions after one that confirmed nothing are given up sooner, for as long as
// the nodes may need to give each other up. After that, the broker is slow.
func TestSuspicion(t *testing.T) {
	t.Parallel()
	want := []time.Duration{
		suspectAfter, suspectAgain, suspectAgain, suspectAgain, suspectAgain, 2 * suspectAgain, 4 * suspectAgain,
		8 * suspectAgain, 16 * suspectAgain, stuckTimeout, stuckTimeout,
	}
	for suspects, want := range want {
		if got := suspicionAfter(suspects, 0); got != want {
			t.Errorf("after %d: %v, want %v", suspects, got, want)
		}
	}
	if got := suspicionAfter(1000, suspectStagger); got > stuckTimeout+suspectStagger {
		t.Errorf("after 1000: %v", got)
	}
}

// A node that did not answer is passed over, unless no other one is left.
func TestANodeThatHangsIsPassedOver(t *testing.T) {
	t.Parallel()
	urls := []string{"a", "b", "c"}
	for _, step := range []int{1, -1} {
		l := &link{step: step, hung: make(map[string]time.Time)}
		hangs := func(url string) { l.hung[url] = time.Now().Add(hungFor) }
		if got := l.next(urls, 4); got != 1 {
			t.Errorf("%d, want 1", got)
		}
		hangs("b")
		if got, want := l.next(urls, 1), (1+step)%3; got != want {
			t.Errorf("%d after 1 hangs, want %d", got, want)
		}
		hangs("a")
		hangs("c")
		if got := l.next(urls, 1); got != 1 {
			t.Errorf("%d after all hang, want 1", got)
		}
		l.hung["c"] = time.Now()
		if got := l.next(urls, 1); got != 2 {
			t.Errorf("%d, want 2, which may answer again", got)
		}
	}
}
