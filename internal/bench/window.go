package bench

import "time"

// A Window is the time in which a measurement counts.
type Window struct {
	Warmup   time.Duration // before it
	Duration time.Duration
	Count    int64 // ends it early, when so much has been counted; 0 for no end
}

// lookEvery is how often a measurement without a load.Loop looks at the time.
const lookEvery = 10 * time.Millisecond

// showEvery is how often progress is shown.
const showEvery = 100 * time.Millisecond

// A window is a Window that has begun.
type window struct {
	Window
	progress func(float64)
	began    time.Time // of the warm-up
	opened   time.Time
	open     bool // the warm-up is over
	looked   time.Time
	shown    time.Time
}

func (w Window) begin(progress func(float64)) *window {
	return &window{Window: w, progress: progress, began: time.Now()}
}

// look opens the window when the warm-up is over, and reports whether the window
// has ended. counted is what was counted in it.
func (w *window) look(now time.Time, counted int64) (over bool) {
	if !w.open {
		if now.Sub(w.began) < w.Warmup {
			return false
		}
		w.open, w.opened = true, now
	}
	w.looked = now
	if w.progress != nil && now.Sub(w.shown) >= showEvery {
		w.shown = now
		done := float64(now.Sub(w.opened)) / float64(w.Duration)
		if w.Count > 0 {
			done = max(done, float64(counted)/float64(w.Count))
		}
		w.progress(min(done, 1))
	}
	return now.Sub(w.opened) >= w.Duration || w.Count > 0 && counted >= w.Count
}

// seconds returns how long the window was open, up to the last look.
func (w *window) seconds() float64 { return max(w.looked.Sub(w.opened).Seconds(), 1e-9) }
