//go:build linux

package daemon_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/revq/revq/internal/daemon/daemontest"
)

// startDaemon starts one of the real daemons, whose broker is not there.
func startDaemon(t *testing.T, name string, cfg daemontest.Config) *daemontest.Daemon {
	t.Helper()
	cfg.Path = daemontest.Binary(t, name)
	cfg.Env = append(cfg.Env, "REVQ_AMQP_URL="+noBroker)
	if name != "revq-worker" && cfg.Sockets == nil {
		ln, _ := daemontest.Listen(t)
		cfg.Sockets = []daemontest.Socket{ln}
	}
	return daemontest.Start(t, cfg)
}

// Each daemon gives signs of life while it has no broker. One that is stopped,
// which is how a process hangs as a whole, gives none, and the same one goes on
// with them afterwards.
func TestWatchdog(t *testing.T) {
	t.Parallel()
	for name := range strings.FieldsSeq(everyDaemon) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const interval = 200 * time.Millisecond
			d := startDaemon(t, name, daemontest.Config{Watchdog: interval})
			n := 0
			for range 5 {
				n = d.WaitAgain(t, n, "WATCHDOG=1")
			}
			d.Signal(t, syscall.SIGSTOP)
			awaitStopped(t, d.Pid())
			// All that it has sent is there before what the test itself sends.
			d.Notify(t, "stopped")
			n = d.WaitAgain(t, n, "stopped")
			<-time.After(3 * interval) // in which nothing may happen
			d.Notify(t, "still stopped")
			if m := d.WaitAgain(t, n, "still stopped"); m != n+1 {
				t.Errorf("reported %q while it was stopped", d.States()[n:m-1])
			}
			d.Signal(t, syscall.SIGCONT)
			d.WaitAgain(t, n, "WATCHDOG=1")
			d.Terminate(t)
			if strings.Contains(d.Log(), "hangs") {
				t.Error("takes itself to hang")
			}
		})
	}
}

// awaitStopped waits until all threads of a process have stopped.
func awaitStopped(t *testing.T, pid int) {
	t.Helper()
	stopped := func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil || len(threads) == 0 {
			t.Fatalf("the threads of %d: %v", pid, err)
		}
		return !slices.ContainsFunc(threads, func(path string) bool {
			stat, err := os.ReadFile(path)
			return err == nil && !strings.Contains(string(stat), ") T ")
		})
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.After(20 * time.Second); !stopped(); {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("process %d has not stopped", pid)
		}
	}
}

// Without a watchdog, and with one for another process, there are no signs of
// life.
func TestNoWatchdog(t *testing.T) {
	t.Parallel()
	for name, env := range map[string][]string{
		"none":                nil,
		"of another process":  {"WATCHDOG_USEC=100000", "WATCHDOG_PID=1"},
		"that is not usable":  {"WATCHDOG_USEC=often"},
		"that is not allowed": {"WATCHDOG_USEC=0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := startSmall(t, "count looks", daemontest.Config{Args: []string{"--listen", "127.0.0.1:0"}, Env: env})
			d.WaitReady(t)
			d.WaitState(t, "STATUS=ready; 3 ")
			d.Terminate(t)
			if slices.Contains(d.States(), "WATCHDOG=1") {
				t.Errorf("reported %q", d.States())
			}
			if wrong := strings.HasPrefix(name, "that"); strings.Contains(d.Log(), "the watchdog is disabled") != wrong {
				t.Errorf("warned: %v, want %v", !wrong, wrong)
			}
		})
	}
}

// A daemon of which a part hangs gives no signs of life, and says which part it
// is.
func TestHang(t *testing.T) {
	t.Parallel()
	hang := filepath.Join(t.TempDir(), "hang")
	d := startSmall(t, "hang", daemontest.Config{
		Args: []string{"--listen", "127.0.0.1:0"}, Env: []string{"HANG=" + hang}, Watchdog: 80 * time.Millisecond,
	})
	n := d.WaitAgain(t, 0, "WATCHDOG=1")
	n = d.WaitAgain(t, n, "WATCHDOG=1")
	writeFile(t, hang, "")
	from := d.WaitAgain(t, n, "STATUS=hangs: the reader; and another one")
	d.WaitLog(t, `so that the service manager restarts this daemon" error="the reader\nand another one"`)
	d.WaitLog(t, "looked 10 times while it hung")
	if later := d.States()[from:]; slices.Contains(later, "WATCHDOG=1") {
		t.Errorf("reported %q while it hung", later)
	}
	if err := os.Remove(hang); err != nil {
		t.Fatal(err)
	}
	d.WaitAgain(t, from, "WATCHDOG=1")
	d.WaitAgain(t, from, "STATUS=ready")
	d.WaitLog(t, "nothing hangs any more")
	d.Terminate(t)
}

// A daemon that hangs from the start is never ready, and asks for no time while
// it stops.
func TestHangThroughout(t *testing.T) {
	t.Parallel()
	hang := filepath.Join(t.TempDir(), "hang")
	writeFile(t, hang, "")
	d := startSmall(t, "hang", daemontest.Config{
		Args: []string{"--listen", "127.0.0.1:0"}, Env: []string{"HANG=" + hang}, Watchdog: 80 * time.Millisecond,
	})
	d.WaitLog(t, "looked 10 times while it hung")
	d.Terminate(t)
	got := d.States()
	for _, unwanted := range []string{"READY=1", "WATCHDOG=1", "EXTEND_TIMEOUT_USEC=5000000"} {
		if slices.Contains(got, unwanted) {
			t.Errorf("reported %q among %q", unwanted, got)
		}
	}
	if !slices.Contains(got, "STOPPING=1") {
		t.Errorf("reported %q, want STOPPING=1 among it", got)
	}
}

// The service manager ends a daemon that hangs by SIGABRT: it shows where each
// goroutine is, and does not end with the status of a wrong setting, after
// which units do not start it again.
func TestAbort(t *testing.T) {
	t.Parallel()
	for name := range strings.FieldsSeq(everyDaemon) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := startDaemon(t, name, daemontest.Config{})
			// So that what is looked for below is on the way.
			d.WaitState(t, "STATUS=waiting: the broker is not connected")
			d.WaitLog(t, "no session with the broker")
			d.Signal(t, syscall.SIGABRT)
			if status := d.Wait(t); status != -1 {
				t.Errorf("status %d, want the end by a signal", status)
			}
			for _, want := range []string{"SIGABRT", "rabbit.(*link).run", "daemon.(*Daemon).report"} {
				if !strings.Contains(d.Log(), want) {
					t.Errorf("log does not contain %q", want)
				}
			}
			if strings.Contains(d.Log(), secret) {
				t.Error("log shows the password")
			}
		})
	}
	t.Run("panic", func(t *testing.T) {
		t.Parallel()
		d := startSmall(t, "panic", daemontest.Config{Args: []string{"--listen", "127.0.0.1:0"}})
		if status := d.Wait(t); status != -1 {
			t.Errorf("status %d, want the end by a signal", status)
		}
		d.WaitLog(t, "panic: a bug")
	})
}

// The status line follows what changes all the time, but not more than once a
// second.
func TestStatusIsNotSentTooOften(t *testing.T) {
	t.Parallel()
	began := time.Now()
	d := startSmall(t, "count looks", daemontest.Config{Args: []string{"--listen", "127.0.0.1:0"}, Watchdog: 40 * time.Millisecond})
	d.WaitLog(t, "looked 100 times")
	d.WaitAgain(t, 0, "STATUS=ready; ")
	d.Terminate(t)
	var lines int
	for _, s := range d.States() {
		if strings.HasPrefix(s, "STATUS=") {
			lines++
		}
	}
	if limit := int(time.Since(began)/time.Second) + 2; lines > limit { // the first one, and that it stops
		t.Errorf("%d status lines in %v, want %d at most", lines, time.Since(began), limit)
	}
}

// While a daemon stops, it asks for time again and again, and says what it
// waits for.
func TestStopAsksForTime(t *testing.T) {
	t.Parallel()
	d := startSmall(t, "be busy", daemontest.Config{Args: []string{"--listen", "127.0.0.1:0", "--stop-timeout", "3s"}})
	d.WaitReady(t)
	d.Signal(t, syscall.SIGTERM)
	n := d.WaitAgain(t, 0, "STOPPING=1")
	d.WaitAgain(t, n, "STATUS=stopping")
	for range 3 {
		n = d.WaitAgain(t, n, "EXTEND_TIMEOUT_USEC=5000000")
	}
	if status := d.Wait(t); status != 1 {
		t.Errorf("status %d, want 1", status)
	}
	d.WaitAgain(t, n, "STATUS=failed: small: could not stop within 3s")
	d.WaitAgain(t, n, fmt.Sprintf("ERRNO=%d", int(syscall.ETIMEDOUT)))
}

// A daemon that fails says why, with the system's number of the error if there
// is one.
func TestFailureStatus(t *testing.T) {
	t.Parallel()
	_, taken := daemontest.Listen(t)
	for _, tt := range []struct {
		name   string
		start  func(*testing.T, daemontest.Config) *daemontest.Daemon
		args   []string
		status int
		want   []string
	}{
		{"a port that is taken", startAPI, []string{"--listen", taken}, 1, []string{
			"STATUS=failed: revq-api: open the site: listen tcp " + taken + ": bind: address already in use; use --listen for another address",
			fmt.Sprintf("ERRNO=%d", int(syscall.EADDRINUSE)),
		}},
		{"a wrong flag", startAPI, []string{"--max-text", "0"}, 2, []string{
			"STATUS=failed: revq-api: --max-text must be 1 to 16777216, not 0 (see revq-api --help)",
			fmt.Sprintf("ERRNO=%d", int(syscall.EINVAL)),
		}},
		{"wrong settings", startAPI, []string{"--amqp-url", "amqp://user:" + secret + "@host:port/"}, 2, []string{
			"STATUS=failed: revq-api: URL 1 of the broker cannot be used: give amqp://USER:PASSWORD@HOST:PORT/VHOST, and percent-encode special characters in the password (see revq-api --help)",
			fmt.Sprintf("ERRNO=%d", int(syscall.EINVAL)),
		}},
		{"an error of its own", func(t *testing.T, cfg daemontest.Config) *daemontest.Daemon {
			return startSmall(t, "fail before it is ready", cfg)
		}, []string{"--listen", "127.0.0.1:0"}, 1, []string{"STATUS=failed: small: some reason; and another one"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := tt.start(t, daemontest.Config{Args: tt.args})
			if status := d.Wait(t); status != tt.status {
				t.Errorf("status %d, want %d", status, tt.status)
			}
			got := d.States()
			if got = got[max(0, len(got)-len(tt.want)):]; !slices.Equal(got, tt.want) {
				t.Errorf("reported %q at last, want %q", got, tt.want)
			}
		})
	}
}

// A reload is announced with the time, and its end too. One that fails is told.
func TestReload(t *testing.T) {
	t.Parallel()
	wrong := filepath.Join(t.TempDir(), "wrong")
	d := startSmall(t, "reload", daemontest.Config{Args: []string{"--listen", "127.0.0.1:0"}, Env: []string{"WRONG=" + wrong}})
	n := d.WaitAgain(t, 0, "READY=1")
	for _, tt := range []struct{ log, status string }{
		{"msg=reloaded", ""},
		{"the reload changed nothing", "STATUS=ready; the last reload changed nothing: a setting is wrong"},
		{"msg=reloaded", "STATUS=ready"},
	} {
		before := monotonic(t)
		d.Signal(t, syscall.SIGHUP)
		n = d.WaitAgain(t, n, "RELOADING=1")
		text, _ := strings.CutPrefix(d.States()[n], "MONOTONIC_USEC=") // it is of the same message
		if at, err := strconv.ParseInt(text, 10, 64); err != nil || at < before || at > monotonic(t) {
			t.Errorf("reload at %q, not between %d and now", text, before)
		}
		n = d.WaitAgain(t, n, "READY=1")
		d.WaitLog(t, tt.log)
		if tt.status != "" {
			n = d.WaitAgain(t, n, tt.status)
		}
		if tt.status == "" {
			writeFile(t, wrong, "")
		} else if err := os.Remove(wrong); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	d.Terminate(t)
}

func monotonic(t *testing.T) int64 {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	return now.Nano() / 1000
}

// The real daemons survive the signal when there is nothing to reload, and when
// they are not ready: what ends the reload would be taken for readiness.
func TestReloadNothing(t *testing.T) {
	t.Parallel()
	for name := range strings.FieldsSeq(everyDaemon) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := startDaemon(t, name, daemontest.Config{})
			d.WaitState(t, "STATUS=waiting: ")
			d.Signal(t, syscall.SIGHUP)
			d.WaitLog(t, "the reload changed nothing")
			d.WaitLog(t, "the broker's URL is not from a credential file")
			d.Terminate(t)
			if name == "revq-worker" && (slices.Contains(d.States(), "RELOADING=1") || slices.Contains(d.States(), "READY=1")) {
				t.Errorf("reported %q", d.States())
			}
		})
	}
}

// With --listen systemd a daemon serves what systemd hands over, and nothing
// else.
func TestListenSystemd(t *testing.T) {
	t.Parallel()
	for name := range strings.FieldsSeq("revq-api revq-socket") {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ln, addr := daemontest.Listen(t)
			d := startDaemon(t, name, daemontest.Config{Env: []string{"REVQ_LISTEN=systemd"}, Sockets: []daemontest.Socket{ln}})
			d.WaitReady(t)
			if status, _ := get(t, "http://"+addr+"/healthz"); status != 200 {
				t.Errorf("status %d", status)
			}
			d.Terminate(t)

			d = startDaemon(t, name, daemontest.Config{Args: []string{"--listen", "systemd"}, Sockets: []daemontest.Socket{}})
			if status := d.Wait(t); status != 2 {
				t.Errorf("without sockets: status %d, want 2", status)
			}
			want := name + ": systemd handed over no sockets: start " + name + " by its .socket unit, or leave out --listen systemd"
			if !strings.HasPrefix(d.Log(), want) {
				t.Errorf("said %q, want %q", d.Log(), want)
			}
		})
	}
}

// A worker has no use for sockets: those who connect would wait for ever.
func TestWorkerRefusesSockets(t *testing.T) {
	t.Parallel()
	ln, _ := daemontest.Listen(t)
	d := startDaemon(t, "revq-worker", daemontest.Config{Sockets: []daemontest.Socket{ln}})
	if status := d.Wait(t); status != 2 {
		t.Errorf("status %d, want 2", status)
	}
	if !strings.HasPrefix(d.Log(), `revq-worker: systemd handed over the socket "revq-worker", but revq-worker does not listen: remove the .socket unit`) {
		t.Errorf("said %q", d.Log())
	}
}
