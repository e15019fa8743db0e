package rabbit

import (
	"container/list"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/task"
)

// A Consumer takes tasks over a connection of its own.
type Consumer struct {
	link     *link
	prefetch int
}

// NewConsumer returns a Consumer that holds up to prefetch tasks at once.
func NewConsumer(cfg Config, prefetch int, log *slog.Logger) *Consumer {
	return &Consumer{link: newLink(cfg, "consumer", []string{TasksQueue}, log), prefetch: prefetch}
}

// Ready returns nil while tasks are being consumed, otherwise why not.
func (c *Consumer) Ready() error { return c.link.Ready() }

// Alive returns an error if the consumer hangs. A broker that does so, and
// handlers that take their time, are no reason.
func (c *Consumer) Alive() error { return c.link.Alive() }

// A Delivery is a task on loan from the broker. Exactly one of Ack, Reject,
// Refuse and Requeue ends the loan. They fail when the session has ended, and
// then the broker has taken the task back by itself.
type Delivery struct {
	d       amqp.Delivery
	task    task.Task
	invalid error

	loans *loans
	place *list.Element // among the loans
	done  bool          // and to be acknowledged
}

// Task returns the task, and an error if the message is not a proper one.
func (d *Delivery) Task() (task.Task, error) { return d.task, d.invalid }

// Attempt counts the deliveries of this task, from 1.
func (d *Delivery) Attempt() int64 { return intHeader(d.d.Headers, deliveryCountHeader) + 1 }

// Ack tells the broker that the task is done, a moment later, together with
// others. If the session ends before, the task comes again.
func (d *Delivery) Ack() error { return d.loans.ack(d) }

// Reject tells the broker that this attempt failed. The task is delivered
// again, until it has reached the delivery limit and goes to the dead letters.
func (d *Delivery) Reject() error {
	defer d.loans.gaveUp()
	return d.loans.end(d, func() error { return d.d.Reject(true) })
}

// Refuse sends the task to the dead letters at once.
func (d *Delivery) Refuse() error {
	defer d.loans.gaveUp()
	return d.loans.end(d, func() error { return d.d.Reject(false) })
}

// Requeue gives the task back through no fault of its own. RabbitMQ 4.3 and
// later do not count that as an attempt, earlier versions do.
func (d *Delivery) Requeue() error {
	return d.loans.end(d, func() error { return d.d.Nack(false, true) })
}

// Run consumes until ctx ends. It calls handle for each delivery, all at the
// same time; the context given to handle ends when Run's does, or
// when the session ends that brought the delivery. When ctx has ended, Run
// takes no more tasks, waits until every handle has returned, and returns.
func (c *Consumer) Run(ctx context.Context, handle func(context.Context, *Delivery)) error {
	// Handlers of a session that died do not hold up the next one: they cannot
	// do anything to the broker any more. They are waited for at the end only.
	var handlers sync.WaitGroup
	defer handlers.Wait()
	c.link.run(ctx, func(s *session) error {
		// Goroutines are kept for the next deliveries: a new one would have to
		// grow its stack each time, a tenth of what a short task costs.
		next := make(chan *Delivery)
		noMore := sync.OnceFunc(func() { close(next) })
		defer noMore()
		return c.consume(ctx, s, func(ctx context.Context, d *Delivery) {
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
	})
	return nil
}

func (c *Consumer) consume(ctx context.Context, s *session, begin func(context.Context, *Delivery), wait func()) error {
	const tag = "revq-worker"
	deliveries, err := s.consume(ctx, s.ch, TasksQueue, tag, c.prefetch, nil)
	if err != nil {
		return err
	}
	c.link.up()
	loans := newLoans(s.ch, c.prefetch)
	loans.gaveUp = c.lookForDeadQueue(s)

	// A stop is for handlers only once the broker sends no more: what they
	// give back would come again at once, as one more attempt.
	handleCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer func() { cancel(context.Cause(s.ctx)) }()
	defer context.AfterFunc(s.ctx, func() { cancel(context.Cause(s.ctx)) })()

	for {
		s.loop.Idle()
		select {
		case d, ok := <-deliveries:
			s.loop.Busy()
			if !ok {
				return s.why(nil)
			}
			begin(handleCtx, loans.begin(d))
		case <-s.ctx.Done():
			return nil
		case <-ctx.Done():
			s.loop.Busy()
			// First of all, since the broker drops what is beyond some
			// dozens of answers when the channel is closed soon after them.
			if err := loans.flush(); err != nil {
				return fmt.Errorf("acknowledge: %w", err)
			}
			hung := time.AfterFunc(closeTimeout, func() { s.raw.Close() })
			err := s.ch.Cancel(tag, false)
			hung.Stop()
			if err != nil {
				return fmt.Errorf("stop consuming: %w", err)
			}
			cancel(context.Cause(ctx))
			// What came before the broker knew goes back at once, too.
			for d := range deliveries {
				begin(handleCtx, loans.begin(d))
			}
			s.loop.Idle()
			wait() // their answers go through this session
			if err := loans.flush(); err != nil {
				return fmt.Errorf("acknowledge: %w", err)
			}
			return nil
		}
	}
}

// deadQueueInterval is the least time between two looks for the queue of dead
// letters.
const deadQueueInterval = 30 * time.Second

// lookForDeadQueue returns what is to be called when a task may have been given
// up. It looks, now and then, whether the queue of dead letters is there, and
// declares it if it is not: without it, the broker keeps such tasks in their
// queue and says so only in its own log.
func (c *Consumer) lookForDeadQueue(s *session) func() {
	var last atomic.Int64 // in nanoseconds since 1970
	return func() {
		now, before := time.Now().UnixNano(), last.Load()
		if now-before < int64(deadQueueInterval) || !last.CompareAndSwap(before, now) {
			return
		}
		// Nobody waits for it, and it ends with the session at the latest.
		go func() {
			missing, err := s.missing(c.link.cfg.Topology, func(o object) bool { return o.name == DeadQueue })
			if err == nil && len(missing) == 0 {
				return
			}
			if err == nil {
				err = s.repair(c.link.cfg.Topology)
			}
			switch {
			case s.ctx.Err() != nil:
			case err != nil:
				c.link.log.Error("the queue of dead letters is missing; tasks that are given up stay in "+TasksQueue+": run `revq setup`", "queue", DeadQueue, "error", err)
			default:
				c.link.log.Warn("the queue of dead letters was missing; declared it", "queue", DeadQueue)
			}
		}()
	}
}
