package tally

import (
	"sync"
	"testing"
	"time"
)

func TestTimes(t *testing.T) {
	t.Parallel()
	times := NewTimes([]time.Duration{time.Second, 10 * time.Second})
	var adding sync.WaitGroup
	for range 4 {
		adding.Go(func() {
			for _, d := range []time.Duration{-time.Second, 0, time.Second, time.Second + 1, 10 * time.Second, time.Minute} {
				times.Add(d)
			}
		})
	}
	adding.Wait()
	s := times.Snapshot()
	// The bounds belong to their buckets, as Prometheus has it.
	if s.Count != 24 || s.Buckets[1] != 12 || s.Buckets[10] != 20 || len(s.Buckets) != 2 {
		t.Errorf("counts %+v", s)
	}
	if want := 4 * (1 + 1 + 10 + 60.0); s.Sum < want || s.Sum > want+0.001 {
		t.Errorf("sum %v, want %v", s.Sum, want)
	}
}

func TestAddAllocatesNothing(t *testing.T) {
	times := NewTimes(Slow)
	if n := testing.AllocsPerRun(100, func() { times.Add(time.Second) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAdd(b *testing.B) {
	times := NewTimes(Slow)
	for b.Loop() {
		times.Add(3 * time.Second)
	}
}
