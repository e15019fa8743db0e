package rabbit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// The reasons why a message is not known to be queued. ErrNotConnected is one,
// too. After each of them it is safe to publish the message again with the same
// id.
var (
	ErrLost       = errors.New("the connection to the broker was lost before it confirmed")
	ErrTimeout    = errors.New("the broker did not confirm in time")
	ErrBlocked    = errors.New("the broker takes no messages: it is short of memory or disk space")
	ErrUnroutable = errors.New("the broker has no queue for the message: see `revq setup`")
	ErrRefused    = errors.New("the broker refused the message: the queue is full or not available")
	ErrBusy       = errors.New("too many messages wait for the broker's confirmation")
)

// A Publisher publishes tasks and results over connections of its own. Many
// goroutines may use it at once. Each connection has a pipeline, and each
// caller is answered when the broker has confirmed that caller's message. The
// connections take turns, a few messages in a row each, so messages may
// overtake each other. A caller that waits for each answer keeps its messages
// in order.
type Publisher struct {
	lanes   []*lane
	turn    atomic.Uint32
	shared  shared
	results bundler
	counts  [kinds]*counted
}

// burst is how many messages in a row go to the same connection, so that
// messages published at about the same time are sent together.
const burst = 16

// A lane is one of a Publisher's connections.
type lane struct {
	link   *link
	pipe   atomic.Pointer[pipeline] // nil while there is no session
	shared *shared
	hedge  func(*pipeline, *publication) // nil if there is no other lane

	suspects int           // sessions in a row that were given up; only the first of them may have confirmed something
	patience time.Duration // how much later a session is suspect than one of the first lane
}

// NewPublisher returns a Publisher. It is connected while Run runs.
func NewPublisher(cfg Config, log *slog.Logger) *Publisher {
	p := &Publisher{lanes: make([]*lane, cfg.PublishConnections), counts: newCounts(cfg)}
	p.results.maxResults, p.results.maxWaiting = maxBundle, cfg.MaxInFlight
	if n := cfg.ResultsInFlight; n > 0 {
		p.results.maxResults = max(1, min(n/2, maxBundle)) // more might never come
	}
	p.results.publish = func(m amqp.Publishing) <-chan error {
		return p.publish(&publication{exchange: Exchange, key: resultsKey, message: m})
	}
	cfg.MaxInFlight = max(1, cfg.MaxInFlight/len(p.lanes))
	for i := range p.lanes {
		role := "publisher"
		if len(p.lanes) > 1 {
			role = fmt.Sprintf("publisher %d", i+1)
		}
		p.lanes[i] = &lane{link: newLink(cfg, role, []string{Exchange}, log), shared: &p.shared, patience: time.Duration(i%4) * suspectStagger}
		p.lanes[i].link.first = p.lanes[0].link.first + i // on different nodes
		p.lanes[i].link.step = 1 - i&1*2
		if len(p.lanes) > 1 {
			p.lanes[i].hedge = p.hedge
		}
	}
	return p
}

// Run keeps the publisher connected until ctx ends. It answers messages that
// are in flight then with ErrLost.
func (p *Publisher) Run(ctx context.Context) {
	var running sync.WaitGroup
	for _, l := range p.lanes {
		running.Go(func() { l.run(ctx) })
	}
	running.Wait()
}

func (l *lane) run(ctx context.Context) {
	l.link.run(ctx, func(s *session) error {
		if err := s.bounded(ctx, func() error { return s.ch.Confirm(false) }); err != nil {
			return fmt.Errorf("ask for confirmations: %w", err)
		}
		pipe := newPipeline(s, l.link.cfg, l.link.log, l.shared)
		pipe.probe() // there may be an alarm already
		pipe.tryWaiting()
		pipe.suspect, pipe.usual = l.suspicion(l.suspects), l.suspicion(0)
		if s.many && l.hedge != nil {
			pipe.hedge = func(pub *publication) { l.hedge(pipe, pub) }
		}
		l.pipe.Store(pipe)
		l.link.up()
		defer l.pipe.Store(nil)
		go l.link.homesick(s, func() { pipe.leaves.Store(true) })
		err := pipe.run(ctx)
		if pipe.useful {
			l.suspects = 0
		}
		if errors.Is(err, errSuspect) || errors.Is(err, errNoAnswer) {
			l.suspects++
		} else {
			l.suspects = 0
		}
		return err
	})
}

// suspicion returns how long a connection may confirm nothing before the lane
// goes to another node, after so many that were given up.
func (l *lane) suspicion(suspects int) time.Duration {
	if len(l.link.cfg.urls()) == 1 {
		return 0 // there is no other one
	}
	return suspicionAfter(suspects, l.patience)
}

// current returns the pipeline of the session, or the reason why there is none.
func (l *lane) current() (*pipeline, error) {
	if pipe := l.pipe.Load(); pipe != nil {
		return pipe, nil
	}
	if err := l.link.Ready(); err != nil {
		return nil, err
	}
	return nil, ErrNotConnected // the session begins or ends at this moment
}

// Ready returns nil while messages can be published, otherwise the reason.
func (p *Publisher) Ready() error {
	return p.any(0, (*pipeline).ready)
}

// any calls do with one pipeline after the other, beginning with the lane turn,
// until it succeeds; those beside one that lags, at the same node, come later,
// and those that lag come last. If none does, any returns the first error. When
// the broker has blocked one of the connections, all are taken to be blocked:
// the broker tells each connection only when that publishes.
func (p *Publisher) any(turn uint32, do func(*pipeline) error) (first error) {
	if p.shared.blocked.Load() > 0 {
		return ErrBlocked
	}
	try := func(pipe *pipeline, err error) bool {
		if err == nil {
			err = do(pipe)
		}
		if first == nil {
			first = err
		}
		return err == nil
	}
	n := uint32(len(p.lanes))
	var beside, lagging []*pipeline
	for i := range n {
		pipe, err := p.lanes[(turn+i)%n].current()
		switch {
		case err == nil && pipe.lags.Load():
			lagging = append(lagging, pipe)
		case err == nil && p.shared.lagsAt(pipe.s.url):
			beside = append(beside, pipe)
		case try(pipe, err):
			return nil
		}
	}
	for _, pipe := range slices.Concat(beside, lagging) {
		if try(pipe, nil) {
			return nil
		}
	}
	return first
}

// Alive returns an error if the publisher's own loops hang. A broker that hangs
// does not count: its publishers get their answers all the same.
func (p *Publisher) Alive() error {
	for _, l := range p.lanes {
		if err := l.link.Alive(); err != nil {
			return err
		}
	}
	return nil
}

// PublishTask sends t to the workers of its queue, or has it wait if its
// NotBefore is in the future. The channel gets exactly one
// value within the ConfirmTimeout: nil once the broker has confirmed t,
// [task.ErrNoQueue] if there is no such queue, [ErrNoWaiting] if it would have to
// wait and cannot, otherwise the reason why t is not
// known to be queued.
func (p *Publisher) PublishTask(t task.Task) <-chan error {
	if !t.NotBefore.IsZero() {
		if now := time.Now(); t.NotBefore.After(now) {
			return p.publish(waiting(t, now))
		}
	}
	return p.publish(&publication{exchange: Exchange, key: tasksKeyOf(t.Queue), message: encodeTask(t), optional: isOptional(t.Queue)})
}

// isOptional reports whether the queue of tasks need not exist.
func isOptional(queue string) bool { return queue != wire.DefaultQueue && queue != "" }

// PublishDead sends t to the dead letters, with the reason and with what its
// handler said at last on its standard error, and answers as PublishTask does,
// with [task.ErrNoDeadQueue] if nothing would keep it. The same message tells
// listeners the reason.
func (p *Publisher) PublishDead(t task.Task, reason, said string) <-chan error {
	return p.publish(&publication{exchange: Exchange, key: deadKey, message: encodeDead(t, reason, said, time.Now())})
}

// PublishResult sends r to the listeners, together with other results of about
// the same time, and answers as PublishTask does. The ConfirmTimeout begins
// when the message is published, which may have to wait for the confirmation of
// earlier messages.
//
// A progress is a message of its own, which is sent at once: nobody waits for
// its confirmation, and it must come before the result.
func (p *Publisher) PublishResult(r task.Result) <-chan error {
	if r.Kind == task.Progress {
		return p.publish(&publication{exchange: Exchange, key: resultsKey, message: encodeProgress(r)})
	}
	return p.results.add(r)
}

func (p *Publisher) publish(pub *publication) <-chan error {
	pub.answer, pub.counted = make(chan error, 1), p.counts[kindOf(pub.key)]
	if err := p.any(p.turn.Add(1)/burst, func(pipe *pipeline) error { return pipe.accept(pub) }); err != nil {
		pub.settle(err)
	}
	return pub.answer
}
