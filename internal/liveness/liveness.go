// Package liveness tells whether the loops of a program still go round, as the
// service manager wants to know.
//
// A loop that hangs cannot say so. It says instead when it begins something
// that will end, and when it waits for what may never come: work, or an answer
// of somebody else. That costs an idle program nothing.
package liveness

import (
	"fmt"
	"sync/atomic"
	"time"
)

// A Loop follows one goroutine. The nil Loop is one that nobody looks at.
type Loop struct {
	name  string
	limit time.Duration
	start time.Time
	busy  atomic.Int64 // since how long after start, in nanoseconds; 0: it waits
}

// New returns a Loop that is called name in errors, and that hangs if it is
// busy with one thing for longer than limit. Nothing that goes well may come
// near that, on a busy machine and with a broker that answers at the last
// moment: a false alarm ends the program.
func New(name string, limit time.Duration) *Loop {
	return &Loop{name: name, limit: limit, start: time.Now()}
}

// Busy says that the next thing begins, which ends by itself.
func (l *Loop) Busy() {
	if l != nil {
		l.busy.Store(max(1, int64(time.Since(l.start))))
	}
}

// Idle says that the loop waits for something that may never come, or that it
// has ended.
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
		return fmt.Errorf("%s has not gone round for %v", l.name, busy.Round(time.Second))
	}
	return nil
}
