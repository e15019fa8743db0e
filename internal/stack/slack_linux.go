package stack

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// timerSlack is the one that the units set (TimerSlackNSec=); they say why.
const timerSlack = time.Millisecond

// withTimerSlack calls start, whose child processes begin with timerSlack.
func withTimerSlack(start func()) {
	// A child inherits the slack of the thread that starts it. It affects only
	// the speed, so errors are ignored.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0)
	defer unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) // 0 restores the default
	start()
}
