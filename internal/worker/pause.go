package worker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// laterInRow is how many attempts in a row must end with Later before
	// tasks wait: a single one may concern only its own task.
	laterInRow = 3

	// minFailedInRow is how many first attempts in a row must fail before
	// tasks wait, or as many as there are slots if those are more: then each
	// slot has failed since the last success, and not only because one moment
	// was bad for all of them, or because somebody sent a few bad tasks.
	// Further attempts are left out: a task that has failed before says less
	// about the handler than about itself.
	minFailedInRow = 5

	// maxFailing is how long tasks wait because attempts fail. The outage that
	// must not cost a task is ten minutes. But a long row of bad tasks looks
	// like an outage, and must not hold up the good ones after it for ever.
	// After this time, each task waits only for its own retries.
	maxFailing = 15 * time.Minute

	// pauseMin and pauseMax bound a pause. It doubles while the handler stays
	// out of order. Half of it is random, so that many workers do not all
	// query a database at once that has come back. Work resumes at most
	// pauseMax after the handler works again. All tasks should be done within a
	// minute after that: pauseMax and laterMax leave half of it for the work.
	pauseMin = time.Second
	pauseMax = 15 * time.Second

	// maxHold is how long a task may wait in a worker whose handler is out of
	// order. Then it returns to the queue, where other workers may take it.
	maxHold = time.Minute
)

// A phase says whether tasks are attempted.
type phase int

const (
	working phase = iota // they are
	paused               // none is, until a given time
	probing              // one is, to find out whether the handler works again
)

// A pauser decides when tasks wait because the handler is out of order. It
// holds no lock and reads no clock.
type pauser struct {
	slots  int // how many attempts may run at once
	phase  phase
	round  int           // counts the pauses: an attempt that began before a pause cannot end it
	laters int           // attempts in a row that ended with Later
	failed int           // first attempts in a row that failed
	wait   time.Duration // of this pause, without jitter; 0 before the first one
	until  time.Time     // the end of this pause
	why    error         // the reason for this pause

	// failing is since when tasks wait because attempts fail; zero if they do
	// not. given is set when that was too long: until one succeeds, failures
	// are the tasks' own.
	failing time.Time
	given   bool
}

// admit says whether a task may be attempted. If not, the caller asks again
// after wait or, if wait is 0, when the phase has changed. The caller passes
// the round to ended.
func (p *pauser) admit(now time.Time) (round int, wait time.Duration, ok bool) {
	switch {
	case p.phase == working:
		return p.round, 0, true
	case p.phase == probing:
		return p.round, 0, false
	case now.Before(p.until):
		return p.round, p.until.Sub(now), false
	}
	p.phase = probing
	return p.round, 0, true
}

// ended takes the outcome of an attempt that was admitted in round. first says
// that no attempt of its task has failed before. The jitter is from 0 to 1.
// ended returns true if the phase has changed.
func (p *pauser) ended(round int, o Outcome, first bool, why error, now time.Time, jitter float64) bool {
	if round != p.round {
		return false
	}
	before := p.phase
	switch o {
	case Later, Misconfigured:
		p.laters++
		if o == Misconfigured || p.phase != working || p.laters >= laterInRow {
			p.failing = time.Time{}
			p.pause(why, now, jitter)
			return true
		}
	case Stopped:
		if p.phase == probing {
			p.phase, p.until = paused, now // the next one may try
		}
	case Failed:
		if first && !p.given {
			p.failed++
		}
		switch {
		case !p.failing.IsZero() && now.Sub(p.failing) >= maxFailing:
			p.work()
			p.given = true
		case !p.failing.IsZero():
			p.pause(why, now, jitter)
			return true
		case p.failed >= max(minFailedInRow, p.slots):
			p.failing = now
			p.pause(why, now, jitter)
			return true
		default: // it answers, so that it is no longer misconfigured
			failed, given := p.failed, p.given
			p.work()
			p.failed, p.given = failed, given
		}
	default: // the handler works
		p.work()
	}
	return p.phase != before
}

// pause begins the next pause.
func (p *pauser) pause(why error, now time.Time, jitter float64) {
	p.phase, p.why, p.laters, p.failed = paused, why, 0, 0
	p.round++
	p.wait = min(max(2*p.wait, pauseMin), pauseMax)
	p.until = now.Add(p.wait/2 + time.Duration(jitter*float64(p.wait/2)))
}

// work ends the pauses.
func (p *pauser) work() { *p = pauser{slots: p.slots, round: p.round} }

// A gate makes goroutines wait as a pauser decides.
type gate struct {
	mu      sync.Mutex
	p       pauser
	changed chan struct{} // is closed when the phase changes
}

func newGate(slots int) *gate {
	return &gate{p: pauser{slots: slots}, changed: make(chan struct{})}
}

// errHeld means that a task has waited in this worker until its limit.
var errHeld = errors.New("the task has waited too long")

// enter waits until a task may be attempted. It returns errHeld at the time
// held, or the cause of ctx's end.
func (g *gate) enter(ctx context.Context, held time.Time) (round int, err error) {
	for {
		g.mu.Lock()
		now := time.Now()
		round, wait, ok := g.p.admit(now)
		changed := g.changed
		g.mu.Unlock()
		if ok {
			return round, nil
		}
		left := held.Sub(now)
		if left <= 0 {
			return 0, errHeld
		}
		if wait == 0 || wait > left {
			wait = left
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-changed:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		timer.Stop()
		if err != nil {
			return 0, err
		}
	}
}

// ended takes the outcome of an attempt. It returns the state after it, the rest
// of the pause, and whether the phase has changed, for the log.
func (g *gate) ended(round int, o Outcome, first bool, why error) (is pauser, wait time.Duration, changed bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if changed = g.p.ended(round, o, first, why, now, rand.Float64()); changed {
		close(g.changed)
		g.changed = make(chan struct{})
	}
	return g.p, g.p.until.Sub(now), changed
}

// err returns why tasks wait; nil if they do not.
func (g *gate) err() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch g.p.phase {
	case paused:
		return fmt.Errorf("the handler is out of order, next attempt in %v: %w", time.Until(g.p.until).Round(time.Second), g.p.why)
	case probing:
		return fmt.Errorf("the handler is out of order and is being tried with one task: %w", g.p.why)
	}
	return nil
}
