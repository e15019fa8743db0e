package handler

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// use has n tasks, each of which takes d, enter at once. It returns how many
// worked at the same time, and how long all took.
func use(h hot, n int, d time.Duration) (highest int, took time.Duration) {
	var mu sync.Mutex
	var running sync.WaitGroup
	began, now := time.Now(), 0
	for range n {
		running.Go(func() {
			defer h.leave(h.enter(context.Background()))
			mu.Lock()
			now++
			highest = max(highest, now)
			mu.Unlock()
			time.Sleep(d)
			h.took(d)
			mu.Lock()
			now--
			mu.Unlock()
		})
	}
	running.Wait()
	return highest, time.Since(began)
}

func TestHot(t *testing.T) {
	t.Parallel()
	const quick, slow = 50 * time.Microsecond, 20 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		h := newHot(2)
		// Each step follows the one before.
		for _, step := range []struct {
			name    string
			n       int
			each    time.Duration
			highest int           // at once
			took    time.Duration // at most
		}{
			{"quick from the beginning", 64, quick, 2, 32 * quick},
			{"slow at once", 64, slow, 64, hotPatience + slow},
			{"slow", 64, slow, 64, slow},
			{"quick after slow ones", 64, quick, 64, quick},
			{"quick", 64, quick, 2, 32 * quick},
		} {
			if highest, took := use(h, step.n, step.each); highest != step.highest || took > step.took {
				t.Errorf("%s: %d at once in %v, want %d in %v", step.name, highest, took, step.highest, step.took)
			}
			if n := len(h.places); n > 0 {
				t.Errorf("%s: %d places are still taken", step.name, n)
			}
		}

		// Two that hang hold up the others for a moment, and an end of the
		// context ends the wait.
		for range 2 {
			if !h.enter(t.Context()) {
				t.Error("no place")
			}
		}
		began := time.Now()
		if h.enter(t.Context()) || time.Since(began) != hotPatience {
			t.Errorf("it waited for %v", time.Since(began))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		began = time.Now()
		if h.enter(ctx) || time.Since(began) > 0 {
			t.Errorf("it waited for %v after its end", time.Since(began))
		}
	})
}
