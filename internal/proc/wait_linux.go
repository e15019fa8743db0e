package proc

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// awaitExit returns when the child pid has ended, and leaves it to be reaped.
func awaitExit(pid int) {
	for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
}

// endWithParent has the system kill the child when the thread that starts it ends. Go's threads live as long
// as the program, but for those that goroutines lock and leave locked, of which there are none here.
func endWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }
