package bench

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/task"
)

// Raw measures the broker alone: what amqp091-go does with it when it is used as its documentation shows, one goroutine
// that writes and one that takes in what comes. This is what revq's own figures are compared with. It uses a quorum
// queue and a stream of its own, which it deletes.
type Raw struct {
	URL       string
	Unsettled int // messages that wait for confirmation at once; also the prefetch
	TextBytes int

	Window Window // for each of the measurements; there is no warm-up

	// PublishOnly leaves it at publishing to the quorum queue.
	PublishOnly bool

	Processes map[string]Processes
}

// RawResult is one measurement of a Raw.
type RawResult struct {
	What      string           `json:"what"`
	TextBytes int              `json:"text_bytes"`
	Unsettled int              `json:"unsettled"`
	Messages  int64            `json:"messages"`
	Seconds   float64          `json:"seconds"`
	PerSecond float64          `json:"per_second"`
	Usage     map[string]Usage `json:"usage,omitempty"`
}

// What a Raw measures.
const (
	RawPublish       = "publish to a quorum queue, confirmed"
	RawConsume       = "consume from a quorum queue, each acknowledged"
	RawStreamPublish = "publish to a stream, confirmed"
	RawStreamConsume = "consume from a stream, acknowledged in groups"
)

const (
	// brokerTimeout bounds what is asked of the broker before and after measuring.
	brokerTimeout = 30 * time.Second

	// brokerSilence ends a measurement in which nothing comes from the broker.
	brokerSilence = 15 * time.Second

	// ackGroup is how many deliveries of a stream are acknowledged at once, at most: there, it only asks for more.
	ackGroup = 64
)

var errNotConfirmed = errors.New("the broker refused a message")

// Run calls measured with each result. When ctx ends, so does the measurement under way, with what it has.
func (r *Raw) Run(ctx context.Context, progress func(what string, done float64), measured func(RawResult)) (err error) {
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
		{name + ".quorum", amqp.QueueTypeQuorum, RawPublish, RawConsume},
		{name + ".stream", amqp.QueueTypeStream, RawStreamPublish, RawStreamConsume},
	} {
		args := amqp.Table{amqp.QueueTypeArg: q.kind}
		if _, err := broker.ch.QueueDeclare(q.name, true, false, false, false, args); err != nil {
			return fmt.Errorf("declare the queue %s: %w", q.name, err)
		}
		// On a connection of its own, since the other one may be gone.
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

func (r *Raw) measure(ctx context.Context, what string, progress func(string, float64), measured func(RawResult),
	do func(context.Context, *window) (int64, error)) (n int64, err error) {
	usage := measureUsage(r.Processes)
	// There is no warm-up, so that what is counted in one measurement is what there is for the next.
	w := Window{Duration: r.Window.Duration, Count: r.Window.Count}.begin(func(done float64) { progress(what, done) })
	n, err = do(ctx, w)
	if n > 0 {
		result := RawResult{What: what, TextBytes: r.TextBytes, Unsettled: r.Unsettled, Messages: n, Seconds: w.seconds(), Usage: usage.end()}
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
	confirms := broker.ch.NotifyPublish(make(chan amqp.Confirmation, r.Unsettled))
	free := make(chan struct{}, r.Unsettled) // holds a value for each message that is not confirmed
	ctx, enough := context.WithCancel(ctx)
	defer enough()
	var total int64
	sent := make(chan error, 1) // gets a value when no more are sent, and total is how many were
	body := []byte(marked(r.TextBytes))
	go func() {
		for ctx.Err() == nil {
			select {
			case free <- struct{}{}:
			case <-ctx.Done():
				continue
			}
			if err := broker.ch.Publish("", queue, false, false, message(body)); err != nil {
				sent <- fmt.Errorf("publish: %w", err)
				return
			}
			total++
		}
		sent <- nil
	}()
	ticker := time.NewTicker(maxWait)
	defer ticker.Stop()
	w.look(time.Now(), 0)
	heard, over, ended := time.Now(), false, false
	for !ended || confirmed < total {
		select {
		case c, ok := <-confirms:
			if !ok {
				return confirmed, errClosed
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
	w.look(time.Now(), confirmed) // what was on its way has taken its time, too
	if !over {
		return confirmed, context.Cause(ctx)
	}
	return confirmed, nil
}

// consume takes in n messages that publish has left, or as many as the window lets it.
func (r *Raw) consume(ctx context.Context, queue string, stream bool, n int64, w *window) (consumed int64, err error) {
	broker, err := dialBroker(ctx, r.URL, "bench consumer")
	if err != nil {
		return 0, err
	}
	defer broker.close()
	if err := broker.ch.Qos(r.Unsettled, 0, false); err != nil {
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
	group := int64(max(1, min(ackGroup, r.Unsettled/4)))
	ticker := time.NewTicker(maxWait)
	defer ticker.Stop()
	heard := time.Now()
	for consumed < n {
		select {
		case d, ok := <-deliveries:
			if !ok {
				return consumed, errClosed
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

// message is one like those that revq publishes.
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

// A brokerConn is a connection with a channel.
type brokerConn struct {
	conn *amqp.Connection
	ch   *amqp.Channel
}

func dialBroker(ctx context.Context, url, name string) (*brokerConn, error) {
	ctx, cancel := context.WithTimeout(ctx, brokerTimeout)
	defer cancel()
	properties := amqp.NewConnectionProperties()
	properties.SetClientConnectionName("revq " + name)
	conn, err := amqp.DialConfig(url, amqp.Config{
		Heartbeat:  10 * time.Second,
		Locale:     "en_US",
		Properties: properties,
		Dial: func(network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return conn, conn.SetDeadline(time.Now().Add(brokerTimeout)) // amqp091-go lifts it after the handshake
		},
	})
	if err != nil {
		return nil, fmt.Errorf("connect to the broker: %w", err)
	}
	ch, err := conn.Channel()
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open a channel: %w", err)
	}
	return &brokerConn{conn, ch}, nil
}

func (b *brokerConn) close() { b.conn.CloseDeadline(time.Now().Add(closeTimeout)) }

// closeTimeout bounds saying goodbye to the broker.
const closeTimeout = 5 * time.Second

func deleteQueue(url, name string) error {
	broker, err := dialBroker(context.Background(), url, "bench")
	if err == nil {
		defer broker.close()
		_, err = broker.ch.QueueDelete(name, false, false, false)
	}
	if err != nil {
		return fmt.Errorf("the queue %s was left at the broker: %w", name, err)
	}
	return nil
}
