package stack

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// timerSlack is that of the units (TimerSlackNSec=), which say why.
const timerSlack = time.Millisecond

// withTimerSlack calls start, whose child processes begin with timerSlack.
func withTimerSlack(start func()) {
	// They inherit that of the thread which makes them. It is a matter of
	// speed only, so that errors do not matter.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0)
	defer unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) // which is the default
	start()
}
