// Package memory gives memory back to the system after something large has
// gone. Go does so by itself, but a process that then has little to do keeps
// it for minutes: nothing asks the garbage collector to run.
package memory

import (
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// Large is from how many bytes on something is worth a call of GiveBack when it
// has become garbage: an ordinary text is far smaller.
const Large = 1 << 20

// delay is how long GiveBack waits, so that many calls are one: a collection
// costs some milliseconds of each processor.
const delay = 3 * time.Second

var waiting atomic.Bool

// GiveBack has memory that is not used any more given back to the system, a few
// seconds later. It returns at once.
func GiveBack() {
	if !waiting.CompareAndSwap(false, true) {
		return
	}
	time.AfterFunc(delay, func() {
		waiting.Store(false)
		runtime.GC() // which leaves pooled buffers to the next one
		debug.FreeOSMemory()
	})
}
