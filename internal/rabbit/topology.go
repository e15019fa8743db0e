package rabbit

import (
	"context"
	"errors"
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"
)

// The objects at the broker, and the keys that lead to them. They are the same
// for every installation: use virtual hosts to run several on one broker.
const (
	Exchange     = "revq"         // direct; everything is published here
	TasksQueue   = "revq.tasks"   // quorum; the API writes, workers read
	DeadQueue    = "revq.dead"    // quorum; tasks given up
	ResultsQueue = "revq.results" // stream; workers write, sockets read

	tasksKey   = "tasks"
	deadKey    = "dead"
	resultsKey = "results"
)

// Topology sizes the objects at the broker. They keep the sizes that they
// were declared with: to change them, delete the object and declare it again.
type Topology struct {
	// MaxTasks is how many tasks may wait; more are refused. Default
	// 1,000,000: minutes of work for fast workers, and a few GB at worst
	// where texts are short.
	MaxTasks int64

	// DeliveryLimit is how often a task may come back before it goes to the
	// dead letters: one that fails always is attempted once more than that.
	// Default 5.
	DeliveryLimit int64

	// ResultsMaxAge is how long results are kept for listeners that resume,
	// as a number and a unit of Y, M, D, h, m, s. Default 24h.
	ResultsMaxAge string

	// ResultsMaxBytes bounds the kept results, whatever their age. Default 1 GiB.
	ResultsMaxBytes int64

	// ResultsSegmentBytes is the size of the files that the broker drops as a
	// whole when results are too old or too many. Default 16 MiB: the broker's
	// own 500 MB would keep little at all within ResultsMaxBytes.
	ResultsSegmentBytes int64
}

// DefaultTopology returns the sizes used unless others are given.
func DefaultTopology() Topology {
	return Topology{
		MaxTasks:            1_000_000,
		DeliveryLimit:       5,
		ResultsMaxAge:       "24h",
		ResultsMaxBytes:     1 << 30,
		ResultsSegmentBytes: 16 << 20,
	}
}

type queue struct {
	name, key string
	args      amqp.Table
}

// queues returns the queues in the order in which they are declared: what a
// queue refers to comes before it.
func (t Topology) queues() []queue {
	return []queue{
		{DeadQueue, deadKey, amqp.Table{
			amqp.QueueTypeArg: amqp.QueueTypeQuorum,
			// Looking at a dead letter delivers it. RabbitMQ 4 would drop one
			// that was looked at twenty times, and 3 takes no "unlimited".
			"x-delivery-limit": int64(1_000_000_000),
		}},
		{ResultsQueue, resultsKey, amqp.Table{
			amqp.QueueTypeArg:                 amqp.QueueTypeStream,
			amqp.StreamMaxAgeArg:              t.ResultsMaxAge,
			amqp.StreamMaxLenBytesArg:         t.ResultsMaxBytes,
			amqp.StreamMaxSegmentSizeBytesArg: t.ResultsSegmentBytes,
		}},
		{TasksQueue, tasksKey, amqp.Table{
			amqp.QueueTypeArg:     amqp.QueueTypeQuorum,
			amqp.QueueMaxLenArg:   t.MaxTasks,
			amqp.QueueOverflowArg: amqp.QueueOverflowRejectPublish,
			"x-delivery-limit":    t.DeliveryLimit,
			// At least once needs reject-publish: a dead letter leaves the
			// queue only when the dead queue has confirmed it.
			"x-dead-letter-strategy":    "at-least-once",
			"x-dead-letter-exchange":    Exchange,
			"x-dead-letter-routing-key": deadKey,
		}},
	}
}

// Setup declares all objects at the broker and binds them. It changes nothing
// that exists, and fails where something exists with other arguments.
func Setup(ctx context.Context, cfg Config) error {
	var errs []error
	for _, url := range cfg.URLs {
		s, err := open(ctx, cfg, url, "setup")
		if err != nil {
			errs = append(errs, fmt.Errorf("connect to %s: %w", host(url), err))
			continue
		}
		defer s.close()
		return s.bounded(ctx, func() error { return s.declare(cfg.Topology) })
	}
	return errors.Join(errs...)
}

// ensure looks whether all objects are there, which needs no permission, and
// declares those that are missing. What exists may have other arguments.
func (s *session) ensure(t Topology) error {
	missing, err := s.missing(t)
	if err != nil || len(missing) == 0 {
		return err
	}
	err = s.onChannel(func(ch *amqp.Channel) error {
		for _, o := range missing {
			if err := o.declare(ch); err != nil {
				return err
			}
		}
		return bind(ch, t)
	})
	var refused *amqp.Error
	if errors.As(err, &refused) && refused.Code == amqp.AccessRefused {
		return fmt.Errorf("%s does not exist, and this user may not declare it: run `revq setup` as one who may: %w", missing[0].name, err)
	}
	return err
}

// missing returns the objects that do not exist.
func (s *session) missing(t Topology) ([]object, error) {
	var missing []object
	for _, o := range t.objects() {
		err := s.onChannel(o.look)
		var e *amqp.Error
		switch {
		case errors.As(err, &e) && e.Code == amqp.NotFound:
			missing = append(missing, o)
		case err != nil:
			return nil, fmt.Errorf("look for %s: %w", o.name, err)
		}
	}
	return missing, nil
}

// declare declares and binds all objects.
func (s *session) declare(t Topology) error {
	return s.onChannel(func(ch *amqp.Channel) error {
		for _, o := range t.objects() {
			if err := o.declare(ch); err != nil {
				return err
			}
		}
		return bind(ch, t)
	})
}

// repair brings back objects and bindings that were removed.
func (s *session) repair(t Topology) error {
	if err := s.ensure(t); err != nil {
		return err
	}
	return s.onChannel(func(ch *amqp.Channel) error { return bind(ch, t) })
}

// An object is an exchange or a queue.
type object struct {
	name    string
	look    func(*amqp.Channel) error // fails if it does not exist
	declare func(*amqp.Channel) error
}

// objects returns all objects in the order in which they are declared.
func (t Topology) objects() []object {
	all := []object{{
		name: Exchange,
		look: func(ch *amqp.Channel) error {
			return ch.ExchangeDeclarePassive(Exchange, amqp.ExchangeDirect, true, false, false, false, nil)
		},
		declare: func(ch *amqp.Channel) error {
			if err := ch.ExchangeDeclare(Exchange, amqp.ExchangeDirect, true, false, false, false, nil); err != nil {
				return fmt.Errorf("declare the exchange %s: %w", Exchange, err)
			}
			return nil
		},
	}}
	for _, q := range t.queues() {
		all = append(all, object{
			name: q.name,
			look: func(ch *amqp.Channel) error {
				_, err := ch.QueueDeclarePassive(q.name, true, false, false, false, nil)
				return err
			},
			declare: func(ch *amqp.Channel) error {
				if _, err := ch.QueueDeclare(q.name, true, false, false, false, q.args); err != nil {
					return fmt.Errorf("declare the queue %s: %w", q.name, err)
				}
				return nil
			},
		})
	}
	return all
}

// bind lets messages through from the exchange to all queues. It changes
// nothing where they are bound already.
func bind(ch *amqp.Channel, t Topology) error {
	for _, q := range t.queues() {
		if err := ch.QueueBind(q.name, q.key, Exchange, false, nil); err != nil {
			return fmt.Errorf("bind the queue %s: %w", q.name, err)
		}
	}
	return nil
}

// onChannel calls do with a channel of its own, since the broker closes the
// channel on which it refuses something.
func (s *session) onChannel(do func(*amqp.Channel) error) error {
	ch, err := s.conn.Channel()
	if err != nil {
		return fmt.Errorf("open a channel: %w", err)
	}
	defer ch.Close() // refused when the broker has closed it already
	return do(ch)
}
