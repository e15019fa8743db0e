package handler

import (
	"context"
	"sync/atomic"
	"time"
)

const (
	// quickTime is below what a program takes that waits for anything, and
	// above what one takes that answers at once.
	quickTime = 300 * time.Microsecond

	// quickWindow is how many tasks show whether programs are quick. The
	// quickest counts: on a machine that is busy, most take longer than they
	// need.
	quickWindow = 32

	// hotPatience is how long a task waits for a quick program while none
	// finishes anything or starts. Then another process takes it: those that were quick
	// may have got tasks that take long.
	hotPatience = 4 * time.Millisecond
)

// hot bounds how many programs work at once, while they are quick: each that
// computes on its own core. Tasks come in bursts of up to the concurrency. With
// one process for each, the system would switch between all of those processes,
// which with 64 slots on two cores takes more than twice as long as to have two
// of them, whose memory is still in the caches, handle one task after the other.
// Programs that take longer are not bounded: they may wait for something.
type hot struct {
	places   chan struct{}
	finished *atomic.Int64 // tasks that have given their place back
	starting *atomic.Int64 // programs that have not said hello yet; the pool's lock guards its changes
	window   *window
}

// A window is the tasks from which quick is decided.
type window struct {
	quick    atomic.Bool
	n        atomic.Int64
	quickest atomic.Int64 // in nanoseconds
}

// newHot returns a bound for places programs at once. At first programs are
// taken to be quick, so that no more of them are started than there is work for.
func newHot(places int) hot {
	h := hot{places: make(chan struct{}, places), finished: new(atomic.Int64), starting: new(atomic.Int64), window: new(window)}
	h.window.quick.Store(true)
	return h
}

// enter waits for a place, if programs are quick. It returns whether it has
// taken one, for leave. The end of ctx ends the wait.
func (h hot) enter(ctx context.Context) bool {
	if !h.window.quick.Load() {
		return false
	}
	select {
	case h.places <- struct{}{}:
		return true
	default:
	}
	for {
		before := h.finished.Load()
		timer := time.NewTimer(hotPatience)
		select {
		case h.places <- struct{}{}:
			timer.Stop()
			return true
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
			if h.finished.Load() == before && h.starting.Load() == 0 {
				return false
			}
		}
	}
}

func (h hot) leave(entered bool) {
	if entered {
		h.finished.Add(1)
		<-h.places
	}
}

// took notes how long a program took for a task. Tasks that end at the same
// time may be counted for one window or the next, which does not matter.
func (h hot) took(d time.Duration) {
	w := h.window
	for {
		quickest := w.quickest.Load()
		if quickest != 0 && quickest <= int64(d) || w.quickest.CompareAndSwap(quickest, int64(max(d, 1))) {
			break
		}
	}
	if w.n.Add(1)%quickWindow == 0 {
		w.quick.Store(w.quickest.Swap(0) < int64(quickTime))
	}
}
