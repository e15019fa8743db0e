package bench

import (
	"testing"
	"time"
)

// A message has reached all listeners when the last of them has it.
func TestLightMeter(t *testing.T) {
	t.Parallel()
	now := time.Now()
	m := &lightMeter{due: []time.Time{now.Add(-time.Second), now}, arrived: make([]int, 2), listeners: 2, missing: 4, each: newHistogram(), last: newHistogram()}
	m.received(0, 1)
	m.received(0, 2)
	m.received(1, 3) // nobody here published the third
	if m.missing != 0 || m.each.latency().Count != 4 || m.last.latency().Count != 2 {
		t.Errorf("%d missing, %d each, %d last; want 0, 4, 2", m.missing, m.each.latency().Count, m.last.latency().Count)
	}
	if got := m.last.latency().Max; got < 1000 {
		t.Errorf("the first message took %v ms, want a second or more", got)
	}
}
