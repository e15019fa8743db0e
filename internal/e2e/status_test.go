//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/daemon/daemontest"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/wire"
)

// A seen is a system whose daemons have admin sockets in dir.
type seen struct {
	*system
	dir    string
	worker *daemontest.Daemon
}

// startSeenBy starts a system with an API and a socket server, whose admin
// sockets are called api and socket.
func startSeenBy(t *testing.T, s *system, socketArgs ...string) *seen {
	t.Helper()
	v := &seen{system: s, dir: adminDir(t)}
	s.api = s.startDaemon(t, "revq-api", s.apiSockets, "--admin", filepath.Join(v.dir, "api"))
	s.socket = s.startDaemon(t, "revq-socket", s.socketSockets, append(socketArgs, "--admin", filepath.Join(v.dir, "socket"))...)
	s.awaitReadyz(t, http.StatusOK)
	return v
}

// work starts the worker, in place of the one before. Its admin socket is called
// worker.
func (v *seen) work(t *testing.T, args ...string) {
	t.Helper()
	if v.worker != nil {
		v.worker.Terminate(t)
	}
	v.worker = v.startWorker(t, append([]string{"--admin", filepath.Join(v.dir, "worker")}, args...)...)
}

// A said is what revq status says.
type said struct {
	first, all string
	status     int
	took       time.Duration
}

// status runs revq status with the admin sockets named in sockets.
func (v *seen) status(t *testing.T, sockets string, args ...string) said {
	t.Helper()
	args = append([]string{"status"}, args...)
	for name := range strings.FieldsSeq(sockets) {
		args = append(args, "--admin", filepath.Join(v.dir, name))
	}
	revq := daemontest.Binary(t, "revq") // which may take long to build
	ctx := await.Context(t)
	began := time.Now()
	out, err := exec.CommandContext(ctx, revq, args...).Output()
	s := said{all: string(out), took: time.Since(began)}
	s.first, _, _ = strings.Cut(s.all, "\n")
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		if s.status = exit.ExitCode(); len(exit.Stderr) > 0 {
			t.Fatalf("revq %v: %s", args, exit.Stderr)
		}
	case err != nil:
		t.Fatal(err)
	}
	return s
}

const (
	everySocket = "api socket worker"
	atWork      = "well: 3 daemons at work"
)

// says waits until the first line of revq status begins with a text, checks
// that the exit status fits, and logs the line for the table of causes.
func (v *seen) says(t *testing.T, sockets, want string, args ...string) said {
	t.Helper()
	var s said
	defer func() {
		if t.Failed() {
			t.Logf("revq status says\n%s", s.all)
		}
	}()
	await.True(t, "revq status says "+want, func() bool {
		s = v.status(t, sockets, args...)
		return strings.HasPrefix(s.first, want)
	})
	level := map[string]int{"well": 0, "trouble": 1, "cannot tell": 2}
	if name, _, _ := strings.Cut(s.first, ":"); s.status != level[name] {
		t.Errorf("%s: exit status %d", s.first, s.status)
	}
	t.Logf("after %v: %s", s.took.Round(time.Millisecond), s.first)
	return s
}

// run runs another command of revq.
func (v *seen) run(t *testing.T, args ...string) {
	t.Helper()
	revq := daemontest.Binary(t, "revq")
	ctx := await.Context(t)
	if out, err := exec.CommandContext(ctx, revq, args...).CombinedOutput(); err != nil {
		t.Fatalf("revq %v: %v\n%s", args, err, out)
	}
}

// revq status names the cause of each thing that can go wrong with the workers
// and the queues, in its first line, and is silent about it once it is over.
func TestStatusOfQueues(t *testing.T) {
	t.Parallel()
	s := prepare(t, rabbittest.Shared(t))
	v := &seen{system: s}
	v.run(t, "setup", "--amqp-url", s.url, "--max-tasks", "3")
	v = startSeenBy(t, s)
	v.work(t, "--pause", "0s")
	well := v.says(t, everySocket, atWork)
	if !strings.HasSuffix(well.all, "\nnext: revq send abcdef\n") {
		t.Errorf("the last line is not the next step:\n%s", well.all)
	}

	v.says(t, everySocket, "trouble: the queue revq.tasks has x-max-length 2, not 999999", "--amqp-url", s.url)
	v.says(t, everySocket, atWork, "--amqp-url", s.url, "--max-tasks", "3")

	v.work(t, "--pause", "100ms", "--concurrency", "1")
	send(t, s.apiSites[0], "long", strings.Repeat("a", 150))
	send(t, s.apiSites[0], "short", "b")
	busy := v.says(t, everySocket, "trouble: all 1 slots of this host's workers of reverse_text are busy, the first one until ")
	if !strings.Contains(busy.first, " at the latest; 1 task waits") {
		t.Error(busy.first)
	}
	v.place(t, "long", "running: attempt 1, since ", 0)
	v.place(t, "short", "queued: it was accepted", 0)
	v.place(t, "never", "unknown: no API of this host", 2)

	await.True(t, "the queue is full", func() bool {
		return post(t, s.apiSites[0], "text/plain", "c").status == http.StatusServiceUnavailable
	})
	v.says(t, everySocket, "trouble: the broker refuses tasks for revq.tasks: the queue is full or not available; ")
	v.work(t, "--pause", "0s")
	v.says(t, everySocket, atWork)
	await.True(t, "the task is done", func() bool { return strings.HasPrefix(v.status(t, everySocket, "long").first, "done: at ") })

	v.worker.Terminate(t)
	v.worker = nil
	v.says(t, "api socket", "trouble: no worker takes tasks of reverse_text; 0 tasks wait")
	v.work(t, "--", program(t, "exit 1"))
	v.says(t, everySocket, atWork)

	send(t, s.apiSites[0], "again", "abc")
	retried := v.says(t, everySocket, "trouble: 1 task of reverse_text waits for a retry, the first one until ")
	if !strings.HasSuffix(retried.first, ": exit status 1") {
		t.Error(retried.first)
	}
	await.True(t, "the task waits", func() bool {
		return strings.HasPrefix(v.status(t, everySocket, "again").first, "waiting for a retry until ")
	})

	v.work(t, "--retries", "0", "--", program(t, "echo why >&2; exit 1"))
	v.says(t, everySocket, "trouble: 1 dead letter")
	v.place(t, "again", "failed: it was given up at ", 0)
	v.place(t, "again", "dead: it is a dead letter: attempt ", 0, "--amqp-url", s.url)
	v.run(t, "dead", "purge", "--amqp-url", s.url, "--all", "--yes")
	v.says(t, everySocket, atWork)

	v.work(t, "--", filepath.Join(t.TempDir(), "missing"))
	send(t, s.apiSites[0], "waits", "abc")
	v.says(t, everySocket, "trouble: tasks of reverse_text wait: ")
	v.work(t, "--pause", "0s")
	v.says(t, everySocket, atWork)

	ctx := await.Context(t)
	if out, err := s.node.Ctl(ctx, "delete_queue", "-p", s.vhost, "revq.wait.16"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	v.says(t, everySocket, "trouble: missing at the broker: the queue revq.wait.16", "--amqp-url", s.url, "--max-tasks", "3")
}

// place expects that revq status ID says where a task is.
func (v *seen) place(t *testing.T, id, want string, code int, args ...string) {
	t.Helper()
	s := v.status(t, everySocket, append([]string{id}, args...)...)
	if !strings.HasPrefix(s.first, want) || s.status != code {
		t.Errorf("revq status %s says %q, with status %d, want %q and %d", id, s.first, s.status, want, code)
	}
	t.Logf("%s after %v: %s", id, s.took.Round(time.Millisecond), s.first)
	var p struct{ ID, State, Text, Next string }
	asJSON := v.status(t, everySocket, append([]string{id, "--json"}, args...)...)
	if err := json.Unmarshal([]byte(asJSON.all), &p); err != nil || p.ID != id || p.State == "" || p.Next == "" {
		t.Errorf("as JSON: %s", asJSON.all)
	}
}

// revq status names what is wrong with the broker, and nothing that follows
// from it, also while the broker hangs.
func TestStatusOfTheBroker(t *testing.T) {
	t.Parallel()
	n := rabbittest.StartNode(t)
	v := startSeenBy(t, prepare(t, n))
	v.work(t, "--pause", "0s")
	v.says(t, everySocket, atWork)
	alone := func(want string) {
		t.Helper()
		s := v.says(t, everySocket, "trouble: "+want)
		if causes, _, _ := strings.Cut(s.all, "\n\n"); strings.Count(causes, "\n") > 0 && !strings.Contains(want, "login") {
			t.Errorf("more is told than the cause:\n%s", causes)
		}
	}

	if err := n.Suspend(); err != nil {
		t.Fatal(err)
	}
	// From the first moment on, before any heartbeat is missed.
	v.says(t, everySocket, "trouble: the broker does not answer, though revq-")
	if err := n.Resume(); err != nil {
		t.Fatal(err)
	}
	v.says(t, everySocket, atWork)

	rabbittest.SetAlarm(t, n)
	alone("the broker takes no messages: it is short of memory or disk space")
	rabbittest.ClearAlarm(t, n)
	v.says(t, everySocket, atWork)

	user := rabbittest.User(t, n, v.url, "api", "^$", "^revq$", "^revq")
	wrong := strings.Replace(user, ":secret@", ":other@", 1)
	login := daemontest.Start(t, daemontest.Config{
		Path: daemontest.Binary(t, "revq-worker"), Args: []string{"--admin", filepath.Join(v.dir, "login")}, Env: []string{"REVQ_AMQP_URL=" + wrong},
	})
	v.says(t, everySocket+" login", "trouble: the broker refuses the login of revq-worker")
	if strings.Contains(v.status(t, "login").all, "other") {
		t.Error("the password is told")
	}
	login.Signal(t, syscall.SIGTERM)
	<-login.Done()

	empty := rabbittest.NewVhost(t, n)
	daemontest.Start(t, daemontest.Config{
		Path: daemontest.Binary(t, "revq-worker"), Args: []string{"--admin", filepath.Join(v.dir, "objects")},
		Env: []string{"REVQ_AMQP_URL=" + rabbittest.User(t, n, empty, "worker", "^$", "^revq$", "^revq")},
	})
	v.says(t, "objects", "trouble: revq.tasks does not exist, and this user may not declare it: run `revq setup` as a user who may")

	ctx, cancel := context.WithTimeout(context.Background(), 2*await.Patience)
	defer cancel()
	if err := n.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	alone("the broker is away: ")
	if err := n.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	v.says(t, everySocket, atWork)
}

// revq status names a daemon that is gone or hangs, a site whose connections are
// all taken, and a limit that is near.
func TestStatusOfDaemons(t *testing.T) {
	t.Parallel()
	v := startSeenBy(t, prepare(t, rabbittest.Shared(t)), "--max-listeners", "2")
	v.work(t, "--pause", "0s")
	v.says(t, everySocket, atWork)

	first, second := v.listen(t, wire.FormatText), v.listen(t, wire.FormatText)
	v.says(t, everySocket, "trouble: 2 of 2 listeners are connected; more are answered 503")
	first.conn.Close()
	second.conn.Close()
	v.says(t, everySocket, atWork)

	v.api.Signal(t, syscall.SIGSTOP)
	v.says(t, everySocket, fmt.Sprintf("trouble: %s does not answer: nothing came within ", filepath.Join(v.dir, "api")))
	v.api.Signal(t, syscall.SIGCONT)
	v.says(t, everySocket, atWork)

	v.socket.Signal(t, syscall.SIGKILL)
	<-v.socket.Done()
	v.says(t, everySocket, fmt.Sprintf("trouble: %s does not answer: connection refused", filepath.Join(v.dir, "socket")))
	v.says(t, "socket", "cannot tell: ")

	// The only place is taken by a request that is being answered; a connection
	// without one would make room.
	crowded, dir := prepare(t, v.node), v.dir
	crowded.socket = crowded.startDaemon(t, "revq-socket", crowded.socketSockets, "--max-handshakes", "1", "--admin", filepath.Join(dir, "crowded"))
	crowded.socket.WaitReady(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+crowded.socketSite+"/results/nobody?wait=60s", nil)
		if err != nil {
			t.Error(err)
			return
		}
		if res, err := http.DefaultClient.Do(req); err == nil {
			res.Body.Close()
		}
	}()
	v.says(t, "crowded", "trouble: the site "+crowded.socketSite+" of revq-socket is down: it has no place for another connection")
}
