package worker

import (
	"testing"
	"time"

	"github.com/revq/revq/internal/task"
)

// The running tasks are known, whatever the order in which they end, and places
// are used again.
func TestRunning(t *testing.T) {
	t.Parallel()
	w := &Worker{counts: newCounts()}
	names := func() (all string) {
		for _, r := range w.Running() {
			all += r.ID
		}
		return all
	}
	take := func(id string) int {
		place := w.counts.begin(task.Task{ID: id, Accepted: time.Now().Add(-time.Minute)})
		// Clocks may be coarse, and the order is that of the times.
		for now := time.Now(); !time.Now().After(now); {
		}
		return place
	}
	a, b, c := take("a"), take("b"), take("c")
	if got := names(); got != "abc" {
		t.Errorf("running %q", got)
	}
	w.counts.end(b)
	w.counts.end(a)
	if got := names(); got != "c" {
		t.Errorf("running %q after two ended", got)
	}
	take("d")
	if got := names(); got != "cd" || len(w.counts.tasks) != 3 {
		t.Errorf("running %q, in %d places", got, len(w.counts.tasks))
	}
	w.counts.end(c)
	if s := w.WaitTimes(); s.Count != 4 || s.Buckets[30] != 0 || s.Buckets[300] != 4 {
		t.Errorf("waited %+v", s)
	}
}
