package rabbit

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// A task that must not run yet waits in one of a few queues, each with a time to
// live, from which the broker sends it on to the queue of its workers. So
// nothing but the broker has to live while it waits.
//
// The message says when it is due. Whoever publishes it takes the longest queue
// that does not make it late. Most times are not one of those of the queues: a
// worker that gets a task before it is due publishes it again, for the rest.
//
// An exchange for each binary digit of the time, as other systems have it,
// needs no worker on the way. Tried: it takes 30 to 70 times as long to publish
// a message, since each of 17 topic exchanges looks at its key.
const (
	WaitExchange   = "revq.wait"    // direct; by seconds and queue, to the queues in which tasks wait
	DueExchange    = "revq.due"     // direct; by queue, to the queues of tasks
	OrphanExchange = "revq.orphans" // fanout; tasks that were due when their queue was gone
	waitQueue      = "revq.wait."   // before the number of seconds

	// carbonCopy is the header with which RabbitMQ routes a message by more
	// keys (sender-selected distribution). The broker dead-letters a message
	// with the keys that it was published with: its own one leads into the
	// waiting queue, and this one out of it.
	carbonCopy = "CC"

	// maxWaiting is how many tasks may be in one of the queues; the broker
	// refuses more. It keeps some 200 bytes in memory for each.
	maxWaiting = 1_000_000
)

// waitSeconds are the times to live of the queues in which tasks wait, in seconds.
// Each is four times the one before: doubling waits need one or two rounds,
// and any other three of each queue at most.
var waitSeconds = []int64{1, 4, 16, 64, 256, 1024, 4096, 16384}

// tolerance is how much later than it is due a task may come, so that it needs a
// round less: a moment passes until it is published.
const tolerance = 100 * time.Millisecond

// waitFor returns the longest of waitSeconds that is not longer than rest, apart
// from the tolerance, or the shortest one.
func waitFor(rest time.Duration) int64 {
	best := waitSeconds[0]
	for _, seconds := range waitSeconds {
		if time.Duration(seconds)*time.Second <= rest+tolerance {
			best = seconds
		}
	}
	return best
}

func waitKey(seconds int64, queue string) string {
	if queue == "" {
		queue = wire.DefaultQueue
	}
	return strconv.FormatInt(seconds, 10) + "." + queue
}

// waitQueues returns the queues in which tasks wait.
func waitQueues() (all []queue) {
	for _, seconds := range waitSeconds {
		all = append(all, queue{name: waitQueue + strconv.FormatInt(seconds, 10), args: amqp.Table{
			amqp.QueueTypeArg:        amqp.QueueTypeQuorum,
			amqp.QueueMessageTTLArg:  seconds * 1000,
			amqp.QueueMaxLenArg:      int64(maxWaiting - beyondLimit),
			amqp.QueueOverflowArg:    amqp.QueueOverflowRejectPublish,
			"x-dead-letter-strategy": "at-least-once",
			"x-dead-letter-exchange": DueExchange,
		}})
	}
	return all
}

// bindWaiting binds what leads tasks of a queue into the waiting queues and out
// of them.
func bindWaiting(ch *amqp.Channel, name string) error {
	if err := ch.QueueBind(TasksQueueOf(name), tasksKeyOf(name), DueExchange, false, nil); err != nil {
		return fmt.Errorf("bind the queue %s to %s: %w", TasksQueueOf(name), DueExchange, err)
	}
	for _, seconds := range waitSeconds {
		queue := waitQueue + strconv.FormatInt(seconds, 10)
		if err := ch.QueueBind(queue, waitKey(seconds, name), WaitExchange, false, nil); err != nil {
			return fmt.Errorf("bind the queue %s to %s: %w", queue, WaitExchange, err)
		}
	}
	return nil
}

// waiting returns t as a message for a waiting queue.
func waiting(t task.Task, now time.Time) *publication {
	m := encodeTask(t)
	setQueue(m.Headers, t.Queue)
	m.Headers[carbonCopy] = []any{tasksKeyOf(t.Queue)}
	return &publication{exchange: WaitExchange, key: waitKey(waitFor(t.NotBefore.Sub(now)), t.Queue), message: m, optional: isOptional(t.Queue)}
}

// ErrNoWaiting means that the broker, as it is set up, lets no task wait.
var ErrNoWaiting = errors.New("the broker lets no tasks wait")

// recheckAfter is how long a session believes that no task can wait.
const recheckAfter = 5 * time.Second

// An access is whether a session may publish something that needs a look first.
//
// If it publishes to the WaitExchange and may not, or if there is no such
// exchange, the broker closes the channel with all that is in flight. So this
// is tried on a channel of its own first.
//
// A dead letter goes to a queue and to the stream of results, so the broker
// confirms it even if one of them is missing.
type access struct {
	known chan struct{} // closed when err is known
	err   error
	at    time.Time // when err became known
}

// tryWaiting begins to find out whether tasks can wait. It ends with the
// session at the latest.
func (p *pipeline) tryWaiting() *access {
	a := &access{known: make(chan struct{})}
	p.access.Store(a)
	go func() {
		defer close(a.known)
		a.err = p.s.mayWait(p.cfg)
		a.at = time.Now()
		if a.err != nil && p.s.ctx.Err() == nil {
			p.log.Warn("tasks with a delay are refused", "error", a.err)
		}
	}()
	return a
}

// takeWaiting is take for a task that has to wait.
func (p *pipeline) takeWaiting(pub *publication) error {
	a := p.access.Load()
	select {
	case <-a.known:
		if a.err != nil && time.Since(a.at) > recheckAfter {
			p.tryWaiting()
		}
		if a.err != nil {
			return a.err
		}
		return p.take(pub)
	default:
	}
	go p.takeAfter(a, pub)
	return nil
}

// takeAfter is take once it is known that pub may be published. It settles pub
// if it may not, or if that does not become known in time.
func (p *pipeline) takeAfter(a *access, pub *publication) {
	timeout := time.NewTimer(p.cfg.ConfirmTimeout)
	defer timeout.Stop()
	var err error
	select {
	case <-a.known:
		err = a.err
	case <-p.s.ctx.Done():
		err = ErrLost
	case <-timeout.C:
		err = ErrTimeout
	}
	if err == nil {
		err = p.take(pub)
	}
	if err != nil {
		pub.settle(err) // the pipeline does not have it
	}
}

// mayWait returns nil if this session may publish to the WaitExchange. If it
// does not exist, mayWait declares it.
func (s *session) mayWait(cfg Config) error {
	err := s.tryPublish(WaitExchange)
	var refused *amqp.Error
	if errors.As(err, &refused) && refused.Code == amqp.NotFound {
		if repaired := s.repair(cfg.Topology); repaired != nil {
			return fmt.Errorf("%w: %w", ErrNoWaiting, repaired)
		}
		err = s.tryPublish(WaitExchange)
	}
	vhost, user := cfg.Login()
	switch {
	case err == nil:
		return nil
	case isRefused(err):
		return fmt.Errorf(`%w: the user may not write to %s: allow it as in rabbitmqctl -p '%s' set_permissions '%s' CONFIGURE '^revq(\.wait)?$' READ`,
			ErrNoWaiting, WaitExchange, vhost, user)
	}
	return fmt.Errorf("%w: %w", ErrNoWaiting, err)
}

// tryPublish publishes a probe, for no queue, on a channel of its own.
func (s *session) tryPublish(exchange string) error {
	return s.onChannel(func(ch *amqp.Channel) error {
		closed := ch.NotifyClose(make(chan *amqp.Error, 1))
		if err := ch.Confirm(false); err != nil {
			return err
		}
		d, err := ch.PublishWithDeferredConfirm(exchange, probeKey, false, false, amqp.Publishing{AppId: "revq"})
		if err != nil {
			return err
		}
		if d.Wait() {
			return nil
		}
		if err := <-closed; err != nil {
			return err
		}
		return amqp.ErrClosed
	})
}
