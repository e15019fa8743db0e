package worker

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/revq/revq/internal/tally"
	"github.com/revq/revq/internal/task"
)

// outcomeNames are the names of the outcomes, in their order.
var outcomeNames = [...]string{"done", "failed", "never", "later", "misconfigured", "stopped"}

// counts are what a worker counts.
type counts struct {
	attempts       [len(outcomeNames)]atomic.Int64
	wait, handling *tally.Times

	mu    sync.Mutex
	tasks []Running // those without a Since are free places
	free  []int     // places in tasks

	// retries are the tasks that were sent to wait for another attempt, at
	// most maxRetries, in the order in which they were sent.
	retries []Retry
}

const (
	// maxRetries bounds what is remembered for operators: some 500 KB.
	maxRetries = 1000

	// maxWhy bounds the reason of a Retry, in bytes.
	maxWhy = 200
)

// A Running is a task that a worker is running.
type Running struct {
	ID       string
	Attempt  int64
	Accepted time.Time // when the client's text was accepted; zero if unknown
	Since    time.Time // when the worker took it
	Until    time.Time // when the attempt ends, at the latest; zero if unknown

	text string
}

// A Retry is a task that waits for another attempt.
type Retry struct {
	ID      string
	Attempt int64     // the next one
	Due     time.Time // when it begins, or later if no worker is free
	Why     string    // the last attempt did not succeed; of bounded length
}

func newCounts() *counts {
	return &counts{wait: tally.NewTimes(tally.Slow), handling: tally.NewTimes(tally.Slow)}
}

// begin records that the worker has taken t, and returns its place for end.
func (c *counts) begin(t task.Task) (place int) {
	now := time.Now()
	if !t.Accepted.IsZero() {
		c.wait.Add(now.Sub(t.Accepted))
	}
	r := Running{ID: t.ID, Attempt: t.Attempt(), Accepted: t.Accepted, Since: now, text: t.Text}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.retries) > 0 {
		c.retries = slices.DeleteFunc(c.retries, func(r Retry) bool { return r.ID == t.ID })
	}
	if n := len(c.free); n > 0 {
		place = c.free[n-1]
		c.free = c.free[:n-1]
		c.tasks[place] = r
		return place
	}
	c.tasks = append(c.tasks, r)
	return len(c.tasks) - 1
}

func (c *counts) end(place int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tasks[place] = Running{}
	c.free = append(c.free, place)
}

// retry records that t was sent to wait for another attempt.
func (c *counts) retry(t task.Task, why error) {
	r := Retry{ID: t.ID, Attempt: t.Attempt(), Due: t.NotBefore, Why: why.Error()}
	if len(r.Why) > maxWhy {
		r.Why = strings.ToValidUTF8(r.Why[:maxWhy], "") + "…"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.retries) >= maxRetries {
		c.retries = slices.Delete(c.retries, 0, 1)
	}
	c.retries = append(c.retries, r)
}

// Retries returns the tasks that this worker has sent to wait for another
// attempt, the last thousand at most, and the next one first. Once a task is
// due, another worker may have it, so it is not among them.
func (w *Worker) Retries() []Retry {
	now := time.Now()
	w.counts.mu.Lock()
	w.counts.retries = slices.DeleteFunc(w.counts.retries, func(r Retry) bool { return r.Due.Before(now) })
	retries := slices.Clone(w.counts.retries)
	w.counts.mu.Unlock()
	slices.SortFunc(retries, func(a, b Retry) int { return a.Due.Compare(b.Due) })
	return retries
}

// Running returns the running tasks, in the order in which they were taken.
func (w *Worker) Running() []Running {
	w.counts.mu.Lock()
	running := slices.DeleteFunc(slices.Clone(w.counts.tasks), func(r Running) bool { return r.Since.IsZero() })
	w.counts.mu.Unlock()
	if limit := w.cfg.Limit; limit != nil {
		for i := range running {
			running[i].Until = running[i].Since.Add(limit(running[i].text))
		}
	}
	slices.SortFunc(running, func(a, b Running) int { return a.Since.Compare(b.Since) })
	return running
}

// Slots returns how many tasks the worker handles at once.
func (w *Worker) Slots() int { return w.cfg.Concurrency }

// Attempts calls each with every outcome, and how many attempts had it.
func (w *Worker) Attempts(each func(outcome string, attempts int64)) {
	for i, name := range outcomeNames {
		each(name, w.counts.attempts[i].Load())
	}
}

// WaitTimes returns how long texts waited from the moment when they were
// accepted until a worker took them. Each attempt counts.
func (w *Worker) WaitTimes() tally.Snapshot { return w.counts.wait.Snapshot() }

// HandlingTimes returns how long attempts took.
func (w *Worker) HandlingTimes() tally.Snapshot { return w.counts.handling.Snapshot() }
