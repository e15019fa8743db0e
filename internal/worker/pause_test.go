package worker

import (
	"errors"
	"slices"
	"testing"
	"time"
)

func TestPauser(t *testing.T) {
	t.Parallel()
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	// A step is an attempt that is admitted at a time, and what came of it; or,
	// with refused, a task that has to wait.
	type step struct {
		at      time.Duration
		refused bool
		outcome Outcome
		is      phase
	}
	const (
		s = time.Second
		// again is added to Failed: the task of the attempt has failed before.
		again = 100
	)
	failed := func(n int, o Outcome) []step { return slices.Repeat([]step{{0, false, o, working}}, n) }
	down := append(failed(5, Failed), step{0, false, Failed, paused}) // with six slots
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"works", []step{{0, false, Done, working}, {0, false, Failed, working}, {0, false, Never, working}}},
		{"failed, not in a row", slices.Concat(failed(5, Failed), failed(1, Done), failed(5, Failed), failed(1, Never), failed(5, Failed))},
		{"the same tasks fail again and again", failed(100, Failed+again)},
		{"bad tasks among those that fail again", slices.Concat(failed(50, Failed+again), failed(5, Failed), failed(50, Failed+again))},
		{"failed, in a row", slices.Concat(down, []step{{s - 1, true, 0, paused}, {s, false, Done, working}, {s, false, Failed, working}})},
		{"pauses grow while attempts fail", slices.Concat(down, []step{
			{s, false, Failed, paused}, {3*s - 1, true, 0, paused}, {3 * s, false, Failed + again, paused}, {7*s - 1, true, 0, paused}, {7 * s, false, Never, working},
		})},
		{"attempts fail for too long", slices.Concat(down, []step{{maxFailing - 1, false, Failed, paused}, {maxFailing + 29*s, false, Failed, working}}, failed(50, Failed), failed(1, Done), down)},
		{"attempts fail, then it says later", slices.Concat(down, []step{{s, false, Later, paused}, {3 * s, false, Failed, working}})},
		{"later, not in a row", []step{{0, false, Later, working}, {0, false, Later, working}, {0, false, Done, working}, {0, false, Later, working}, {0, false, Later, working}}},
		{"later, in a row", []step{{0, false, Later, working}, {0, false, Later, working}, {0, false, Later, paused}, {s - 1, true, 0, paused}, {s, false, Done, working}, {s, false, Done, working}}},
		{"misconfigured", []step{{0, false, Misconfigured, paused}, {s / 2, true, 0, paused}, {s, false, Done, working}}},
		{"one try at a time", []step{{0, false, Misconfigured, paused}, {s, false, -1, probing}, {s, true, 0, probing}, {100 * s, true, 0, probing}}},
		{"the try was cut short", []step{{0, false, Misconfigured, paused}, {s, false, Stopped, paused}, {s, false, Done, working}}},
		{"pauses grow, and begin again with the first", []step{
			{0, false, Misconfigured, paused}, {s, false, Later, paused}, {2*s + s, false, Later, paused}, {7*s - 1, true, 0, paused}, {7 * s, false, Done, working},
			{8 * s, false, Misconfigured, paused}, {9 * s, false, Done, working},
		}},
		{"a failed attempt shows that it works", []step{{0, false, Misconfigured, paused}, {s, false, Failed, working}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := pauser{slots: 6}
			for i, step := range tt.steps {
				now := began.Add(step.at)
				round, wait, ok := p.admit(now)
				if ok == step.refused {
					t.Fatalf("step %d: admit() = %v", i, ok)
				}
				if p.phase == paused && wait <= 0 {
					t.Errorf("step %d: nobody asks again", i)
				}
				if ok && step.outcome >= 0 {
					p.ended(round, step.outcome%again, step.outcome < again, errors.New("why"), now, 1)
				}
				if p.phase != step.is {
					t.Fatalf("step %d: the phase is %d, want %d", i, p.phase, step.is)
				}
			}
		})
	}
}

func TestPauserBounds(t *testing.T) {
	t.Parallel()
	now := time.Now()
	var p pauser
	for i, limit := range []time.Duration{1, 2, 4, 8, 15, 15, 15, 15} {
		limit *= time.Second
		round, _, ok := p.admit(now)
		if !ok {
			t.Fatalf("pause %d does not end", i)
		}
		jitter := float64(i%2) * 0.999
		p.ended(round, Misconfigured, true, errors.New("why"), now, jitter)
		if wait := p.until.Sub(now); wait < limit/2 || wait > limit {
			t.Errorf("pause %d takes %v, want %v to %v", i, wait, limit/2, limit)
		}
		// What began before says nothing about how it is now.
		p.ended(round, Done, true, nil, now, 0)
		p.ended(round, Later, true, nil, now, 0)
		if p.phase != paused {
			t.Errorf("pause %d ended by an attempt from before it", i)
		}
		now = p.until
	}
}
