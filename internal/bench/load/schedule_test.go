package load

import (
	"testing"
	"time"
)

func TestScheduleIsNotEarly(t *testing.T) {
	t.Parallel()
	began := time.Unix(1_700_000_000, 0)
	times := NewSchedule(began, 100)
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
		due, ok := times.Take(began.Add(tt.after))
		if ok != tt.ok || due.Sub(began) != tt.due {
			t.Errorf("Take after %v = %v, %v; want %v, %v", tt.after, due.Sub(began), ok, tt.due, tt.ok)
		}
	}
}
