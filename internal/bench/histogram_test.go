package bench

import (
	"testing"
	"time"

	"github.com/revq/revq/internal/bench/load"
	"github.com/revq/revq/internal/bench/report"
)

// A server that stalls for a second shows in the latencies of all texts that
// were due in that second, although the client sent none of them then.
func TestCoordinatedOmission(t *testing.T) {
	t.Parallel()
	began := time.Unix(1_700_000_000, 0)
	times := load.NewSchedule(began, 1000)
	fromDue, fromSent := newHistogram(), newHistogram()
	const service = time.Millisecond
	free := began // when the only connection can send again
	for n := range int64(10_000) {
		due := times.Next()
		send := due
		if free.After(send) {
			send = free
		}
		taken, ok := times.Take(send)
		if !ok || !taken.Equal(due) {
			t.Fatalf("Take(%v) = %v, %v; want %v", send, taken, ok, due)
		}
		answered := send.Add(service)
		if n == 4999 {
			answered = answered.Add(time.Second)
		}
		free = answered
		fromDue.record(answered.Sub(due))
		fromSent.record(answered.Sub(send))
	}
	if got := fromSent.latency().P99; got > 2 {
		t.Errorf("the 99th percentile from sending is %v ms: the test itself is wrong", got)
	}
	// The connection is always busy and cannot catch up: half of the texts are
	// late by the second.
	if got := fromDue.latency(); got.P99 < 999 || got.P50 > 1002 || got.Count != 10_000 {
		t.Errorf("from when they were due: %+v, want a 99th percentile of a second", got)
	}
}

func TestHistogram(t *testing.T) {
	t.Parallel()
	h := newHistogram()
	for i := range 1000 {
		h.record(time.Duration(i+1) * time.Millisecond)
	}
	h.record(-time.Second) // a clock was set back: counts as the minimum
	h.record(time.Hour)    // above the range: counts as the maximum
	got := h.latency()
	near := func(name string, got report.Milliseconds, want float64) {
		if g := float64(got); g < want*0.998 || g > want*1.002 {
			t.Errorf("%s is %v ms, want %v", name, g, want)
		}
	}
	near("p50", got.P50, 500)
	near("p90", got.P90, 901)
	near("p99", got.P99, 991)
	near("max", got.Max, float64(longestLatency/time.Millisecond))
	if got.Count != 1002 {
		t.Errorf("%d recorded, want 1002", got.Count)
	}
}
