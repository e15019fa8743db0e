package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Processes are the ids of processes that belong together.
type Processes []int

// ticks is how many clock ticks /proc counts in a second of processor time:
// USER_HZ, 100 on all architectures on which Go runs.
const ticks = 100

// cpu returns how much processor time the processes have used.
func (ps Processes) cpu() time.Duration {
	var sum int64
	for _, pid := range ps {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has ended
		}
		// The name, in parentheses, may hold blanks. User and system time are
		// the 12th and 13th field after it.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 13 {
			continue
		}
		user, _ := strconv.ParseInt(fields[11], 10, 64)
		system, _ := strconv.ParseInt(fields[12], 10, 64)
		sum += user + system
	}
	return time.Duration(sum) * time.Second / ticks
}

// resident returns how much memory the processes use, in bytes. What they share
// counts for each.
func (ps Processes) resident() int64 {
	var sum int64
	for _, pid := range ps {
		statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			continue
		}
		if fields := strings.Fields(string(statm)); len(fields) > 1 {
			pages, _ := strconv.ParseInt(fields[1], 10, 64)
			sum += pages * int64(os.Getpagesize())
		}
	}
	return sum
}

// descriptors returns how many files and sockets the processes have open.
func (ps Processes) descriptors() int {
	sum := 0
	for _, pid := range ps {
		fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		sum += len(fds)
	}
	return sum
}

// Self returns this process.
func Self() Processes { return Processes{os.Getpid()} }

// errNotVisible means that /proc does not show a server's process.
var errNotVisible = errors.New("the server's process is not visible: it runs on another host or as another user")

// ListeningOn returns the processes on this machine that listen on a TCP port.
func ListeningOn(port int) (Processes, error) {
	sockets := make(map[string]bool)
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		content, err := os.ReadFile(table)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(content)) {
			const localAddress, state, inode, listen = 1, 3, 9, "0A"
			fields := strings.Fields(line)
			if len(fields) > inode && fields[state] == listen && strings.HasSuffix(fields[localAddress], fmt.Sprintf(":%04X", port)) {
				sockets["socket:["+fields[inode]+"]"] = true
			}
		}
	}
	var found Processes
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err != nil || !sockets[link] {
			continue
		}
		pid, _ := strconv.Atoi(strings.Split(fd, "/")[2])
		if len(found) == 0 || found[len(found)-1] != pid {
			found = append(found, pid)
		}
	}
	if len(found) == 0 {
		return nil, errNotVisible
	}
	return found, nil
}

// OpenFiles returns how many files this program may open. Go raises the limit
// to the hard limit when the program starts.
func OpenFiles() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 1024 // the usual soft limit
	}
	return int(min(limit.Cur, 1<<30))
}
