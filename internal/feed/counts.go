package feed

import (
	"sync/atomic"
	"time"

	"github.com/revq/revq/internal/task"
)

// counts are what a feed counts.
type counts struct {
	results, repetitions, gaps atomic.Int64
	newest                     atomic.Int64 // when the task of the newest result after the backlog was done, in nanoseconds since 1970
}

func (c *counts) add(r task.Result, live bool) {
	c.results.Add(1)
	if live && !r.Done.IsZero() {
		c.newest.Store(r.Done.UnixNano())
	}
}

// Results returns how many results were appended, with those of the backlog.
func (f *Feed) Results() int64 { return f.counts.results.Load() }

// Repetitions returns how many results were dropped because they were
// repetitions.
func (f *Feed) Repetitions() int64 { return f.counts.repetitions.Load() }

// Gaps returns how often all listeners were told of a gap.
func (f *Feed) Gaps() int64 { return f.counts.gaps.Load() }

// Newest returns when the task of the newest result was done; the zero time if
// there is none after the backlog, or its time is unknown.
func (f *Feed) Newest() time.Time {
	if done := f.counts.newest.Load(); done != 0 {
		return time.Unix(0, done)
	}
	return time.Time{}
}
