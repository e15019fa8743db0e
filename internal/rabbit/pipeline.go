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
)

// expiryInterval is how often a pipeline looks for overdue messages. A
// publisher waits at most this much longer than its ConfirmTimeout.
const expiryInterval = 50 * time.Millisecond

// stuckTimeout is how long after its deadline a message may stay in flight, on
// a connection that seems alive and is not blocked. Then the pipeline gives up
// the connection, and the link opens another one: a queue may have lost its
// leader.
const stuckTimeout = 30 * time.Second

// repairInterval is the minimum time between attempts to re-create a queue or
// binding that was removed while a publisher runs.
const repairInterval = time.Second

// probeInterval is how often a publisher that publishes nothing sends a probe:
// the broker says that it is short of memory or disk space only to connections
// that publish. An idle publisher may not know of a shortage for that long.
const probeInterval = 5 * time.Second

// probeKey is the routing key of probes. No queue is bound to it: the broker
// confirms a probe and drops it.
const probeKey = "probe"

// settleIn is for how long a message that is refused is published again, unless
// the queue has accepted one over this connection: it may have just been
// declared, and another client can see and use it before it runs. Measured: a
// few milliseconds. A queue that is full refuses the first messages of a
// connection no sooner than that.
const settleIn = time.Second

// A publication is a message to publish and its answer.
type publication struct {
	exchange, key string
	message       amqp.Publishing
	deadline      time.Time
	answer        chan error // has room for the one answer
	settled       bool
	hedged        bool // it was published over another connection, too
	probe         bool // it is meant for no queue
	optional      bool // its queue need not exist: if it does not, nothing is repaired
	counted       *counted
}

// route tells messages apart that the broker returns. Tasks with the same id
// may be in flight to several queues.
type route struct{ exchange, key, id string }

// A target is where a message goes: a queue, or several.
type target struct{ exchange, key string }

func (p *publication) target() target { return target{p.exchange, p.key} }

func (p *publication) route() route { return route{p.exchange, p.key, p.message.MessageId} }

// settle answers the publication once. The pipeline's lock must be held.
func (p *publication) settle(err error) {
	if !p.settled {
		p.settled = true
		p.counted.count(err, p.deadline)
		if p.counted != nil && errors.Is(err, ErrRefused) {
			p.counted.refusal.Store(&Refusal{queueOfRoute(p.exchange, p.key), time.Now()})
		}
		p.answer <- err
	}
}

// A confirmation is what the broker says about one message: an
// [amqp.DeferredConfirmation].
//
// Channel.NotifyPublish would be simpler, but loses tasks (amqp091-go 1.16). The
// broker refuses a message for a full queue at once, and later confirms messages
// before and after it with one frame. NotifyPublish then takes the refused one
// to be confirmed, too.
type confirmation interface {
	Done() <-chan struct{} // closed when the broker has said it, or the channel is closed
	Acked() bool
}

// A pipeline publishes over one session. One goroutine writes to it. Another
// one (watch) receives everything that the broker says. Callers only wait for
// their answer, so a connection that hangs does not hold them up.
type pipeline struct {
	s      *session
	cfg    Config
	log    *slog.Logger
	shared *shared

	handed  chan confirmation // of what was handed to the connection, in its order
	closed  func() bool       // reports whether the session's channel is closed
	returns chan amqp.Return
	blocks  chan amqp.Blocking              // memory or disk alarm at the broker
	wake    chan struct{}                   // waiting is not empty
	access  atomic.Pointer[access]          // to the WaitExchange
	dead    atomic.Pointer[access]          // to the queues of dead letters
	lags    atomic.Bool                     // others are preferred for new messages; it is counted in shared.lagging
	leaves  atomic.Bool                     // the session ends when nothing is in flight
	suspect time.Duration                   // how long nothing may be confirmed; 0: up to stuckTimeout
	usual   time.Duration                   // the same once something was confirmed
	answers func(within time.Duration) bool // reports whether the node answers in time
	hedge   func(*publication)              // publishes it over another connection, too; nil if there is none

	mu      sync.Mutex
	refusal error          // why no messages are taken now; nil if they are
	blocked bool           // the broker reads nothing at present
	probing bool           // there is a probe in waiting or sent
	waiting []*publication // taken, not handed to the connection yet
	sent    []*publication // in flight, in the order of their delivery tags
	refused []*publication // to be published again at the next expire
	silence time.Duration  // since the last confirmation, while messages are in flight
	useful  bool           // a message was confirmed
	hedged  time.Time      // when hedge was called last

	settleIn time.Duration        // see the constant
	newest   target               // the last one that accepted a message
	targets  map[target]time.Time // until when refusals of each are tried again; zero if it has accepted a message
}

// newPipeline returns a pipeline over s, whose channel is in confirm mode.
func newPipeline(s *session, cfg Config, log *slog.Logger, all *shared) *pipeline {
	return &pipeline{
		s: s, cfg: cfg, log: log, shared: all,
		// There is room for every message in flight and a probe. The writer
		// never has to wait, nor does the reader of amqp091-go, which drops a
		// notification that is not received within five seconds.
		handed:  make(chan confirmation, cfg.MaxInFlight+1),
		closed:  s.ch.IsClosed,
		answers: s.answers,
		returns: s.ch.NotifyReturn(make(chan amqp.Return, cfg.MaxInFlight)),
		blocks:  s.conn.NotifyBlocked(make(chan amqp.Blocking, 1)),
		wake:    make(chan struct{}, 1),

		settleIn: settleIn,
		targets:  make(map[target]time.Time),
	}
}

// take accepts pub into the pipeline, or returns the reason why not.
func (p *pipeline) take(pub *publication) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	pub.deadline = now.Add(p.cfg.ConfirmTimeout) // under the lock: they are queued in this order
	limit := p.cfg.MaxInFlight
	if p.probing {
		limit++ // the probe does not count
	}
	switch {
	case p.refusal != nil:
		return p.refusal
	case pub.probe:
		p.probing = true
	case len(p.waiting)+len(p.sent)+len(p.refused) >= limit:
		return ErrBusy
	}
	p.shared.published.Store(now.UnixNano())
	p.waiting = append(p.waiting, pub)
	p.wakeWriter()
	return nil
}

// accept is take once it is known that pub may be published.
func (p *pipeline) accept(pub *publication) error {
	switch {
	case pub.exchange == WaitExchange:
		return p.takeWaiting(pub)
	case pub.key == deadKey:
		return p.takeDead(pub)
	}
	return p.take(pub)
}

// wakeWriter has the writer look at waiting.
func (p *pipeline) wakeWriter() {
	select {
	case p.wake <- struct{}{}:
	default: // it has not looked since the last one
	}
}

// probe publishes a probe, unless one is in flight.
func (p *pipeline) probe() {
	p.mu.Lock()
	probing := p.probing
	p.mu.Unlock()
	if !probing {
		// If messages are refused, so is the probe: the cause is known then.
		_ = p.take(&publication{exchange: Exchange, key: probeKey, probe: true, answer: make(chan error, 1)})
	}
}

func (p *pipeline) ready() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refusal
}

// run works until the session or ctx ends. It answers all publications before
// it returns.
func (p *pipeline) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(p.s.ctx, func() { cancel(context.Cause(p.s.ctx)) })
	defer stop()

	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.write(ctx); err != nil {
			cancel(err)
		}
	})
	if err := p.watch(ctx); err != nil {
		cancel(err)
	}
	p.abandon(context.Cause(ctx))
	if errors.Is(context.Cause(ctx), errSuspect) {
		p.s.end(errSuspect) // it is not asked to agree
	}
	// The writer may be in the middle of a write to a connection that hangs.
	p.s.close()
	wg.Wait()
	return context.Cause(ctx)
}

// abandon answers all publications that were not answered yet.
func (p *pipeline) abandon(reason error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refusal = fmt.Errorf("%w: %w", ErrNotConnected, reason)
	for _, pub := range p.waiting {
		pub.settle(p.refusal)
	}
	for _, pub := range p.sent {
		pub.settle(ErrLost)
	}
	for _, pub := range p.refused {
		pub.settle(ErrRefused)
	}
	p.waiting, p.sent, p.refused = nil, nil, nil
	p.block(false)
	p.lag(false)
}

// write hands the waiting publications to the connection.
func (p *pipeline) write(ctx context.Context) error {
	for {
		select {
		case <-p.wake:
		case <-ctx.Done():
			return nil
		}
		for _, pub := range p.next() {
			confirmed, err := p.s.ch.PublishWithDeferredConfirm(pub.exchange, pub.key, !pub.probe, false, pub.message)
			if err != nil {
				err = fmt.Errorf("publish: %w", err)
				if errors.Is(err, amqp.ErrClosed) {
					err = p.s.why(err)
				}
				return err
			}
			p.handed <- confirmed
		}
	}
}

// next moves all waiting publications to sent, in the order in which they will
// be written, and returns them. It drops those that were answered already
// because they were overdue.
func (p *pipeline) next() []*publication {
	p.mu.Lock()
	defer p.mu.Unlock()
	batch := make([]*publication, 0, len(p.waiting))
	for _, pub := range p.waiting {
		switch {
		case !pub.settled:
			batch = append(batch, pub)
		case pub.probe:
			p.probing = false
		}
	}
	clear(p.waiting)
	p.waiting = p.waiting[:0]
	p.sent = append(p.sent, batch...)
	return batch
}

// watch receives what the broker says, and answers overdue publications.
func (p *pipeline) watch(ctx context.Context) error {
	expiry := time.NewTicker(expiryInterval)
	defer expiry.Stop()
	returned := make(map[route]int) // unroutable and not confirmed yet
	var repaired time.Time
	var oldest confirmation // of what is in flight; nil until that is known
	for {
		next, done := p.handed, (<-chan struct{})(nil)
		if oldest != nil {
			next, done = nil, oldest.Done()
		}
		select {
		case oldest = <-next:
		case <-done:
			ack := oldest.Acked()
			oldest = nil
			if !ack && p.closed() { // amqp091-go says no to all that is in flight
				return p.s.why(errors.New("the channel was closed"))
			}
			// The broker returns a message before it confirms it, so the
			// return, if any, has arrived already.
			p.drainReturns(returned)
			if missing := p.confirmed(ack, returned); missing && time.Since(repaired) > repairInterval {
				repaired = time.Now()
				go p.repair()
			}
		case b, ok := <-p.blocks:
			if !ok {
				return p.s.why(errors.New("the connection was closed"))
			}
			p.setBlocked(b)
		case now := <-expiry.C:
			p.s.loop.Busy() // regularly, whether or not the broker says anything
			if err := p.expire(now); err != nil {
				return err
			}
			for _, pub := range p.overdue(now) {
				p.hedge(pub)
			}
			if now.Sub(time.Unix(0, p.shared.published.Load())) >= probeInterval {
				p.probe()
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *pipeline) drainReturns(returned map[route]int) {
	for {
		select {
		case r, ok := <-p.returns:
			if !ok {
				return // the session has ended; watch still receives its last confirmations
			}
			returned[route{r.Exchange, r.RoutingKey, r.MessageId}]++
		default:
			return
		}
	}
}

// confirmed answers the oldest publication in flight, and reports whether the
// broker returned it as unroutable although its queue has to exist.
func (p *pipeline) confirmed(ack bool, returned map[route]int) (missing bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pub := p.sent[0]
	p.sent[0] = nil
	p.sent = p.sent[1:]
	if pub.probe {
		p.probing = false
	}
	if !pub.probe {
		p.useful = true
		p.suspect = max(p.suspect, p.usual)
	}
	if p.hedge != nil && ack {
		p.shared.confirmed.Store(time.Now().UnixNano())
	}
	p.silence = 0
	p.lag(false)
	switch {
	case len(returned) > 0 && returned[pub.route()] > 0:
		if returned[pub.route()]--; returned[pub.route()] == 0 {
			delete(returned, pub.route())
		}
		delete(p.targets, pub.target()) // a queue that takes its place begins anew
		p.newest = target{}
		if pub.optional {
			pub.settle(task.ErrNoQueue)
		} else {
			missing = true
			pub.settle(ErrUnroutable)
		}
	case ack:
		if to := pub.target(); to != p.newest {
			p.newest, p.targets[to] = to, time.Time{}
		}
		pub.settle(nil)
	case !pub.settled && p.settles(pub.target()):
		p.refused = append(p.refused, pub)
	default:
		pub.settle(ErrRefused)
	}
	p.review()
	return missing
}

// settles reports whether a target that has just refused a message may be too
// new to accept any. The lock must be held.
func (p *pipeline) settles(to target) bool {
	now := time.Now()
	until, known := p.targets[to]
	if !known {
		until = now.Add(p.settleIn)
		p.targets[to] = until
	}
	return now.Before(until)
}

// setBlocked answers all publications when the broker stops reading: the
// messages may arrive later, but nobody knows when.
func (p *pipeline) setBlocked(b amqp.Blocking) {
	if b.Active {
		p.log.Warn("the broker takes no messages", "reason", b.Reason)
	} else {
		p.log.Info("the broker takes messages again")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.block(b.Active)
	if b.Active {
		p.settleAll(func(*publication) bool { return true }, ErrBlocked)
	}
	p.review()
}

// lag records whether others are preferred for new messages. The lock must be
// held.
func (p *pipeline) lag(lags bool) {
	switch before := p.lags.Swap(lags); {
	case lags && !before:
		p.shared.count(p.s.url, 1)
	case !lags && before:
		p.shared.count(p.s.url, -1)
	}
}

// block records whether the broker has blocked the connection. The lock must be
// held.
func (p *pipeline) block(blocked bool) {
	switch {
	case blocked && !p.blocked:
		p.shared.blocked.Add(1)
	case !blocked && p.blocked:
		p.shared.blocked.Add(-1)
	}
	p.blocked = blocked
}

// expire is called every expiryInterval. It answers overdue publications, and
// returns an error when the session is to be given up. The silence is counted in
// calls, so that a process that was suspended has not waited meanwhile.
func (p *pipeline) expire(now time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.settleAll(func(pub *publication) bool { return now.After(pub.deadline) }, ErrTimeout)
	p.review()
	if len(p.refused) > 0 {
		p.waiting = slices.Concat(p.refused, p.waiting)
		p.refused = nil
		p.wakeWriter()
	}
	if p.leaves.Load() && len(p.sent)+len(p.waiting) == 0 {
		return errHome
	}
	if len(p.sent) == 0 || p.shared.blocked.Load() > 0 {
		p.silence = 0
		p.lag(false)
		return nil
	}
	p.silence += expiryInterval
	p.lag(p.silence >= lagsAfter)
	if p.suspect > 0 && p.silence == lagsAfter {
		go p.mustAnswer()
	}
	switch {
	case p.suspect > 0 && p.silence >= p.suspect:
		return errSuspect
	case now.Sub(p.sent[0].deadline) > stuckTimeout:
		return fmt.Errorf("the broker did not confirm a message for %v after its deadline", stuckTimeout)
	}
	return nil
}

func (p *pipeline) settleAll(which func(*publication) bool, err error) {
	for _, list := range [][]*publication{p.sent, p.waiting, p.refused} {
		for _, pub := range list {
			if which(pub) {
				pub.settle(err)
			}
		}
	}
}

// review decides whether more messages are taken. They are not while the broker
// says that it reads nothing, and not while the oldest message in flight is
// overdue, since the next one would be overdue, too.
func (p *pipeline) review() {
	switch {
	case p.blocked:
		p.refusal = ErrBlocked
	case len(p.sent) > 0 && p.sent[0].settled:
		p.refusal = ErrTimeout
	default:
		p.refusal = nil
	}
}

// repair declares what was deleted at the broker since the session began.
func (p *pipeline) repair() {
	err := p.s.bounded(p.s.ctx, func() error { return p.s.repair(p.cfg.Topology) })
	if p.s.ctx.Err() != nil {
		return // the next session looks again
	}
	if err != nil {
		p.log.Error("a message was unroutable, and the missing objects could not be declared: run `revq setup` as a user who may declare them", "error", err)
		return
	}
	p.log.Warn("a message was unroutable: declared the missing objects at the broker")
}
