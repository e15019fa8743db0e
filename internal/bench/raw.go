package bench

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/bench/load"
	"github.com/revq/revq/internal/bench/report"
	"github.com/revq/revq/internal/task"
)

// Raw measures the broker alone, as the reference for revq's own figures. It
// uses amqp091-go as its documentation shows: one goroutine writes and one
// reads. It creates a quorum queue and a stream, and deletes them.
type Raw struct {
	URL       string
	InFlight  int // messages in flight at once; also the prefetch
	TextBytes int

	Window Window // of each measurement; there is no warm-up

	// PublishOnly measures only publishing to the quorum queue.
	PublishOnly bool

	// Processes are those whose usage is measured, by name.
	Processes map[string]Processes
}

const (
	// brokerSilence ends a measurement in which the broker sends nothing for so
	// long.
	brokerSilence = 15 * time.Second

	// ackGroup is the maximum number of deliveries of a stream that are
	// acknowledged at once. At a stream, an acknowledgement only asks for more.
	ackGroup = 64
)

var errNotConfirmed = errors.New("the broker refused a message")

// Run calls measured with each result. When ctx ends, the current measurement
// ends with what it has.
func (r *Raw) Run(ctx context.Context, progress func(what string, done float64), measured func(report.RawResult)) (err error) {
	broker, err := dialBroker(ctx, r.URL, "bench")
	if err != nil {
		return err
	}
	defer broker.close()
	name := "revq.bench." + rand.Text()
	for _, q := range []struct {
		name, kind       string
		publish, consume string
	}{
		{name + ".quorum", amqp.QueueTypeQuorum, report.RawPublish, report.RawConsume},
		{name + ".stream", amqp.QueueTypeStream, report.RawStreamPublish, report.RawStreamConsume},
	} {
		args := amqp.Table{amqp.QueueTypeArg: q.kind}
		if _, err := broker.ch.QueueDeclare(q.name, true, false, false, false, args); err != nil {
			return fmt.Errorf("declare the queue %s: %w", q.name, err)
		}
		defer func() { err = errors.Join(err, deleteQueue(r.URL, q.name)) }()
		left, err := r.measure(ctx, q.publish, progress, measured, func(ctx context.Context, w *window) (int64, error) {
			return r.publish(ctx, q.name, w)
		})
		if err != nil || r.PublishOnly {
			return err
		}
		if _, err := r.measure(ctx, q.consume, progress, measured, func(ctx context.Context, w *window) (int64, error) {
			return r.consume(ctx, q.name, q.kind == amqp.QueueTypeStream, left, w)
		}); err != nil {
			return err
		}
	}
	return nil
}

// measure runs one measurement and passes its result on, if anything was
// counted.
func (r *Raw) measure(ctx context.Context, what string, progress func(string, float64), measured func(report.RawResult),
	do func(context.Context, *window) (int64, error)) (n int64, err error) {
	usage := measureUsage(r.Processes)
	// There is no warm-up, so that all that one measurement publishes is
	// counted, and is there for the next to consume.
	w := Window{Duration: r.Window.Duration, Count: r.Window.Count}.begin(func(done float64) { progress(what, done) })
	n, err = do(ctx, w)
	if n > 0 {
		result := report.RawResult{What: what, TextBytes: r.TextBytes, InFlight: r.InFlight, Messages: n, Seconds: w.seconds(), Usage: usage.end()}
		result.PerSecond = float64(n) / result.Seconds
		measured(result)
	}
	if err != nil {
		return n, fmt.Errorf("%s: %w", what, err)
	}
	return n, nil
}

// publish fills queue and returns how many messages were confirmed.
func (r *Raw) publish(ctx context.Context, queue string, w *window) (confirmed int64, err error) {
	broker, err := dialBroker(ctx, r.URL, "bench publisher")
	if err != nil {
		return 0, err
	}
	defer broker.close()
	if err := broker.ch.Confirm(false); err != nil {
		return 0, err
	}
	confirms := broker.ch.NotifyPublish(make(chan amqp.Confirmation, r.InFlight))
	free := make(chan struct{}, r.InFlight) // holds a value for each message in flight
	ctx, enough := context.WithCancel(ctx)
	defer enough()
	var total int64             // messages sent; set when no more are sent
	sent := make(chan error, 1) // gets a value after total is set
	go func() {
		var err error
		total, err = r.send(ctx, broker, queue, free)
		sent <- err
	}()
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	w.look(time.Now(), 0)
	heard, over, ended := time.Now(), false, false
	for !ended || confirmed < total {
		select {
		case c, ok := <-confirms:
			if !ok {
				return confirmed, load.ErrClosed
			}
			if !c.Ack {
				return confirmed, errNotConfirmed
			}
			confirmed++
			<-free
			heard = time.Now()
		case err := <-sent:
			if err != nil {
				return confirmed, err
			}
			ended = true
		case now := <-ticker.C:
			if now.Sub(heard) > brokerSilence {
				return confirmed, fmt.Errorf("the broker confirmed nothing for %v", brokerSilence)
			}
			if w.look(now, confirmed) && !over {
				over = true
				enough()
			}
		}
	}
	w.look(time.Now(), confirmed) // the time of the last confirmations counts, too
	if !over {
		return confirmed, context.Cause(ctx)
	}
	return confirmed, nil
}

// send publishes messages until ctx ends and returns how many. Each waits until
// it can put a value into free.
func (r *Raw) send(ctx context.Context, broker *brokerConn, queue string, free chan<- struct{}) (n int64, err error) {
	body := []byte(load.Marked(r.TextBytes))
	for {
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			return n, nil
		}
		if ctx.Err() != nil {
			return n, nil
		}
		if err := broker.ch.Publish("", queue, false, false, message(body)); err != nil {
			return n, fmt.Errorf("publish: %w", err)
		}
		n++
	}
}

// consume consumes the n messages that publish has left, or as many as it can
// until the window ends.
func (r *Raw) consume(ctx context.Context, queue string, stream bool, n int64, w *window) (consumed int64, err error) {
	broker, err := dialBroker(ctx, r.URL, "bench consumer")
	if err != nil {
		return 0, err
	}
	defer broker.close()
	if err := broker.ch.Qos(r.InFlight, 0, false); err != nil {
		return 0, err
	}
	var args amqp.Table
	if stream {
		args = amqp.Table{"x-stream-offset": "first"}
	}
	w.look(time.Now(), 0)
	deliveries, err := broker.ch.Consume(queue, "", false, false, false, false, args)
	if err != nil {
		return 0, err
	}
	group := int64(max(1, min(ackGroup, r.InFlight/4)))
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	heard := time.Now()
	for consumed < n {
		select {
		case d, ok := <-deliveries:
			if !ok {
				return consumed, load.ErrClosed
			}
			heard = time.Now()
			consumed++
			if !stream {
				err = d.Ack(false)
			} else if consumed%group == 0 {
				err = d.Ack(true)
			}
			if err != nil {
				return consumed, fmt.Errorf("acknowledge: %w", err)
			}
		case now := <-ticker.C:
			if now.Sub(heard) > brokerSilence {
				return consumed, fmt.Errorf("the broker delivered nothing for %v", brokerSilence)
			}
			if w.look(now, consumed) {
				return consumed, nil
			}
		case <-ctx.Done():
			return consumed, context.Cause(ctx)
		}
	}
	w.look(time.Now(), consumed)
	return consumed, nil
}

// message returns a message like those that revq publishes.
func message(body []byte) amqp.Publishing {
	now := time.Now()
	return amqp.Publishing{
		Headers:      amqp.Table{"revq-accepted": now.UnixMicro()},
		ContentType:  "text/plain; charset=utf-8",
		DeliveryMode: amqp.Persistent,
		MessageId:    task.NewID(),
		Timestamp:    now,
		AppId:        "revq",
		Body:         body,
	}
}
