package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/revq/revq/internal/task"
)

func TestPauser(t *testing.T) {
	t.Parallel()
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	// A step is an attempt that is admitted at a time, and what came of it; or,
	// with refused, a task that has to wait.
	type step struct {
		at      time.Duration
		refused bool
		outcome Outcome
		is      phase
	}
	const s = time.Second
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"works", []step{{0, false, Done, working}, {0, false, Failed, working}, {0, false, Never, working}}},
		{"failed attempts are none of its business", []step{{0, false, Failed, working}, {0, false, Failed, working}, {0, false, Failed, working}, {0, false, Failed, working}}},
		{"later, not in a row", []step{{0, false, Later, working}, {0, false, Later, working}, {0, false, Done, working}, {0, false, Later, working}, {0, false, Later, working}}},
		{"later, in a row", []step{{0, false, Later, working}, {0, false, Later, working}, {0, false, Later, paused}, {s - 1, true, 0, paused}, {s, false, Done, working}, {s, false, Done, working}}},
		{"misconfigured", []step{{0, false, Misconfigured, paused}, {s / 2, true, 0, paused}, {s, false, Done, working}}},
		{"one try at a time", []step{{0, false, Misconfigured, paused}, {s, false, -1, probing}, {s, true, 0, probing}, {100 * s, true, 0, probing}}},
		{"the try was cut short", []step{{0, false, Misconfigured, paused}, {s, false, Stopped, paused}, {s, false, Done, working}}},
		{"pauses grow, and begin again with the first", []step{
			{0, false, Misconfigured, paused}, {s, false, Later, paused}, {2*s + s, false, Later, paused}, {7*s - 1, true, 0, paused}, {7 * s, false, Done, working},
			{8 * s, false, Misconfigured, paused}, {9 * s, false, Done, working},
		}},
		{"a failed attempt shows that it works", []step{{0, false, Misconfigured, paused}, {s, false, Failed, working}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := pauser{}
			for i, step := range tt.steps {
				now := began.Add(step.at)
				round, wait, ok := p.admit(now)
				if ok == step.refused {
					t.Fatalf("step %d: admit() = %v", i, ok)
				}
				if p.phase == paused && wait <= 0 {
					t.Errorf("step %d: nobody asks again", i)
				}
				if ok && step.outcome >= 0 {
					p.ended(round, step.outcome, errors.New("why"), now, 1)
				}
				if p.phase != step.is {
					t.Fatalf("step %d: the phase is %d, want %d", i, p.phase, step.is)
				}
			}
		})
	}
}

func TestPauserBounds(t *testing.T) {
	t.Parallel()
	now := time.Now()
	var p pauser
	for i, most := range []time.Duration{1, 2, 4, 8, 16, 30, 30, 30} {
		most *= time.Second
		round, _, ok := p.admit(now)
		if !ok {
			t.Fatalf("pause %d does not end", i)
		}
		jitter := float64(i%2) * 0.999
		p.ended(round, Misconfigured, errors.New("why"), now, jitter)
		if wait := p.until.Sub(now); wait < most/2 || wait > most {
			t.Errorf("pause %d takes %v, want %v to %v", i, wait, most/2, most)
		}
		// What began before says nothing about how it is now.
		p.ended(round, Done, nil, now, 0)
		p.ended(round, Later, nil, now, 0)
		if p.phase != paused {
			t.Errorf("pause %d ended by an attempt from before it", i)
		}
		now = p.until
	}
}

// A broker records what a worker does with tasks.
type broker struct {
	refuses error // the answer to everything that is published

	mu   sync.Mutex
	did  []string
	dead string // the reason of the last dead letter
}

func (b *broker) note(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.did = append(b.did, fmt.Sprintf(format, args...))
}

func (b *broker) answer(format string, args ...any) <-chan error {
	b.note(format, args...)
	answer := make(chan error, 1)
	answer <- b.refuses
	return answer
}

func (b *broker) PublishResult(r task.Result) <-chan error { return b.answer("result %s", r.Text) }
func (b *broker) PublishTask(t task.Task) <-chan error     { return b.answer("publish %s", t.ID) }
func (b *broker) PublishDead(t task.Task, reason string) <-chan error {
	b.dead = reason
	return b.answer("dead %s", t.ID)
}

func (b *broker) count(what string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, did := range b.did {
		if did == what {
			n++
		}
	}
	return n
}

func (b *broker) all() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.did, ", ")
}

type delivery struct {
	b  *broker
	id string
}

func (d delivery) Task() (task.Task, error) { return task.Task{ID: d.id, Text: "x"}, nil }
func (delivery) Attempt() int64             { return 3 }
func (d delivery) end(how string) error     { d.b.note("%s %s", how, d.id); return nil }
func (d delivery) Ack() error               { return d.end("ack") }
func (d delivery) Reject() error            { return d.end("reject") }
func (d delivery) Refuse() error            { return d.end("refuse") }
func (d delivery) Requeue() error           { return d.end("requeue") }

type handlerFunc func(context.Context, task.Task) (string, error)

func (f handlerFunc) Handle(ctx context.Context, t task.Task) (string, error) { return f(ctx, t) }

func newTestWorker(b *broker, cfg Config, h handlerFunc) *Worker {
	return New(cfg, h, b, slog.New(slog.DiscardHandler))
}

func fails(o Outcome) error { return &Error{Outcome: o, Err: errors.New("why"), Said: "said"} }

func TestOutcomes(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		err     error
		refuses error
		want    string
		dead    string
	}{
		{"done", nil, nil, "result X, ack a", ""},
		{"failed", errors.New("why"), nil, "reject a", ""},
		{"failed, as an Error", fails(Failed), nil, "reject a", ""},
		{"never", fails(Never), nil, "dead a, ack a", "why\nsaid"},
		{"never, wrapped", fmt.Errorf("handle: %w", fails(Never)), nil, "dead a, ack a", "handle: why\nsaid"},
		{"never, and no dead letter is taken", fails(Never), errors.New("away"), "dead a, refuse a", "why\nsaid"},
		{"stopped by the handler", fails(Stopped), nil, "requeue a", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := &broker{refuses: tt.refuses}
			w := newTestWorker(b, DefaultConfig(), func(_ context.Context, t task.Task) (string, error) {
				if t.Attempt() != 3 || t.Last {
					return "", fmt.Errorf("it is attempt %d, last %v", t.Attempt(), t.Last)
				}
				return "X", tt.err
			})
			w.Handle(t.Context(), delivery{b, "a"})
			if b.all() != tt.want || b.dead != tt.dead {
				t.Errorf("%s; dead letter %q, want %s; %q", b.all(), b.dead, tt.want, tt.dead)
			}
		})
	}
}

func TestLastAttempt(t *testing.T) {
	t.Parallel()
	for limit, want := range map[int64]bool{1: true, 2: true, 3: false, 4: false} {
		cfg := DefaultConfig()
		cfg.DeliveryLimit = limit
		b, got := &broker{}, false
		newTestWorker(b, cfg, func(_ context.Context, t task.Task) (string, error) {
			got = t.Last
			return "X", nil
		}).Handle(t.Context(), delivery{b, "a"})
		if got != want {
			t.Errorf("attempt 3 with a delivery limit of %d: last %v, want %v", limit, got, want)
		}
	}
}

// Ten minutes in which the handler can do nothing: no task is lost or counted,
// it is asked little, and half a minute later all is done.
func TestOutage(t *testing.T) {
	t.Parallel()
	for _, o := range []Outcome{Later, Misconfigured} {
		synctest.Test(t, func(t *testing.T) {
			const outage, tasks, concurrency = 10 * time.Minute, 100, 10
			b, began := &broker{}, time.Now()
			attempts, running := 0, 0
			var mu sync.Mutex
			w := newTestWorker(b, DefaultConfig(), func(context.Context, task.Task) (string, error) {
				mu.Lock()
				defer mu.Unlock()
				attempts++
				if running++; running > concurrency {
					t.Error("too many attempts at once")
				}
				defer func() { running-- }()
				if time.Since(began) < outage {
					return "", fails(o)
				}
				return "X", nil
			})
			// A queue: what is published again comes again.
			queue := make(chan string, 2*tasks)
			for i := range tasks {
				queue <- fmt.Sprint(i)
			}
			ctx, cancel := context.WithCancel(t.Context())
			var workers sync.WaitGroup
			for range concurrency {
				workers.Go(func() {
					for {
						select {
						case <-ctx.Done():
							return
						case id := <-queue:
							before := b.count("publish " + id)
							w.Handle(ctx, delivery{b, id})
							if b.count("publish "+id) > before {
								queue <- id
							}
						}
					}
				})
			}
			time.Sleep(outage - time.Second)
			if err := w.Ready(); err == nil || !strings.Contains(err.Error(), "why") {
				t.Errorf("ready in the outage: %v", err)
			}
			mu.Lock()
			if attempts > 100 {
				t.Errorf("%d attempts in the outage", attempts)
			}
			mu.Unlock()
			time.Sleep(time.Second + pauseMax)
			synctest.Wait()
			if n := b.count("result X"); n != tasks {
				t.Errorf("%d of %d tasks are done %v after the outage", n, tasks, pauseMax)
			}
			if said := b.all(); strings.Contains(said, "reject") || strings.Contains(said, "requeue") || strings.Contains(said, "dead") {
				t.Error("a task was counted as a failed attempt")
			}
			if err := w.Ready(); err != nil {
				t.Errorf("after the outage: %v", err)
			}
			cancel()
			workers.Wait()
		})
	}
}

// A single task that ends with Later waits by itself and returns to the queue
// before the consumer timeout. Others are not held up.
func TestOneTaskLater(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, attempts := &broker{}, 0
		w := newTestWorker(b, DefaultConfig(), func(_ context.Context, t task.Task) (string, error) {
			if t.ID == "a" {
				attempts++
				return "", fails(Later)
			}
			return "X", nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		var others sync.WaitGroup
		others.Go(func() {
			for ctx.Err() == nil {
				w.Handle(ctx, delivery{b, "b"})
				time.Sleep(100 * time.Millisecond)
			}
		})
		began := time.Now()
		w.Handle(t.Context(), delivery{b, "a"})
		if took := time.Since(began); took < maxHold/2 || took > maxHold {
			t.Errorf("it went back after %v, want up to %v", took, maxHold)
		}
		if n := b.count("publish a"); n != 1 || b.count("ack a") != 1 || b.count("requeue a") != 0 {
			t.Errorf("it was published %d times, want once and acknowledged", n)
		}
		if attempts < 3 || attempts > 10 {
			t.Errorf("%d attempts, want a few", attempts)
		}
		if n := b.count("result X"); n < 300 {
			t.Errorf("only %d other tasks were handled", n)
		}
		cancel()
		others.Wait()
	})
}

// A worker that stops or loses its session returns the tasks that wait at once.
func TestStopWhilePaused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &broker{}
		w := newTestWorker(b, DefaultConfig(), func(context.Context, task.Task) (string, error) { return "", fails(Misconfigured) })
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		for _, id := range []string{"a", "b"} {
			running.Go(func() { w.Handle(ctx, delivery{b, id}) })
		}
		synctest.Wait()
		began := time.Now()
		cancel()
		running.Wait()
		if took := time.Since(began); took > 0 {
			t.Errorf("it took %v", took)
		}
		if b.count("requeue a") != 1 || b.count("requeue b") != 1 {
			t.Errorf("%s, want both returned", b.all())
		}
	})
}

func TestDrain(t *testing.T) {
	t.Parallel()
	lost := errors.New("the connection was closed")
	for _, tt := range []struct {
		name    string
		drain   bool
		cause   error
		takes   time.Duration
		ends    time.Duration // after the stop
		running string        // what became of the task that runs
	}{
		{"no drain", false, context.Canceled, 10 * time.Second, 0, "requeue a"},
		{"in time", true, context.Canceled, 10 * time.Second, 10 * time.Second, "result X, ack a"},
		{"too late", true, context.Canceled, time.Minute, 20 * time.Second, "requeue a"},
		{"the session is lost", true, lost, 10 * time.Second, 0, "requeue a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := DefaultConfig()
				cfg.Drain, cfg.DrainTimeout = tt.drain, 20*time.Second
				b := &broker{}
				w := newTestWorker(b, cfg, func(ctx context.Context, _ task.Task) (string, error) {
					select {
					case <-time.After(tt.takes):
						return "X", nil
					case <-ctx.Done():
						return "", context.Cause(ctx)
					}
				})
				ctx, cancel := context.WithCancelCause(t.Context())
				var running sync.WaitGroup
				running.Go(func() { w.Handle(ctx, delivery{b, "a"}) })
				synctest.Wait()
				began := time.Now()
				cancel(tt.cause)
				w.Handle(ctx, delivery{b, "b"}) // came before the broker knew of the stop
				if took := time.Since(began); took > 0 {
					t.Errorf("the task that had not begun was kept for %v", took)
				}
				running.Wait()
				if took := time.Since(began); took != tt.ends {
					t.Errorf("it ended after %v, want %v", took, tt.ends)
				}
				if got := strings.TrimPrefix(strings.Replace(b.all(), "requeue b", "", 1), ", "); strings.TrimSuffix(got, ", ") != tt.running || b.count("requeue b") != 1 {
					t.Errorf("%s, want %s, and b returned", b.all(), tt.running)
				}
			})
		})
	}
}
