// Package liveness tells whether the loops of a program hang, for the service
// manager's watchdog.
//
// A loop that hangs cannot report that it does. Instead it reports when it
// begins something that must end, and when it begins to wait for something that
// may never come, such as work or another program's answer. An idle program
// spends no time on this.
package liveness

import (
	"fmt"
	"sync/atomic"
	"time"
)

// A Loop watches one goroutine. A nil Loop watches nothing.
type Loop struct {
	name  string
	limit time.Duration
	start time.Time
	busy  atomic.Int64 // when it became busy, in nanoseconds after start; 0 while it waits
}

// New returns a Loop that hangs if it is busy with one thing for longer than
// limit. Its errors call it name. A false alarm ends the program, so the limit
// must be far longer than anything takes on a busy machine with a broker that
// answers at the last moment.
func New(name string, limit time.Duration) *Loop {
	return &Loop{name: name, limit: limit, start: time.Now()}
}

// Busy reports that the loop begins the next thing, which must end.
func (l *Loop) Busy() {
	if l != nil {
		l.busy.Store(max(1, int64(time.Since(l.start))))
	}
}

// Idle reports that the loop waits for something that may never come, or that
// it has ended.
func (l *Loop) Idle() {
	if l != nil {
		l.busy.Store(0)
	}
}

// Alive returns an error if the loop hangs.
func (l *Loop) Alive() error {
	since := l.busy.Load()
	if since == 0 {
		return nil
	}
	if busy := time.Since(l.start) - time.Duration(since); busy > l.limit {
		return fmt.Errorf("%s hangs: it has been busy with one thing for %v", l.name, busy.Round(time.Second))
	}
	return nil
}
