package proc

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// awaitExit returns when the child pid has ended, and leaves it to be reaped.
func awaitExit(pid int) {
	kq, err := unix.Kqueue()
	if err != nil {
		return
	}
	defer unix.Close(kq)
	exit := []unix.Kevent_t{{Ident: uint64(pid), Filter: unix.EVFILT_PROC, Flags: unix.EV_ADD, Fflags: unix.NOTE_EXIT}}
	for {
		// A child that has ended already fails with ESRCH.
		if _, err := unix.Kevent(kq, exit, exit, nil); err != unix.EINTR {
			return
		}
	}
}

// endWithParent does nothing: only Linux can.
func endWithParent(*syscall.SysProcAttr) {}
