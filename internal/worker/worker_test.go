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

// A broker records what a worker does with tasks, by the ids of these. What is
// published again comes to deliver, when it is due.
type broker struct {
	refuses error // the answer to everything that is published
	deliver func(task.Task)

	mu     sync.Mutex
	did    []string
	dead   string // the reason of the last dead letter, and what its handler said
	worst  int64  // failed attempts of a task that was published again
	latest time.Duration
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

func (b *broker) PublishResult(r task.Result) <-chan error {
	if r.Kind == task.Progress {
		b.note("%s is %s", r.ID, r.Text)
		return nil // nobody may wait for it
	}
	return b.answer("result %s", r.Text)
}

func (b *broker) PublishTask(t task.Task) <-chan error {
	b.mu.Lock()
	b.worst = max(b.worst, t.Failed)
	b.latest = time.Until(t.NotBefore)
	b.mu.Unlock()
	if b.deliver != nil {
		time.AfterFunc(time.Until(t.NotBefore), func() { b.deliver(t) })
	}
	if errors.Is(b.refuses, task.ErrNoDeadQueue) { // which concerns only dead letters
		b.note("wait %v", time.Until(t.NotBefore))
		return (&broker{}).answer("")
	}
	return b.answer("publish %s", t.ID)
}

func (b *broker) PublishDead(t task.Task, reason, said string) <-chan error {
	b.mu.Lock()
	b.dead = reason + "|" + said
	b.mu.Unlock()
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

// A delivery is of a task that has failed twice, unless it has a task.
type delivery struct {
	b       *broker
	id      string
	task    task.Task
	attempt int64 // as the broker counts
}

func (d delivery) Task() (task.Task, error) {
	if d.task.ID != "" {
		return d.task, nil
	}
	return task.Task{ID: d.id, Queue: "pictures", Text: "x", Failed: 2}, nil
}
func (d delivery) Attempt() int64       { return max(1, d.attempt) }
func (d delivery) end(how string) error { d.b.note("%s %s", how, d.id); return nil }
func (d delivery) Ack() error           { return d.end("ack") }
func (d delivery) Reject() error        { return d.end("reject") }
func (d delivery) Refuse() error        { return d.end("refuse") }
func (d delivery) Requeue() error       { return d.end("requeue") }

type handlerFunc func(context.Context, task.Task) (string, error)

func (f handlerFunc) Handle(ctx context.Context, t task.Task) (string, error) { return f(ctx, t) }

func newTestWorker(b *broker, cfg Config, h Handler) *Worker {
	return New(cfg, h, b, slog.New(slog.DiscardHandler))
}

func fails(o Outcome) error { return &Error{Outcome: o, Err: errors.New("why"), Said: "said"} }

func TestOutcomes(t *testing.T) {
	t.Parallel()
	away := errors.New("away")
	// The broker is asked again and again for a minute.
	refused := func(what, then string) string { return strings.Repeat(what+", ", 17) + then }
	for _, tt := range []struct {
		name     string
		err      error
		refuses  error
		retries  int64
		attempts int64 // as the broker counts
		want     string
		dead     string
	}{
		{"done", nil, nil, 10, 1, "result X, ack a", ""},
		{"failed", errors.New("why"), nil, 10, 1, "publish a, ack a", ""},
		{"failed, as an Error", fails(Failed), nil, 3, 1, "publish a, ack a", ""},
		{"failed, and the task is not taken", fails(Failed), away, 10, 1, refused("publish a", "reject a"), ""},
		{"failed for the last time", fails(Failed), nil, 2, 1, "dead a, ack a", "attempt 3 of 3 failed: why|said"},
		{"never", fails(Never), nil, 10, 1, "dead a, ack a", "why|said"},
		{"never, wrapped", fmt.Errorf("handle: %w", fails(Never)), nil, 10, 1, "dead a, ack a", "handle: why|said"},
		{"never, and no dead letter is taken", fails(Never), away, 10, 1, refused("dead a", "refuse a"), "why|said"},
		{"never, and there is no queue of dead letters", fails(Never), task.ErrNoDeadQueue, 10, 1, "dead a, wait 1m0s, ack a", "why|said"},
		{"later", fails(Later), nil, 0, 1, "publish a, ack a", ""},
		{"later, and the task is not taken", fails(Later), away, 0, 1, refused("publish a", "requeue a"), ""},
		{"misconfigured", fails(Misconfigured), nil, 0, 1, "publish a, ack a", ""},
		{"stopped by the handler", fails(Stopped), nil, 10, 1, "requeue a", ""},
		{"stopped by the handler again", fails(Stopped), nil, 10, 2, "publish a, ack a", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := &broker{refuses: tt.refuses}
				cfg := DefaultConfig()
				cfg.Retries = tt.retries
				w := newTestWorker(b, cfg, handlerFunc(func(_ context.Context, t task.Task) (string, error) {
					if t.Attempt() != 3 || t.Last != (tt.retries <= 2) || t.Queue != "pictures" {
						return "", fmt.Errorf("it is attempt %d, last %v, of %s", t.Attempt(), t.Last, t.Queue)
					}
					return "X", tt.err
				}))
				w.Handle(t.Context(), delivery{b: b, id: "a", attempt: tt.attempts})
				if b.all() != tt.want || b.dead != tt.dead {
					t.Errorf("%s; dead letter %q, want %s; %q", b.all(), b.dead, tt.want, tt.dead)
				}
			})
		})
	}
}

// A task that comes before it is due is sent on, and one that comes too late is
// given up: neither is handled.
func TestTimes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &broker{}
		w := newTestWorker(b, DefaultConfig(), handlerFunc(func(context.Context, task.Task) (string, error) {
			return "", errors.New("it was handled")
		}))
		early := task.Task{ID: "early", Text: "x", NotBefore: time.Now().Add(time.Hour)}
		w.Handle(t.Context(), delivery{b: b, id: "early", task: early})
		expired := task.Task{ID: "expired", Text: "x", Expires: time.Now()}
		w.Handle(t.Context(), delivery{b: b, id: "expired", task: expired})
		if got, want := b.all(), "publish early, ack early, dead expired, ack expired"; got != want || b.latest != time.Hour {
			t.Errorf("%s, after %v, want %s", got, b.latest, want)
		}
		if b.dead != "it expired before its attempt 1 began|" {
			t.Errorf("the reason is %q", b.dead)
		}
	})
}

// An attempt that fails shows that a handler is no longer misconfigured. The log
// says that, not that attempts have failed for long.
func TestLogOfHandlerThatWorksAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var said strings.Builder
		outcome := Misconfigured
		w := New(DefaultConfig(), handlerFunc(func(context.Context, task.Task) (string, error) { return "", fails(outcome) }),
			&broker{}, slog.New(slog.NewTextHandler(&said, nil)))
		w.Handle(t.Context(), delivery{b: &broker{}, id: "a"})
		outcome = Failed
		w.Handle(t.Context(), delivery{b: &broker{}, id: "b"})
		if log := said.String(); !strings.Contains(log, "the handler works again") || strings.Contains(log, "for a long time") {
			t.Errorf("the log says %s", log)
		}
	})
}

// A task that expires while tasks wait for the handler is given up, and another
// one is tried.
func TestExpiresWhilePaused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, works := &broker{}, false
		w := newTestWorker(b, DefaultConfig(), handlerFunc(func(context.Context, task.Task) (string, error) {
			if !works {
				return "", fails(Misconfigured)
			}
			return "X", nil
		}))
		w.Handle(t.Context(), delivery{b: b, id: "a"})
		works = true
		expires := task.Task{ID: "b", Text: "x", Expires: time.Now().Add(time.Millisecond)}
		w.Handle(t.Context(), delivery{b: b, id: "b", task: expires})
		w.Handle(t.Context(), delivery{b: b, id: "c"})
		if got, want := b.all(), "publish a, ack a, dead b, ack b, result X, ack c"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	})
}

// What a handler says of its progress is published, but not more often than
// once a second, and nothing after the end.
func TestProgress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &broker{}
		var late func(string)
		w := newTestWorker(b, DefaultConfig(), reporterFunc(func(_ context.Context, _ task.Task, report func(string)) (string, error) {
			late = report
			for _, text := range []string{"1", "2", "", "\xff", "3"} {
				report(text)
			}
			time.Sleep(progressInterval + 1) // 3 is told
			report("4")
			time.Sleep(10 * progressInterval)
			report(strings.Repeat("ä", maxProgress))
			report("5") // is not told any more
			return "X", nil
		}))
		w.Handle(t.Context(), delivery{b: b, id: "a"})
		late("6")
		time.Sleep(time.Minute)
		want := "a is 1, a is 3, a is 4, a is " + strings.Repeat("ä", maxProgress/2) + ", result X, ack a"
		if got := b.all(); got != want {
			t.Errorf("%.200s, want %.200s", got, want)
		}
	})
}

type reporterFunc func(context.Context, task.Task, func(string)) (string, error)

func (f reporterFunc) Handle(ctx context.Context, t task.Task) (string, error) {
	return f(ctx, t, func(string) {})
}

func (f reporterFunc) HandleReporting(ctx context.Context, t task.Task, report func(string)) (string, error) {
	return f(ctx, t, report)
}

// Ten minutes in which the handler can do nothing, however it says so: no task is
// lost or given up, the handler is asked little, and a minute later all is done.
func TestOutage(t *testing.T) {
	t.Parallel()
	const s, m = time.Second, time.Minute
	for _, tt := range []struct {
		name        string
		outcome     Outcome
		takes       time.Duration // an attempt
		concurrency int
		tasks       int           // at the beginning
		each        time.Duration // a further task comes
	}{
		{"later", Later, 0, 10, 100, s},
		{"misconfigured", Misconfigured, 0, 10, 100, s},
		{"fails at once", Failed, 0, 10, 100, s},
		{"fails after a while", Failed, 20 * s, 10, 100, s},
		{"fails, one slot", Failed, 0, 1, 10, 10 * s},
		{"fails, many slots", Failed, 0, 100, 1000, s / 10},
		{"fails, few tasks", Failed, 0, 10, 30, m},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const outage = 10 * m
				attempts, running, done := 0, 0, map[string]bool{}
				var mu sync.Mutex
				cfg := DefaultConfig()
				cfg.Concurrency = tt.concurrency
				began := time.Now()
				queue := make(chan task.Task, 100_000)
				b := &broker{deliver: func(t task.Task) { queue <- t }}
				w := newTestWorker(b, cfg, handlerFunc(func(_ context.Context, tk task.Task) (string, error) {
					mu.Lock()
					attempts++
					if running++; running > tt.concurrency {
						t.Error("too many attempts at once")
					}
					mu.Unlock()
					if time.Since(began) < outage {
						time.Sleep(tt.takes)
					}
					mu.Lock()
					defer mu.Unlock()
					running--
					if time.Since(began) < outage {
						return "", fails(tt.outcome)
					}
					done[tk.ID] = true
					return "X", nil
				}))
				n := 0
				add := func() {
					queue <- task.Task{ID: fmt.Sprint(n), Text: "x", Accepted: time.Now()}
					n++
				}
				for range tt.tasks {
					add()
				}
				ctx, cancel := context.WithCancel(t.Context())
				var workers sync.WaitGroup
				for range tt.concurrency {
					workers.Go(func() {
						for {
							select {
							case <-ctx.Done():
								return
							case t := <-queue:
								w.Handle(ctx, delivery{b: b, id: t.ID, task: t})
							}
						}
					})
				}
				for time.Since(began) < outage-tt.each {
					time.Sleep(tt.each)
					add()
				}
				if err := w.Ready(); err == nil || !strings.Contains(err.Error(), "why") {
					t.Errorf("ready in the outage: %v", err)
				}
				mu.Lock()
				b.mu.Lock()
				t.Logf("%d attempts of %d tasks in the outage, at most %d of one counted", attempts, n, b.worst)
				b.mu.Unlock()
				if limit := 100 + 2*tt.concurrency; attempts > limit {
					t.Errorf("%d attempts in the outage, want %d at most", attempts, limit)
				}
				mu.Unlock()
				time.Sleep(time.Until(began.Add(outage + m)))
				synctest.Wait()
				mu.Lock()
				if len(done) != n {
					t.Errorf("%d of %d tasks are done a minute after the outage", len(done), n)
				}
				mu.Unlock()
				if said := b.all(); strings.Contains(said, "reject") || strings.Contains(said, "requeue") || strings.Contains(said, "dead") {
					t.Error("a task was given up or returned")
				}
				if err := w.Ready(); err != nil {
					t.Errorf("after the outage: %v", err)
				}
				cancel()
				workers.Wait()
			})
		})
	}
}

// Bad tasks, which fail whenever they are attempted, hold up the good ones for
// seconds if there are not many in a row, and otherwise not for ever.
func TestBadTasks(t *testing.T) {
	t.Parallel()
	const goodTasks = 1000
	for _, tt := range []struct {
		name   string
		bad    int
		within time.Duration // good ones are done:
		good   int           // so many of goodTasks
	}{
		{"few", 9, time.Second, goodTasks},
		// Ten fail at once. If all of the other five are tried before a good
		// one, there are pauses of 1, 2, 4, 8, 16 and 30 s.
		{"a row of them", 15, 61 * time.Second, goodTasks},
		// The last good ones come after bad ones that waited here for too long
		// and went to the end of the queue.
		{"very many", 1000, maxFailing + time.Minute, goodTasks * 9 / 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				queue := make(chan task.Task, 100_000)
				b := &broker{deliver: func(t task.Task) { queue <- t }}
				good := 0
				var mu sync.Mutex
				w := newTestWorker(b, DefaultConfig(), handlerFunc(func(_ context.Context, t task.Task) (string, error) {
					if strings.HasPrefix(t.ID, "bad") {
						return "", fails(Failed)
					}
					mu.Lock()
					defer mu.Unlock()
					good++
					return "X", nil
				}))
				for i := range tt.bad {
					queue <- task.Task{ID: fmt.Sprint("bad", i), Text: "x"}
				}
				for i := range goodTasks {
					queue <- task.Task{ID: fmt.Sprint("good", i), Text: "x"}
				}
				ctx, cancel := context.WithCancel(t.Context())
				var workers sync.WaitGroup
				for range DefaultConfig().Concurrency {
					workers.Go(func() {
						for {
							select {
							case <-ctx.Done():
								return
							case t := <-queue:
								w.Handle(ctx, delivery{b: b, id: t.ID, task: t})
							}
						}
					})
				}
				time.Sleep(tt.within)
				synctest.Wait()
				mu.Lock()
				if good < tt.good {
					t.Errorf("%d good tasks are done after %v, want %d", good, tt.within, tt.good)
				}
				mu.Unlock()
				// 17 min of waits with half as much jitter, and the pauses.
				time.Sleep(time.Hour)
				synctest.Wait()
				if good != goodTasks {
					t.Errorf("%d good tasks are done, want %d", good, goodTasks)
				}
				if n := strings.Count(b.all(), "dead bad"); n != tt.bad {
					t.Errorf("%d of %d bad tasks were given up", n, tt.bad)
				}
				cancel()
				workers.Wait()
			})
		})
	}
}

// A task that ends with Later leaves its slot to others.
func TestOneTaskLater(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &broker{}
		w := newTestWorker(b, DefaultConfig(), handlerFunc(func(context.Context, task.Task) (string, error) { return "", fails(Later) }))
		began := time.Now()
		w.Handle(t.Context(), delivery{b: b, id: "a"})
		if took := time.Since(began); took > 0 || b.all() != "publish a, ack a" || b.worst != 2 {
			t.Errorf("%s after %v, %d attempts counted", b.all(), took, b.worst)
		}
		if err := w.Ready(); err != nil {
			t.Error(err)
		}
	})
}

// A worker that stops or loses its session returns the tasks that wait at once.
// It does not publish a task again that the broker delivers again by itself.
func TestStopWhilePaused(t *testing.T) {
	t.Parallel()
	for cause, want := range map[error]string{
		context.Canceled:         "requeue b, publish c, ack c",
		errors.New("connection"): "requeue b, requeue c",
	} {
		synctest.Test(t, func(t *testing.T) {
			b := &broker{}
			w := newTestWorker(b, DefaultConfig(), handlerFunc(func(context.Context, task.Task) (string, error) { return "", fails(Misconfigured) }))
			w.Handle(t.Context(), delivery{b: b, id: "a"})
			b.did = nil
			ctx, cancel := context.WithCancelCause(t.Context())
			var running sync.WaitGroup
			running.Go(func() { w.Handle(ctx, delivery{b: b, id: "b", attempt: 1}) })
			synctest.Wait()
			began := time.Now()
			cancel(cause)
			running.Wait()
			w.Handle(ctx, delivery{b: b, id: "c", attempt: 2})
			if took := time.Since(began); took > 0 {
				t.Errorf("it took %v", took)
			}
			if b.all() != want {
				t.Errorf("%v: %s, want %s", cause, b.all(), want)
			}
		})
	}
}

// An attempt that failed after the session was lost leaves nothing behind: the
// broker delivers the task again.
func TestFailsAfterTheSessionWasLost(t *testing.T) {
	t.Parallel()
	for _, o := range []Outcome{Failed, Never, Later} {
		b := &broker{}
		ctx, cancel := context.WithCancelCause(t.Context())
		w := newTestWorker(b, DefaultConfig(), handlerFunc(func(context.Context, task.Task) (string, error) {
			cancel(errors.New("the connection was closed"))
			return "", fails(o)
		}))
		w.Handle(ctx, delivery{b: b, id: "a", attempt: 3})
		if b.all() != "requeue a" {
			t.Errorf("outcome %d: %s", o, b.all())
		}
	}
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
				w := newTestWorker(b, cfg, handlerFunc(func(ctx context.Context, _ task.Task) (string, error) {
					select {
					case <-time.After(tt.takes):
						return "X", nil
					case <-ctx.Done():
						return "", context.Cause(ctx)
					}
				}))
				ctx, cancel := context.WithCancelCause(t.Context())
				var running sync.WaitGroup
				running.Go(func() { w.Handle(ctx, delivery{b: b, id: "a"}) })
				synctest.Wait()
				began := time.Now()
				cancel(tt.cause)
				w.Handle(ctx, delivery{b: b, id: "b"}) // came before the broker knew of the stop
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
