package daemon_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/revq/revq/internal/daemon/daemontest"
)

// A deaf service manager reads its socket only when the test has it do so.
type deaf struct{ *net.UnixConn }

func newDeaf(t *testing.T) *deaf {
	t.Helper()
	dir, err := os.MkdirTemp("", "revq-deaf-") // t.TempDir() may be too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		os.RemoveAll(dir)
	})
	return &deaf{conn}
}

const filler = "filler"

// fill writes until the socket's queue takes no more.
func (m *deaf) fill(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for {
		err := unix.Sendto(fd, []byte(filler), 0, &unix.SockaddrUnix{Name: m.LocalAddr().String()})
		if errors.Is(err, unix.EAGAIN) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// await reads messages, the lines of which have to match want, one after the
// other; others may be between them. It returns all lines that it has read,
// except for those that filled the queue.
func (m *deaf) await(t *testing.T, want ...string) (lines []string) {
	t.Helper()
	m.SetReadDeadline(time.Now().Add(30 * time.Second))
	message := make([]byte, 4<<10)
	for len(want) > 0 {
		n, err := m.Read(message)
		if err != nil {
			t.Fatalf("%q did not come: %v; before it came %q", want[0], err, lines)
		}
		for line := range strings.SplitSeq(string(message[:n]), "\n") {
			if line == filler {
				continue
			}
			lines = append(lines, line)
			if len(want) > 0 && regexp.MustCompile("^(?:"+want[0]+")$").MatchString(line) {
				want = want[1:]
			}
		}
	}
	return lines
}

// A service manager that does not read holds up nothing in a daemon. When it
// reads again it gets what it has to know, and of the status lines the newest
// one only.
func TestServiceManagerDoesNotRead(t *testing.T) {
	t.Parallel()
	start := func(t *testing.T, does string, m *deaf, cfg daemontest.Config) *daemontest.Daemon {
		cfg.Args = append(cfg.Args, "--listen", "127.0.0.1:0")
		cfg.Env = append(cfg.Env, "NOTIFY_SOCKET="+m.LocalAddr().String())
		return startSmall(t, does, cfg)
	}
	stop := func(t *testing.T, d *daemontest.Daemon) {
		t.Helper()
		if took := d.Terminate(t); took > 15*time.Second {
			t.Errorf("the stop took %v", took)
		}
	}

	t.Run("READY", func(t *testing.T) {
		t.Parallel()
		m := newDeaf(t)
		m.fill(t)
		d := start(t, "serve", m, daemontest.Config{})
		d.WaitLog(t, "msg=ready")
		d.WaitLog(t, "the service manager does not take messages")
		m.await(t, "READY=1")
		stop(t, d)
		if n := strings.Count(d.Log(), "msg=ready"); n != 1 {
			t.Errorf("logged %d times that it is ready", n)
		}
	})

	t.Run("STATUS", func(t *testing.T) {
		t.Parallel()
		m := newDeaf(t)
		d := start(t, "count looks", m, daemontest.Config{Watchdog: 80 * time.Millisecond})
		m.await(t, "READY=1", "STATUS=.*")
		m.fill(t)
		looks := strings.Count(d.Log(), "looked ")
		d.WaitLog(t, fmt.Sprintf("looked %d times", looks+100)) // some seconds
		var told []string
		for _, line := range m.await(t, "STATUS=.*") {
			if strings.HasPrefix(line, "STATUS=") {
				told = append(told, line)
			}
		}
		var n int
		if _, err := fmt.Sscanf(told[0], "STATUS=ready; %d looks", &n); len(told) != 1 || err != nil || n < looks+100 {
			t.Errorf("told %q (%v), want the newest status only, after %d looks", told, err, looks+100)
		}
		stop(t, d)
	})

	t.Run("WATCHDOG", func(t *testing.T) {
		t.Parallel()
		m := newDeaf(t)
		hang := filepath.Join(t.TempDir(), "hang")
		d := start(t, "hang", m, daemontest.Config{Env: []string{"HANG=" + hang}, Watchdog: 80 * time.Millisecond})
		m.await(t, "WATCHDOG=1", "WATCHDOG=1")
		m.fill(t)
		writeFile(t, hang, "") // is seen all the same
		d.WaitLog(t, "looked 100 times while it hung")
		if lines := m.await(t, "STATUS=hangs: .*"); slices.Contains(lines[max(0, len(lines)-1):], "WATCHDOG=1") {
			t.Errorf("reported %q: a sign of life from before it hung", lines)
		}
		m.fill(t)
		if err := os.Remove(hang); err != nil {
			t.Fatal(err)
		}
		d.WaitLog(t, "nothing hangs any more")
		m.await(t, "WATCHDOG=1")
		stop(t, d)
	})

	t.Run("RELOADING", func(t *testing.T) {
		t.Parallel()
		m := newDeaf(t)
		wrong := filepath.Join(t.TempDir(), "wrong")
		d := start(t, "reload", m, daemontest.Config{Env: []string{"WRONG=" + wrong}})
		m.await(t, "READY=1", "STATUS=.*")
		m.fill(t)
		d.Signal(t, syscall.SIGHUP)
		d.WaitLog(t, "msg=reloaded")
		writeFile(t, wrong, "")
		before := monotonic(t)
		d.Signal(t, syscall.SIGHUP)
		d.WaitLog(t, "the reload changed nothing")
		lines := m.await(t, "RELOADING=1", `MONOTONIC_USEC=\d+`, "READY=1")
		if len(lines) != 3 {
			t.Errorf("reported %q, want the last reload only", lines)
		}
		var at int64
		if _, err := fmt.Sscanf(lines[1], "MONOTONIC_USEC=%d", &at); err != nil || at < before {
			t.Errorf("reload at %q, want after %d", lines[1], before)
		}
		m.await(t, "STATUS=ready; the last reload changed nothing: a setting is wrong")
		stop(t, d)
	})

	t.Run("STOPPING", func(t *testing.T) {
		t.Parallel()
		m := newDeaf(t)
		d := start(t, "be busy", m, daemontest.Config{Args: []string{"--stop-timeout", "20s"}})
		m.await(t, "READY=1", "STATUS=.*")
		m.fill(t)
		d.Signal(t, syscall.SIGTERM)
		d.WaitLog(t, "msg=busy")
		m.await(t, "STOPPING=1", "EXTEND_TIMEOUT_USEC=.*", "STATUS=stopping", "EXTEND_TIMEOUT_USEC=.*")
		d.Signal(t, syscall.SIGTERM) // does not wait for the end
		d.Wait(t)
	})

	t.Run("the end", func(t *testing.T) {
		t.Parallel()
		m := newDeaf(t)
		m.fill(t)
		began := time.Now()
		d := start(t, "fail before it is ready", m, daemontest.Config{})
		if status := d.Wait(t); status != 1 {
			t.Errorf("status %d, want 1", status)
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("the end took %v", took)
		}
		m.fill(t)
		d = startDaemon(t, "revq-worker", daemontest.Config{Env: []string{"NOTIFY_SOCKET=" + m.LocalAddr().String()}})
		d.WaitLog(t, "no session with the broker")
		stop(t, d)
	})
}
