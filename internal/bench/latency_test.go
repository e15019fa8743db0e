package bench

import (
	"testing"
	"time"
)

// A server that stalls for a second is seen in the latencies of all texts that were due in that second, although the
// client sent none of them then.
func TestCoordinatedOmission(t *testing.T) {
	t.Parallel()
	began := time.Unix(1_700_000_000, 0)
	times := newSchedule(began, 1000)
	fromDue, fromSent := newHistogram(), newHistogram()
	const service = time.Millisecond
	free := began // when the only connection can send again
	for range 10_000 {
		due := times.due(times.next)
		send := due
		if free.After(send) {
			send = free
		}
		taken, ok := times.take(send)
		if !ok || !taken.Equal(due) {
			t.Fatalf("take(%v) = %v, %v; want %v", send, taken, ok, due)
		}
		answered := send.Add(service)
		if n := times.next; n == 5000 {
			answered = answered.Add(time.Second)
		}
		free = answered
		fromDue.record(answered.Sub(due))
		fromSent.record(answered.Sub(send))
	}
	if got := fromSent.latency().P99; got > 2 {
		t.Errorf("the 99th percentile from sending is %v ms: the test itself is wrong", got)
	}
	// Nothing makes up for the second, since the connection has no time to spare: half of the texts are late by it.
	if got := fromDue.latency(); got.P99 < 999 || got.P50 > 1002 || got.Count != 10_000 {
		t.Errorf("from when they were due: %+v, want a 99th percentile of a second", got)
	}
}

func TestScheduleIsNotEarly(t *testing.T) {
	t.Parallel()
	began := time.Unix(1_700_000_000, 0)
	times := newSchedule(began, 100)
	for _, tt := range []struct {
		after time.Duration
		due   time.Duration
		ok    bool
	}{
		{0, 0, true},
		{0, 10 * time.Millisecond, false},
		{9 * time.Millisecond, 10 * time.Millisecond, false},
		{35 * time.Millisecond, 10 * time.Millisecond, true},
		{35 * time.Millisecond, 20 * time.Millisecond, true},
		{35 * time.Millisecond, 30 * time.Millisecond, true},
		{35 * time.Millisecond, 40 * time.Millisecond, false},
	} {
		due, ok := times.take(began.Add(tt.after))
		if ok != tt.ok || due.Sub(began) != tt.due {
			t.Errorf("take after %v = %v, %v; want %v, %v", tt.after, due.Sub(began), ok, tt.due, tt.ok)
		}
	}
}

func TestHistogram(t *testing.T) {
	t.Parallel()
	h := newHistogram()
	for i := range 1000 {
		h.record(time.Duration(i+1) * time.Millisecond)
	}
	h.record(-time.Second) // clocks: counts as nothing
	h.record(time.Hour)    // out of the range: counts as its end
	got := h.latency()
	near := func(name string, got Milliseconds, want float64) {
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

// The meter for few messages counts a message as with all when the last listener has it.
func TestLightMeter(t *testing.T) {
	t.Parallel()
	now := time.Now()
	m := &lightMeter{due: []time.Time{now.Add(-time.Second), now}, arrived: make([]int, 2), listeners: 2, missing: 4, each: newHistogram(), last: newHistogram()}
	m.received(0, 1)
	m.received(0, 2)
	m.received(1, 3) // the third is not one of ours
	if m.missing != 0 || m.each.latency().Count != 4 || m.last.latency().Count != 2 {
		t.Errorf("%d missing, %d each, %d last; want 0, 4, 2", m.missing, m.each.latency().Count, m.last.latency().Count)
	}
	if got := m.last.latency().Max; got < 1000 {
		t.Errorf("the first message took %v ms, want a second or more", got)
	}
}
