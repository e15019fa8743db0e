// Package tally counts on the paths that every text takes: a few atomic
// operations for each event, and no allocation. Whoever wants to see the counts
// reads them from time to time.
package tally

import (
	"sync/atomic"
	"time"
)

// The bounds of the buckets of Times. They are 2 to 3 times as long as the one
// before, which is exact enough to see where time is spent.
var (
	// Quick is for what takes milliseconds as a rule, and seconds at worst.
	Quick = []time.Duration{
		time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond,
		25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond,
		500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second,
	}

	// Slow is for what may take milliseconds and may take hours.
	Slow = []time.Duration{
		5 * time.Millisecond, 25 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond,
		500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second,
		30 * time.Second, time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour, 6 * time.Hour,
	}
)

// Times counts how often something took how long. Many goroutines may use it.
type Times struct {
	bounds []time.Duration // ascending
	counts []atomic.Int64  // one more than bounds, for what took longer
	sum    atomic.Int64    // nanoseconds
}

// NewTimes returns a Times with these bounds of buckets, in ascending order.
func NewTimes(bounds []time.Duration) *Times {
	return &Times{bounds: bounds, counts: make([]atomic.Int64, len(bounds)+1)}
}

// Add counts one event that took d. A negative d, as from clocks that differ,
// counts as 0.
func (t *Times) Add(d time.Duration) {
	d = max(d, 0)
	i := 0
	for i < len(t.bounds) && d > t.bounds[i] {
		i++
	}
	t.counts[i].Add(1)
	t.sum.Add(int64(d))
}

// A Snapshot is what a Times has counted.
type Snapshot struct {
	Count   uint64
	Sum     float64            // seconds
	Buckets map[float64]uint64 // how many took at most so many seconds
}

// Snapshot returns the counts. Events that are counted meanwhile may be in a
// part of it only.
func (t *Times) Snapshot() Snapshot {
	s := Snapshot{Buckets: make(map[float64]uint64, len(t.bounds))}
	for i := range t.counts {
		s.Count += uint64(t.counts[i].Load())
		if i < len(t.bounds) {
			s.Buckets[t.bounds[i].Seconds()] = s.Count
		}
	}
	s.Sum = time.Duration(t.sum.Load()).Seconds()
	return s
}
