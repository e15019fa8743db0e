package stack_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// descendants returns all processes below pid, and their names.
func descendants(t *testing.T, pid int) map[int]string {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	children, names := make(map[int][]int), make(map[int]string)
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// pid (name) state ppid ...; the name may hold anything
		open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
		child, err := strconv.Atoi(strings.TrimSpace(string(stat[:open])))
		if err != nil {
			t.Fatal(err)
		}
		fields := strings.Fields(string(stat[end+1:]))
		parent, err := strconv.Atoi(fields[1])
		if err != nil {
			t.Fatal(err)
		}
		children[parent] = append(children[parent], child)
		names[child] = string(stat[open+1 : end])
	}
	found := make(map[int]string)
	for left := children[pid]; len(left) > 0; left = left[1:] {
		found[left[0]] = names[left[0]]
		left = append(left, children[left[0]]...)
	}
	return found
}

// A process is one whose end can be waited for, though it is no child.
type process struct {
	name string
	fd   int // -1: it has ended already
}

func watch(t *testing.T, pid int, name string) process {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		fd = -1
	} else if err != nil {
		t.Fatalf("watch %s: %v", name, err)
	} else {
		t.Cleanup(func() { unix.Close(fd) })
	}
	return process{name: fmt.Sprintf("%s (%d)", name, pid), fd: fd}
}

// await waits for the end, and fails the test if it does not come.
func (p process) await(t *testing.T, limit time.Duration) {
	t.Helper()
	if p.fd < 0 {
		return
	}
	deadline := time.Now().Add(limit)
	for {
		fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(max(0, time.Until(deadline)).Milliseconds()))
		switch {
		case err == unix.EINTR:
		case err != nil:
			t.Fatal(err)
		case n == 0:
			t.Errorf("%s is still running", p.name)
			return
		default:
			return
		}
	}
}
