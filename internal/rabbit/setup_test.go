package rabbit

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/task"
)

// Tests that raise an alarm at the shared node or count goroutines are not
// parallel: they run before all that are.
func TestMain(m *testing.M) { rabbittest.Main(m) }

// patience is how long anything may take that has no deadline of its own.
const patience = 30 * time.Second

// A rig is a virtual host for one test, and a plain client that looks at it
// from outside.
type rig struct {
	t    testing.TB
	node *rabbittest.Node
	url  string
	cfg  Config
	out  *rabbittest.Output
	log  *slog.Logger
	conn *amqp.Connection
	ch   *amqp.Channel // for publishing, and for reading back
}

func setup(t testing.TB) *rig {
	t.Helper()
	return setupOn(t, rabbittest.Shared(t))
}

func setupOn(t testing.TB, n *rabbittest.Node) *rig {
	t.Helper()
	r := &rig{t: t, node: n, url: rabbittest.NewVhost(t, n)}
	r.log, r.out = rabbittest.Log(t)
	r.cfg = DefaultConfig("test")
	r.cfg.PublishConnections = 1 // so that a test has the one in its hands
	r.cfg.URLs = []string{r.url}
	r.cfg.RetryMin, r.cfg.RetryMax = 10*time.Millisecond, time.Second
	r.cfg.ConfirmTimeout = 15 * time.Second // several suites may share the machine
	return r
}

// declared sets the topology up and connects the plain client.
func (r *rig) declared() *rig {
	r.t.Helper()
	if _, err := Setup(r.t.Context(), r.cfg); err != nil {
		r.t.Fatal(err)
	}
	return r.connected()
}

func (r *rig) connected() *rig {
	r.t.Helper()
	var err error
	if r.conn, err = amqp.Dial(r.url); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { r.conn.Close() })
	r.ch = r.channel()
	return r
}

// channel opens a channel of its own for what may end one.
func (r *rig) channel() *amqp.Channel {
	r.t.Helper()
	ch, err := r.conn.Channel()
	if err != nil {
		r.t.Fatal(err)
	}
	return ch
}

// run runs f until stop is called or the test ends; stop waits for its end.
func (r *rig) run(f func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(ctx)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(patience):
			r.t.Errorf("Run does not return; the goroutines:\n%s", await.Stacks())
		}
	})
	r.t.Cleanup(stop)
	return stop
}

// publisher returns a connected Publisher.
func (r *rig) publisher() *Publisher {
	r.t.Helper()
	p := NewPublisher(r.cfg, r.log)
	r.run(p.Run)
	r.ready(p.Ready)
	return p
}

func (r *rig) ready(ready func() error) {
	r.t.Helper()
	eventually(r.t, "ready", ready)
}

// enqueue publishes as any AMQP client may.
func (r *rig) enqueue(key string, messages ...amqp.Publishing) {
	r.t.Helper()
	r.enqueueBy(Exchange, key, messages...)
}

func (r *rig) enqueueBy(exchange, key string, messages ...amqp.Publishing) {
	r.t.Helper()
	ch := r.channel()
	defer ch.Close()
	if err := ch.Confirm(false); err != nil {
		r.t.Fatal(err)
	}
	var confirms []*amqp.DeferredConfirmation
	for _, m := range messages {
		c, err := ch.PublishWithDeferredConfirm(exchange, key, true, false, m)
		if err != nil {
			r.t.Fatal(err)
		}
		confirms = append(confirms, c)
	}
	for i, c := range confirms {
		if !c.Wait() {
			r.t.Fatalf("message %d was not confirmed", i)
		}
	}
}

// text is a message of a client that knows nothing of revq but the id.
func text(id string) amqp.Publishing {
	return amqp.Publishing{MessageId: id, Body: []byte("text of " + id), DeliveryMode: amqp.Persistent}
}

// take returns all n messages that a queue holds. It fails the test when there
// are fewer or more.
func (r *rig) take(queue string, n int) []amqp.Delivery {
	r.t.Helper()
	ch := r.channel()
	defer ch.Close()
	var all []amqp.Delivery
	// Not ConsumeWithContext: it cancels in the middle of Close.
	deliveries, err := ch.Consume(queue, "", true, false, false, false, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	for len(all) < n {
		all = append(all, receive(r.t, fmt.Sprintf("message %d of %d in %s", len(all)+1, n, queue), deliveries))
	}
	r.empty(queue)
	return all
}

// empty fails the test unless nothing is left in queue for a consumer.
func (r *rig) empty(queue string) {
	r.t.Helper()
	if d, ok, err := r.ch.Get(queue, true); err != nil || ok {
		r.t.Errorf("%s is not empty: it has %q (%v)", queue, d.MessageId, err)
	}
}

// length is the number of messages in queue that nobody holds.
func (r *rig) length(queue string) int {
	r.t.Helper()
	q, err := r.ch.QueueDeclarePassive(queue, true, false, false, false, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return q.Messages
}

// eval evaluates Erlang in the broker.
func (r *rig) eval(format string, args ...any) string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := r.node.Eval(ctx, fmt.Sprintf(format, args...))
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// cut makes the broker close the connection called name.
func (r *rig) cut(name string) {
	r.t.Helper()
	eventually(r.t, "cut", func() error {
		if n := rabbittest.CloseConnections(r.t, r.node, r.url, name); n != 1 { // it is connecting again
			return fmt.Errorf("%d connections are called %q", n, name)
		}
		return nil
	})
}

func (r *rig) vhost() string { return r.url[strings.LastIndexByte(r.url, '/')+1:] }

var eventually = await.Nil

func receive[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	return await.Value(t, what, c)
}

// noLeaks fails a test, not parallel to any other, that leaves a goroutine of
// ours or of amqp091-go behind. It is called first, so that it looks last.
func noLeaks(t testing.TB) {
	t.Helper()
	t.Cleanup(func() {
		eventually(t, "without goroutines", func() error {
			for _, g := range strings.Split(await.Stacks(), "\n\n")[1:] {
				if strings.Contains(g, "/internal/rabbit.(") || strings.Contains(g, "amqp091-go.") {
					return fmt.Errorf("there is\n%s", g)
				}
			}
			return nil
		})
	})
}

func newTask(i int) task.Task {
	return task.Task{ID: fmt.Sprintf("task-%d", i), Text: fmt.Sprintf("text %d", i), Accepted: time.Now()}
}
