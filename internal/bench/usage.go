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

// Processes are those that belong together, by process id.
type Processes []int

// Usage is what processes took while something was measured.
type Usage struct {
	CPU      float64 `json:"cpu_seconds"`
	Resident int64   `json:"resident_bytes"` // at the end
}

// ticks is how many the kernel counts in a second of processor time: USER_HZ, 100 on all architectures of Linux that
// Go runs on.
const ticks = 100

// cpu returns how much processor time the processes have used.
func (ps Processes) cpu() time.Duration {
	var sum int64
	for _, pid := range ps {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has ended
		}
		// The name, in parentheses, may hold blanks; user and system time are the 12th and 13th field behind it.
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

// resident returns how much memory the processes have, in bytes. What they share counts for each.
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

// Self is this program.
func Self() Processes { return Processes{os.Getpid()} }

// errNotSeen means that a server's process is not to be seen from here.
var errNotSeen = errors.New("the server's process is not to be seen: it is another host's, or another user's")

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
		return nil, errNotSeen
	}
	return found, nil
}

// Others is the name under which a usage tells what everything else on this machine took: where that is much, a
// measurement says little.
const Others = "others"

// busy returns how much processor time was used on this machine, by whatever, also what a hypervisor took away.
func busy() time.Duration {
	fields := strings.Fields(firstLine("/proc/stat")) // cpu, user, nice, system, idle, iowait, irq, softirq, steal
	var sum int64
	for i, field := range fields[:min(len(fields), 9)] {
		const name, idle, iowait = 0, 4, 5
		if i != name && i != idle && i != iowait {
			n, _ := strconv.ParseInt(field, 10, 64)
			sum += n
		}
	}
	return time.Duration(sum) * time.Second / ticks
}

// A usageMeter measures what processes use from now on.
type usageMeter struct {
	of        map[string]Processes
	began     map[string]time.Duration
	busyBegan time.Duration
}

func measureUsage(of map[string]Processes) *usageMeter {
	m := &usageMeter{of: of, began: make(map[string]time.Duration), busyBegan: busy()}
	for name, ps := range of {
		m.began[name] = ps.cpu()
	}
	return m
}

func (m *usageMeter) end() map[string]Usage {
	if len(m.of) == 0 {
		return nil
	}
	usage := make(map[string]Usage)
	others := busy() - m.busyBegan
	for name, ps := range m.of {
		used := ps.cpu() - m.began[name]
		others -= used
		usage[name] = Usage{CPU: used.Seconds(), Resident: ps.resident()}
	}
	usage[Others] = Usage{CPU: max(others, 0).Seconds()}
	return usage
}

// OpenFiles returns how many files this program may open. Go has raised the limit to the hard one at the start.
func OpenFiles() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 1024 // what POSIX systems give at least
	}
	return int(min(limit.Cur, 1<<30))
}
