package rabbit

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/task"
)

// A Consumer takes tasks over a connection of its own.
type Consumer struct {
	// TookBack, if it is not nil, is called when the broker has ended a session
	// because a task was held for longer than its consumer_timeout. RabbitMQ
	// 4.3 does not say that, and nothing is called.
	TookBack func(consumerTimeout time.Duration)

	link     *link
	prefetch int
	vigil    *vigil
}

// NewConsumer returns a Consumer that takes tasks from the Topology's Queue and
// holds up to prefetch of them at once.
func NewConsumer(cfg Config, prefetch int, log *slog.Logger) *Consumer {
	return &Consumer{
		link: newLink(cfg, "consumer", []string{TasksQueueOf(cfg.Topology.Queue)}, log), prefetch: prefetch,
		vigil: &vigil{cfg: cfg, after: starveAfter, within: starveWithin},
	}
}

// Ready returns nil while tasks are being consumed, otherwise the reason.
func (c *Consumer) Ready() error { return c.link.Ready() }

// Alive returns an error if the consumer's own loop hangs. A broker that hangs
// and handlers that take long do not count.
func (c *Consumer) Alive() error { return c.link.Alive() }

// A Delivery is a task on loan from the broker. Exactly one of Ack, Reject,
// Refuse and Requeue ends the loan. They fail when the session has ended: the
// broker has then taken the task back by itself.
type Delivery struct {
	d       amqp.Delivery
	task    task.Task
	invalid error

	loans *loans
	place *list.Element // in loans.open
	done  bool          // Ack was called
}

// Task returns the task, and an error if the message is not a proper one.
func (d *Delivery) Task() (task.Task, error) { return d.task, d.invalid }

// Attempt counts the deliveries of this task, from 1.
func (d *Delivery) Attempt() int64 { return countHeader(d.d.Headers, deliveryCountHeader) + 1 }

// Ack tells the broker that the task is done. The acknowledgement is sent a
// moment later, together with others. If the session ends before that, the
// broker delivers the task again.
func (d *Delivery) Ack() error { return d.loans.ack(d) }

// Reject tells the broker that this attempt failed. The broker delivers the
// task again, or dead-letters it if it has reached the delivery limit.
func (d *Delivery) Reject() error {
	defer d.loans.gaveUp()
	return d.loans.end(d, func() error { return d.d.Reject(true) })
}

// Refuse has the broker dead-letter the task at once.
func (d *Delivery) Refuse() error {
	defer d.loans.gaveUp()
	return d.loans.end(d, func() error { return d.d.Reject(false) })
}

// Requeue returns the task to the queue, for a reason that is not the task's
// fault. RabbitMQ 4.3 and later do not count that as a failed attempt; earlier
// versions do.
func (d *Delivery) Requeue() error {
	return d.loans.end(d, func() error { return d.d.Nack(false, true) })
}

// Run consumes until ctx ends. It calls handle for each delivery, concurrently.
// The context of handle ends when ctx does, or when the session of the delivery
// ends. When ctx has ended, Run takes no more tasks, waits until every call of
// handle has returned, and returns.
func (c *Consumer) Run(ctx context.Context, handle func(context.Context, *Delivery)) {
	// Handlers of a dead session do not hold up the next session: they can no
	// longer do anything at the broker. Run waits for them only at the end.
	var handlers sync.WaitGroup
	defer handlers.Wait()
	c.link.run(ctx, func(s *session) error {
		// Goroutines are reused for the next deliveries: a new goroutine grows
		// its stack, which is a tenth of the cost of a short task.
		next := make(chan *Delivery)
		noMore := sync.OnceFunc(func() { close(next) })
		defer noMore()
		heard := c.vigil.heard.Load()
		err := c.consume(ctx, s, func(ctx context.Context, d *Delivery) {
			select {
			case next <- d:
			default: // none is free
				handlers.Go(func() {
					handle(ctx, d)
					for d := range next {
						handle(ctx, d)
					}
				})
			}
		}, func() {
			noMore()
			handlers.Wait()
		})
		c.vigil.ended(s, heard)
		if timeout, ok := consumerTimeout(context.Cause(s.ctx)); ok && c.TookBack != nil {
			c.TookBack(timeout)
		}
		return err
	})
}

// timeoutUsed is in the broker's error when a delivery was not acknowledged in
// time: evaluate_consumer_timeout in rabbit_channel.erl, RabbitMQ 3.10 to 4.2.
var timeoutUsed = regexp.MustCompile(`Timeout value used: (\d+) ms`)

// consumerTimeout returns the broker's consumer_timeout if a session ended for
// it.
func consumerTimeout(err error) (time.Duration, bool) {
	e, ok := errors.AsType[*amqp.Error](err)
	if !ok || e.Code != amqp.PreconditionFailed {
		return 0, false
	}
	match := timeoutUsed.FindStringSubmatch(e.Reason)
	if match == nil {
		return 0, false
	}
	timeout, err := time.ParseDuration(match[1] + "ms")
	return timeout, err == nil
}

func (c *Consumer) consume(ctx context.Context, s *session, begin func(context.Context, *Delivery), wait func()) error {
	const tag = "revq-worker"
	topology := c.link.cfg.Topology
	deliveries, err := s.consume(ctx, s.ch, TasksQueueOf(topology.Queue), tag, c.prefetch, nil)
	if err != nil {
		return err
	}
	c.link.up()
	loans := newLoans(s.ch, topology.Queue, c.prefetch)
	loans.gaveUp = c.lookForDeadQueue(s)

	// Handlers learn of a stop only once the broker sends no more tasks: it
	// would deliver a task that they return to us again at once, as another
	// attempt.
	handleCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer func() { cancel(context.Cause(s.ctx)) }()
	defer context.AfterFunc(s.ctx, func() { cancel(context.Cause(s.ctx)) })()

	c.vigil.begin(ctx, s, func() bool { return !loans.isFull() })
	leave := make(chan struct{})
	go c.link.homesick(s, func() { close(leave) })
	var idle <-chan time.Time // looks for a moment without tasks, to leave the node
	for {
		s.loop.Idle()
		select {
		case d, ok := <-deliveries:
			s.loop.Busy()
			if !ok {
				return s.why(nil)
			}
			c.vigil.heard.Add(1)
			begin(handleCtx, loans.begin(d))
		case <-s.ctx.Done():
			return nil
		case <-leave:
			leave, idle = nil, time.Tick(leaveInterval)
		case <-idle:
			s.loop.Busy()
			if !loans.isEmpty() {
				continue
			}
			if err := s.cancel(tag); err != nil {
				return err
			}
			for d := range deliveries { // few, if any
				if err := loans.begin(d).Requeue(); err != nil {
					return fmt.Errorf("return a task: %w", err)
				}
			}
			return errHome
		case <-ctx.Done():
			s.loop.Busy()
			// This comes first: if the channel is closed soon afterwards, the
			// broker handles only some dozens of the answers before that.
			if err := loans.flush(); err != nil {
				return fmt.Errorf("acknowledge: %w", err)
			}
			if err := s.cancel(tag); err != nil {
				return err
			}
			cancel(context.Cause(ctx))
			// Tasks that the broker sent before the cancellation reached it are
			// returned at once, too.
			for d := range deliveries {
				begin(handleCtx, loans.begin(d))
			}
			s.loop.Idle()
			wait() // the handlers answer through this session
			if err := loans.flush(); err != nil {
				return fmt.Errorf("acknowledge: %w", err)
			}
			return nil
		}
	}
}

// leaveInterval is how often a consumer that is to leave its node looks whether
// it has no task at the moment.
const leaveInterval = 100 * time.Millisecond

// cancel ends a consumer. Its deliveries end with the last one that was sent.
func (s *session) cancel(tag string) error {
	hung := time.AfterFunc(closeTimeout, func() { s.raw.Close() })
	defer hung.Stop()
	if err := s.ch.Cancel(tag, false); err != nil {
		return fmt.Errorf("stop consuming: %w", err)
	}
	return nil
}

// deadQueueInterval is the minimum time between two checks for the queue of
// dead letters.
const deadQueueInterval = 30 * time.Second

// lookForDeadQueue returns a function to call when a task may have become a
// dead letter. The function checks from time to time whether the queues of dead
// letters exist, and declares them if not: the broker's dead letters would only
// be kept, or only be told to listeners.
func (c *Consumer) lookForDeadQueue(s *session) func() {
	var last atomic.Int64 // in nanoseconds since 1970
	return func() {
		now, before := time.Now().UnixNano(), last.Load()
		if now-before < int64(deadQueueInterval) || !last.CompareAndSwap(before, now) {
			return
		}
		// Nobody waits for this goroutine. It ends with the session at the
		// latest.
		go func() {
			_ = s.ensureDeadQueues(c.link.cfg.Topology, c.link.log) // it is logged
		}()
	}
}

// ensureDeadQueues looks for the queues that get dead letters: one keeps them,
// and the stream of results tells listeners. It declares those that are
// missing, and logs that. A user who may not look at them is taken to see them.
// The error is [task.ErrNoDeadQueue] if one is missing and cannot be declared.
//
// The broker confirms a dead letter that reaches only one of them. While it
// begins again, it routes to each queue as soon as that has been recovered, and
// says of the other that it is down, which is an error, too.
func (s *session) ensureDeadQueues(t Topology, log *slog.Logger) error {
	missing, err := s.missing(t, func(o object) bool { return o.name == DeadQueue || o.name == ResultsQueue })
	if err != nil || len(missing) == 0 {
		return err
	}
	err = s.repair(t)
	switch {
	case s.ctx.Err() != nil:
		return ErrLost
	case err != nil:
		log.Error("a queue of dead letters is missing; tasks that would be given up are attempted again every minute: run `revq setup`", "queue", missing[0].name, "error", err)
		return fmt.Errorf("%w: %w", task.ErrNoDeadQueue, err)
	}
	log.Warn("a queue of dead letters was missing; declared it", "queue", missing[0].name)
	return nil
}
