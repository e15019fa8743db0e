package rabbit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/task"
)

var benchText = strings.Repeat("0123456789", 10)

// inFlight is how many messages wait for confirmation at once.
const inFlight = 256

// BenchmarkPublish compares a Publisher that many goroutines share with what
// amqp091-go can do at most: one goroutine that writes, one that takes the
// confirmations in.
func BenchmarkPublish(b *testing.B) {
	b.Run("raw", func(b *testing.B) {
		r := setup(b).declared()
		if err := r.ch.Confirm(false); err != nil {
			b.Fatal(err)
		}
		confirms := r.ch.NotifyPublish(make(chan amqp.Confirmation, inFlight))
		free := make(chan struct{}, inFlight)
		b.ReportAllocs()
		b.ResetTimer()
		go func() {
			for i := range b.N {
				free <- struct{}{}
				m := encodeTask(task.Task{ID: fmt.Sprint(i), Text: benchText})
				if _, err := r.ch.PublishWithDeferredConfirm(Exchange, tasksKey, true, false, m); err != nil {
					b.Error(err)
				}
			}
		}()
		for range b.N {
			if c := receive(b, "confirmation", confirms); !c.Ack {
				b.Fatal("refused")
			}
			<-free
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	})
	for _, connections := range []int{1, 2, 4, 8} {
		b.Run(fmt.Sprintf("Publisher/%d", connections), func(b *testing.B) {
			r := setup(b).declared()
			r.cfg.PublishConnections = connections
			p := r.publisher()
			b.ReportAllocs()
			publishTasks(b, p)
		})
	}
}

// publishTasks publishes b.N tasks, and reports how many a second were confirmed.
func publishTasks(b *testing.B, p *Publisher) {
	b.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for range inFlight {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				if err := <-p.PublishTask(task.Task{ID: fmt.Sprint(i), Text: benchText}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

// BenchmarkConsume takes and acknowledges tasks one by one.
func BenchmarkConsume(b *testing.B) {
	filled := func(b *testing.B) *rig {
		r := setup(b).declared()
		all := make([]amqp.Publishing, b.N)
		for i := range all {
			all[i] = encodeTask(task.Task{ID: fmt.Sprint(i), Text: benchText})
		}
		for len(all) > 0 {
			n := min(len(all), 1000)
			r.enqueue(tasksKey, all[:n]...)
			all = all[n:]
		}
		b.ReportAllocs()
		b.ResetTimer()
		return r
	}
	b.Run("raw", func(b *testing.B) {
		r := filled(b)
		if err := r.ch.Qos(inFlight, 0, false); err != nil {
			b.Fatal(err)
		}
		deliveries, err := r.ch.Consume(TasksQueue, "", false, false, false, false, nil)
		if err != nil {
			b.Fatal(err)
		}
		for range b.N {
			d := receive(b, "delivery", deliveries)
			if err := d.Ack(false); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	})
	b.Run("Consumer", func(b *testing.B) {
		r := filled(b)
		var left atomic.Int64
		left.Store(int64(b.N))
		done := make(chan struct{})
		r.run(func(ctx context.Context) {
			NewConsumer(r.cfg, inFlight, r.log).Run(ctx, func(_ context.Context, d *Delivery) {
				if err := d.Ack(); err != nil {
					b.Error(err)
				}
				if left.Add(-1) == 0 {
					close(done)
				}
			})
		})
		<-done
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	})
}

// BenchmarkQueues is what each of 100 idle named queues takes at the broker.
func BenchmarkQueues(b *testing.B) {
	r := setup(b).declared()
	// What is garbage is no cost of a queue.
	look := func() (bytes, processes float64) {
		b.Helper()
		said, err := r.node.Eval(b.Context(), "[garbage_collect(P) || P <- processes()], {erlang:memory(total), erlang:system_info(process_count)}")
		if err != nil {
			b.Fatal(err)
		}
		if _, err := fmt.Sscanf(said, "{%g,%g}", &bytes, &processes); err != nil {
			b.Fatalf("%s: %v", said, err)
		}
		return bytes, processes
	}
	const queues = 100
	bytes, processes := look()
	for i := range queues {
		r.cfg.Topology.Queue = fmt.Sprint("bench", i)
		if _, err := Setup(b.Context(), r.cfg); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(b.Elapsed().Seconds()/queues, "s/queue")
	after, more := look()
	b.ReportMetric((after-bytes)/queues, "B/queue")
	b.ReportMetric((more-processes)/queues, "processes/queue")
}

// BenchmarkReader measures what a socket server waits for: until a new reader is
// live, with an empty stream, a full one and one that was re-created; until a
// listener that resumes has its first result from the broker; and until it is
// told that there is a gap.
func BenchmarkReader(b *testing.B) {
	const full = 10_000
	fill := func(b *testing.B, r *rig) {
		p := r.publisher()
		for i := 0; i < full; i += 1000 { // so many may be in flight
			publishResults(b, p, i, i+1000)
		}
	}
	start := func(b *testing.B, r *rig) {
		for b.Loop() {
			c := &counter{live: make(chan int, 1), came: make(chan string, full)}
			stop := r.run(func(ctx context.Context) { NewReader(r.cfg, 2000, r.log).Run(ctx, c) })
			receive(b, "end of the backlog", c.live)
			b.StopTimer()
			stop()
			b.StartTimer()
		}
	}
	b.Run("start/empty", func(b *testing.B) { start(b, setup(b).declared()) })
	b.Run("start/full", func(b *testing.B) {
		r := setup(b).declared()
		fill(b, r)
		start(b, r)
	})
	b.Run("start/re-created", func(b *testing.B) {
		r := setup(b).declared()
		fill(b, r)
		r.recreateResults()
		start(b, r)
	})
	first := errors.New("the first one has come")
	resume := func(b *testing.B, r *rig, from int64) {
		reader := NewReader(r.cfg, 0, r.log)
		for b.Loop() {
			if err := history(b.Context(), reader, from, 0, visitor{
				Result: func(int64, task.Result) error { return first },
				Mark:   func(int64, string) error { return nil },
				End:    func() error { return first },
			}); !errors.Is(err, first) && !errors.Is(err, errMissing) {
				b.Fatal(err)
			}
		}
	}
	b.Run("resume", func(b *testing.B) {
		r := setup(b).declared()
		fill(b, r)
		resume(b, r, 0)
	})
	b.Run("gap", func(b *testing.B) { resume(b, setup(b).declared(), 1_000_000) }) // greater than the end
}
