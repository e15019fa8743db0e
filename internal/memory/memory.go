// Package memory returns memory to the system after something large was freed.
// Go does so by itself, but an idle process keeps the memory for minutes, since
// nothing makes the garbage collector run.
package memory

import (
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// Large is the size in bytes from which on something is worth a call of GiveBack
// when it is no longer used. An ordinary text is far smaller.
const Large = 1 << 20

// delay is how long GiveBack waits, so that many calls share one collection,
// which takes some milliseconds of each processor.
const delay = 3 * time.Second

var waiting atomic.Bool

// GiveBack returns unused memory to the system a few seconds later. It does not
// wait for that.
func GiveBack() {
	if !waiting.CompareAndSwap(false, true) {
		return
	}
	time.AfterFunc(delay, func() {
		waiting.Store(false)
		runtime.GC() // it does not free pooled buffers: the next one does
		debug.FreeOSMemory()
	})
}
