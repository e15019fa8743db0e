package handler

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/worker"
)

// patience is how long something may take that is certain to happen.
const patience = 30 * time.Second

// The test binary is also the persistent program: its arguments are
// "program", what it is to do, and a directory.
func TestMain(m *testing.M) {
	if len(os.Args) > 3 && os.Args[1] == "program" {
		persistentProgram(os.Args[2], os.Args[3])
		return
	}
	// With the race detector, each program would sleep for a second at its end,
	// which is half of what it may take.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	os.Exit(m.Run())
}

// persistentProgram follows the protocol, except as kind says. A text that
// begins with "!" makes it do what follows.
func persistentProgram(kind, dir string) {
	pid := strconv.Itoa(os.Getpid())
	os.WriteFile(filepath.Join(dir, pid), nil, 0o600)
	note := func(what string) {
		f, err := os.OpenFile(filepath.Join(dir, "starts"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err == nil {
			io.WriteString(f, what)
			f.Close()
		}
	}
	note("+")
	in, out := bufio.NewReader(os.Stdin), bufio.NewWriter(os.Stdout)
	say := func(format string, args ...any) {
		fmt.Fprintf(out, format+"\n", args...)
		out.Flush()
	}
	switch kind {
	case "crashes at start":
		fmt.Fprintln(os.Stderr, "no configuration")
		os.Exit(3)
	case "asks for later at start":
		os.Exit(75)
	case "is silent":
		select {}
	case "speaks version 2":
		say(`{"revq":2}`)
	case "greets in words":
		say("Welcome to classify 1.0")
	case "loads much":
		time.Sleep(50 * time.Millisecond)
		note("-")
		say(`{"revq":1}`)
	default:
		say(`{"revq":1}`)
	}
	in.ReadString('\n')
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			break
		}
		var r request
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		id, _ := json.Marshal(r.ID)
		what, do := strings.CutPrefix(r.Text, "!")
		switch {
		case !do:
			text, _ := json.Marshal(strings.ToUpper(r.Text))
			say(`{"id":%s,"text":%s}`, id, text)
		case what == "pid":
			say(`{"id":%s,"text":%q}`, id, pid)
		case what == "exit":
			fmt.Fprintln(os.Stderr, "cannot go on")
			os.Exit(7)
		case what == "kill":
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
		case what == "hang":
			select {}
		case what == "fork":
			cmd := exec.Command("sleep", "1000") // holds nothing of ours
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			cmd.Start()
			os.Exit(8)
		case what == "flood":
			for {
				out.WriteString("0123456789")
			}
		case what == "stray after":
			say(`{"id":%s,"text":"x"}`+"\ndebug: done", id)
		case what == "close":
			os.Stdout.Close()
			select {}
		default:
			say("%s", strings.ReplaceAll(what, "ID", string(id)))
		}
	}
	if kind == "ignores its end" {
		select {}
	}
}

// A rig has a handler whose processes must all be gone at the end.
type rig struct {
	t   *testing.T
	dir string // has a file for each process, named by its id
	h   Handler
	log *record
}

func newRig(t *testing.T, cfg Config) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), log: &record{}}
	for i, arg := range cfg.Program {
		cfg.Program[i] = strings.ReplaceAll(arg, "DIR", r.dir)
	}
	r.h = New(cfg, slog.New(slog.NewTextHandler(r.log, nil)))
	t.Cleanup(func() {
		r.h.Close()
		r.checkGone()
		if t.Failed() {
			t.Log("the log:\n" + r.log.String())
		}
	})
	return r
}

// checkGone fails the test if there is a process in a group that one of the
// programs leads or led.
func (r *rig) checkGone() {
	r.t.Helper()
	for _, pid := range r.pids() {
		// What was killed is gone once its new parent has reaped it.
		gone := func() bool { return errors.Is(syscall.Kill(-pid, 0), syscall.ESRCH) || zombies(pid) }
		await(r.t, fmt.Sprintf("the process group %d is gone", pid), gone)
		if !gone() {
			syscall.Kill(-pid, syscall.SIGKILL)
		}
	}
}

// zombies reports whether all that is left of a process group has ended and
// waits for a parent that does not look, as PID 1 of many containers.
func zombies(group int) bool {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) > 2 && fields[2] == strconv.Itoa(group) && fields[0] != "Z" {
			return false
		}
	}
	return len(stats) > 0
}

func (r *rig) pids() []int {
	r.t.Helper()
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// handle has text handled, with a time limit.
func (r *rig) handle(text string) (string, error) {
	r.t.Helper()
	return r.handleIn(r.t.Context(), text)
}

func (r *rig) handleIn(ctx context.Context, text string) (got string, err error) {
	r.t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		got, err = r.h.Handle(ctx, task.Task{ID: "task-1", Text: text, Failed: 1, Last: true})
	}()
	select {
	case <-done:
		return got, err
	case <-time.After(patience):
		r.t.Fatalf("no answer within %v", patience)
		panic("not reached")
	}
}

// expect has text handled and compares what came of it.
func (r *rig) expect(text string, outcome worker.Outcome, says string) {
	r.t.Helper()
	got, err := r.handle(text)
	if outcome == worker.Done {
		if err != nil || got != says {
			r.t.Errorf("%.40q: %q, %v, want %q", text, got, err, says)
		}
		return
	}
	var e *worker.Error
	if !errors.As(err, &e) || e.Outcome != outcome || !strings.Contains(e.Error()+e.Said, says) {
		r.t.Errorf("%.40q: %q, %+v, want the outcome %d and %q", text, got, err, outcome, says)
	}
}

// await polls until ok. It is for what gives no signal.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-ticker.C {
		if time.Now().After(deadline) {
			t.Errorf("not within %v: %s", patience, what)
			return
		}
	}
}

// script is a filter in sh, which first notes its process id.
func script(text string) []string {
	return []string{"/bin/sh", "-c", `: > "$0/$$"; ` + text, "DIR"}
}

func program(t *testing.T, kind string) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{self, "program", kind, "DIR"}
}

func quick() Config {
	cfg := DefaultConfig()
	cfg.Timeout = patience
	return cfg
}

type record struct {
	mu   sync.Mutex
	text strings.Builder
}

func (r *record) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(b)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

func (r *record) count(text string) int { return strings.Count(r.String(), text) }

func textLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

func TestFilter(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("0123456789abcdef", 64<<10)[:1<<20]
	for _, tt := range []struct {
		name    string
		program []string
		text    string
		timeout time.Duration // patience unless set
		want    worker.Outcome
		says    string
	}{
		{"result", script(`tr a-z A-Z`), "abc", 0, worker.Done, "ABC"},
		{"byte for byte", script(`cat`), " a\n\n", 0, worker.Done, " a\n\n"},
		{"more than the pipes hold, both ways", script(`cat`), long, 0, worker.Done, long},
		{"arguments as they are", append(script(`cat >/dev/null; printf '%s|' "$@"`), "a b", "$HOME", "", "*"), "x", 0, worker.Done, "a b|$HOME||*|"},
		{"ignores its input", script(`echo hello`), long, 0, worker.Done, "hello\n"},
		{"closes its input", script(`exec <&-; echo hello`), long, 0, worker.Done, "hello\n"},
		{"fails", script(`echo why >&2; exit 1`), "x", 0, worker.Failed, "why"},
		{"later", script(`exit 75`), "x", 0, worker.Later, "exit status 75"},
		{"later, as qmail says it", script(`exit 111`), "x", 0, worker.Later, "exit status 111"},
		{"never", script(`echo 'no picture' >&2; exit 65`), "x", 0, worker.Never, "no picture"},
		{"never, as qmail says it", script(`exit 100`), "x", 0, worker.Never, "exit status 100"},
		{"a part of it is missing", script(`no-such-program`), "x", 0, worker.Misconfigured, "exit status 127"},
		{"missing", []string{"/no/such/program"}, "x", 0, worker.Misconfigured, "no such file"},
		{"not in the path", []string{"revq-no-such-program"}, "x", 0, worker.Misconfigured, "not found"},
		{"not executable", []string{"/etc/passwd"}, "x", 0, worker.Misconfigured, "permission denied"},
		{"a directory", []string{"/etc"}, "x", 0, worker.Misconfigured, ""},
		{"writes nothing", script(`cat >/dev/null`), "x", 0, worker.Failed, "empty"},
		{"writes 100 MiB", script(`head -c 104857600 /dev/zero`), "x", 0, worker.Failed, "--max-output"},
		{"writes for ever", script(`yes`), "x", 0, worker.Failed, "--max-output"},
		{"writes no UTF-8", script(`printf '\377'`), "x", 0, worker.Failed, "UTF-8"},
		{"kills itself", script(`kill -KILL $$`), "x", 0, worker.Failed, "signal 9"},
		{"crashes", script(`kill -SEGV $$`), "x", 0, worker.Failed, "signal 11"},
		{"hangs", script(`sleep 1000`), "x", 100 * time.Millisecond, worker.Failed, "time-out of 100ms"},
		{"ignores signals and hangs", script(`trap '' TERM INT HUP; while :; do sleep 1000; done`), "x", 100 * time.Millisecond, worker.Failed, "time-out"},
		{"forks, and hangs", script(`sleep 1000 & sleep 1000 & wait`), "x", 100 * time.Millisecond, worker.Failed, "time-out"},
		{"leaves a grandchild that holds the pipes", script(`sleep 1000 & echo hello`), "x", 0, worker.Done, "hello\n"},
		{"leaves one, and fails", script(`sleep 1000 & exit 65`), "x", 0, worker.Never, "65"},
		{"leaves one that has a session of its own", script(`setsid sh -c ': > "$0/$$"; exec sleep 5' "$0" & echo hello`), "x", 0, worker.Done, "hello\n"},
		{"says much", script(`yes why | head -c 1000000 >&2; exit 1`), "x", 0, worker.Failed, "why"},
		{"environment", []string{"/usr/bin/env"}, "x", 0, worker.Done, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := quick()
			cfg.Program = tt.program
			if tt.timeout > 0 {
				cfg.Timeout = tt.timeout
			}
			r := newRig(t, cfg)
			if tt.name == "environment" {
				r.checkEnvironment()
				return
			}
			r.expect(tt.text, tt.want, tt.says)
			r.expect(tt.text, tt.want, tt.says) // the only slot is free again
			if f := r.h.(*filter); len(f.slots) > 0 {
				t.Error("a slot is still taken")
			}
		})
	}
}

func (r *rig) checkEnvironment() {
	r.t.Helper()
	got, err := r.handle("x")
	if err != nil {
		r.t.Fatal(err)
	}
	names := map[string]string{}
	for line := range strings.Lines(got) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		names[name] = value
	}
	for name, want := range map[string]string{"REVQ_TASK_ID": "task-1", "REVQ_QUEUE": "reverse_text", "REVQ_ATTEMPT": "2", "REVQ_LAST_ATTEMPT": "1"} {
		if names[name] != want {
			r.t.Errorf("%s is %q, want %q", name, names[name], want)
		}
	}
	deadline, err := strconv.ParseInt(names["REVQ_DEADLINE"], 10, 64)
	if left := time.Until(time.Unix(deadline, 0)); err != nil || left > patience || left < 0 {
		r.t.Errorf("REVQ_DEADLINE is %q: %v from now", names["REVQ_DEADLINE"], left)
	}
	for _, name := range []string{"REVQ_TASK_ID", "REVQ_QUEUE", "REVQ_ATTEMPT", "REVQ_LAST_ATTEMPT", "REVQ_DEADLINE", "PATH", "LANG", "TZ"} {
		delete(names, name)
	}
	if len(names) > 0 {
		r.t.Errorf("programs also get %v", names)
	}
}

// What a worker that stops does to its handlers, at once.
func TestStop(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]Config{
		"filter":     {Program: script(`sleep 1000 & sleep 1000`)},
		"persistent": {Program: program(t, ""), Mode: persistentMode},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base := quick()
			base.Program, base.Mode = cfg.Program, cfg.Mode
			r := newRig(t, base)
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				defer cancel()
				await(t, "the program runs", func() bool { return len(r.pids()) > 0 })
			}()
			_, err := r.handleIn(ctx, "!hang")
			if err == nil || ctx.Err() == nil {
				t.Errorf("%v, want an error", err)
			}
			if _, err := r.handleIn(ctx, "x"); err == nil {
				t.Error("it took another task")
			}
		})
	}
}

// Others go on while some hang, and no more run at once than there are slots.
func TestSlots(t *testing.T) {
	t.Parallel()
	cfg := quick()
	cfg.Concurrency, cfg.Timeout = 4, 3*time.Second
	cfg.Program = script(`read -r t; [ "$t" != hang ] || sleep 1000; printf %s "$t"`)
	r := newRig(t, cfg)
	var running sync.WaitGroup
	for i := range 40 {
		running.Go(func() {
			if i%10 == 0 {
				r.expect("hang\n", worker.Failed, "time-out")
				return
			}
			r.expect("x\n", worker.Done, "x")
		})
	}
	running.Wait()
}

func TestPersistent(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("0123456789abcdef", 64<<10)[:1<<20]
	type exchange struct {
		text string
		want worker.Outcome
		says string
	}
	ok := exchange{"abc", worker.Done, "ABC"}
	for _, tt := range []struct {
		name      string
		kind      string
		timeout   time.Duration
		exchanges []exchange
		processes int
	}{
		{"one process for many tasks", "", 0, []exchange{ok, ok, {long, worker.Done, strings.ToUpper(long)}, {"\"\\\n\u2028<&>", worker.Done, "\"\\\n\u2028<&>"}, ok}, 1},
		{"progress", "", 0, []exchange{{"!" + `{"id":ID,"progress":{"done":1}}` + "\n" + `{"id":ID,"progress":null}` + "\n" + `{"id":ID,"text":"x"}`, worker.Done, "x"}, ok}, 1},
		{"members that we do not know", "", 0, []exchange{{`!{"id":ID,"text":"x","took":3}`, worker.Done, "x"}, ok}, 1},
		{"fails", "", 0, []exchange{{`!{"id":ID,"error":"no luck"}`, worker.Failed, "no luck"}, {`!{"id":ID,"error":"no luck","retry":"yes"}`, worker.Failed, "no luck"}, ok}, 1},
		{"never", "", 0, []exchange{{`!{"id":ID,"error":"no picture","retry":"no"}`, worker.Never, "no picture"}, ok}, 1},
		{"later", "", 0, []exchange{{`!{"id":ID,"error":"no database","retry":"later"}`, worker.Later, "no database"}, ok}, 1},
		{"empty result", "", 0, []exchange{{`!{"id":ID,"text":""}`, worker.Failed, "empty"}, ok}, 1},
		{"a stray line", "", 0, []exchange{{"!debug: begin", worker.Failed, `"debug: begin\n"`}, ok}, 2},
		{"a stray line after the answer", "", 0, []exchange{{"!stray after", worker.Done, "x"}, ok}, 2},
		{"an empty line", "", 0, []exchange{{"!", worker.Failed, "not a JSON object"}, ok}, 2},
		{"the wrong id", "", 0, []exchange{{`!{"id":"another","text":"x"}`, worker.Failed, `"another"`}, ok}, 2},
		{"no id", "", 0, []exchange{{`!{"text":"x"}`, worker.Failed, `"id"`}, ok}, 2},
		{"two things at once", "", 0, []exchange{{`!{"id":ID,"text":"x","error":"y"}`, worker.Failed, "one of"}, ok}, 2},
		{"an unknown retry", "", 0, []exchange{{`!{"id":ID,"error":"x","retry":"maybe"}`, worker.Failed, `"maybe"`}, ok}, 2},
		{"hello again", "", 0, []exchange{{`!{"revq":1}`, worker.Failed, "hello again"}, ok}, 2},
		{"exits", "", 0, []exchange{{"!exit", worker.Failed, "exit status 7"}, ok}, 2},
		{"exits, and what it said", "", 0, []exchange{{"!exit", worker.Failed, "cannot go on"}}, 1},
		{"killed in the middle", "", 0, []exchange{{"!kill", worker.Failed, "killed"}, ok}, 2},
		{"closes its output", "", 0, []exchange{{"!close", worker.Failed, "did not end by itself"}, ok}, 2},
		{"hangs", "", 10 * time.Second, []exchange{ok, {"!hang", worker.Failed, "time-out of 10s"}, ok}, 2}, // twice a program starts within that time
		{"forks", "", 0, []exchange{{"!fork", worker.Failed, ""}, ok}, 2},
		{"a line without an end", "", 0, []exchange{{"!flood", worker.Failed, "too long"}, ok}, 2},
		{"crashes at start", "crashes at start", 0, []exchange{{"x", worker.Misconfigured, "exit status 3"}, {"x", worker.Misconfigured, "no configuration"}}, 2},
		{"asks for later at start", "asks for later at start", 0, []exchange{{"x", worker.Later, "exit status 75"}}, 1},
		{"is silent", "is silent", 3 * time.Second, []exchange{{"x", worker.Misconfigured, "in time"}}, 1},
		{"speaks version 2", "speaks version 2", 0, []exchange{{"x", worker.Misconfigured, "version 2"}}, 1},
		{"greets in words", "greets in words", 0, []exchange{{"x", worker.Misconfigured, "Welcome"}}, 1},
		{"ignores its end", "ignores its end", 0, []exchange{ok}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := quick()
			cfg.Mode, cfg.Program = persistentMode, program(t, tt.kind)
			if tt.timeout > 0 {
				cfg.Timeout = tt.timeout
			}
			r := newRig(t, cfg)
			for _, e := range tt.exchanges {
				r.expect(e.text, e.want, e.says)
			}
			if n := len(r.pids()); n != tt.processes {
				t.Errorf("%d processes, want %d", n, tt.processes)
			}
			if n := len(r.h.(*pool).slots); n > 0 {
				t.Errorf("%d slots are still taken", n)
			}
		})
	}
}

// What a program says of its progress is passed on, in order.
func TestReports(t *testing.T) {
	t.Parallel()
	cfg := quick()
	cfg.Mode, cfg.Program = persistentMode, program(t, "")
	r := newRig(t, cfg)
	var said []string
	text := "!" + `{"id":ID,"progress":"half \u00e4"}` + "\n" + `{"id":ID,"progress":null}` + "\n" +
		`{"id":ID,"progress": { "percent" : 50 } }` + "\n" + `{"id":ID,"progress":75}` + "\n" + `{"id":ID,"text":"x"}`
	got, err := r.h.(*pool).HandleReporting(t.Context(), task.Task{ID: "task-1", Text: text}, func(progress string) { said = append(said, progress) })
	if want := []string{"half ä", "", `{"percent":50}`, "75"}; err != nil || got != "x" || !slices.Equal(said, want) {
		t.Errorf("%q, %v; it said %q, want %q", got, err, said, want)
	}
}

// A process that ended between tasks costs no attempt.
func TestPersistentEndsBetweenTasks(t *testing.T) {
	t.Parallel()
	cfg := quick()
	cfg.Mode, cfg.Program = persistentMode, program(t, "")
	r := newRig(t, cfg)
	first, err := r.handle("!pid")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	syscall.Kill(pid, syscall.SIGKILL)
	await(t, "the program has ended", r.h.(*pool).ended)
	if second, err := r.handle("!pid"); err != nil || second == first {
		t.Errorf("process %s after %s: %v", second, first, err)
	}
}

// ended reports whether an idle program has ended.
func (p *pool) ended() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.idle) > 0 && !p.idle[0].fresh()
}

func TestRecycle(t *testing.T) {
	t.Parallel()
	cfg := quick()
	cfg.Mode, cfg.Program, cfg.Recycle = persistentMode, program(t, ""), 3
	r := newRig(t, cfg)
	tasks := map[string]int{}
	for range 9 {
		pid, err := r.handle("!pid")
		if err != nil {
			t.Fatal(err)
		}
		tasks[pid]++
	}
	if len(tasks) != 3 {
		t.Errorf("tasks of each process: %v, want 3 with 3", tasks)
	}
	for pid, n := range tasks {
		if n != 3 {
			t.Errorf("process %s handled %d tasks, want 3", pid, n)
		}
	}
}

// serveSocket serves connections to a socket as units with Accept=yes do.
func serveSocket(t *testing.T, path string, serve func(net.Conn)) net.Listener {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return ln
}

func TestSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "socket")
	cfg := quick()
	cfg.Mode = socketPrefix + path
	r := newRig(t, cfg)
	r.expect("x", worker.Misconfigured, "connect to the handler")

	served := quick()
	served.Program = []string{"/bin/sh", "-c", `read -r t; case $t in kill) kill -KILL $$ ;; 65) exit 65 ;; esac; printf '%s %s %s' "$t" "$REVQ_TASK_ID" "$REVQ_ATTEMPT"`}
	connections := make(chan net.Conn, 10)
	ln := serveSocket(t, path, func(conn net.Conn) {
		connections <- conn
		Serve(t.Context(), served, conn, conn, slog.New(slog.DiscardHandler))
	})
	r.expect("a", worker.Done, "a task-1 2")
	r.expect("b", worker.Done, "b task-1 2")
	r.expect("kill", worker.Failed, "signal 9")
	r.expect("65", worker.Never, "exit status 65")
	r.expect("c", worker.Done, "c task-1 2")
	if len(connections) != 1 {
		t.Errorf("%d connections, want one for all tasks", len(connections))
	}

	// The service is started again.
	(<-connections).Close()
	await(t, "the program has ended", r.h.(*pool).ended)
	r.expect("d", worker.Done, "d task-1 2")
	ln.Close()
	(<-connections).Close()
	await(t, "the program has ended", r.h.(*pool).ended)
	r.expect("e", worker.Misconfigured, "connect to the handler")
	serveSocket(t, path, func(conn net.Conn) {
		Serve(t.Context(), served, conn, conn, slog.New(slog.DiscardHandler))
	})
	r.expect("f", worker.Done, "f task-1 2")
}

// The end of a connection kills the program that runs for it.
func TestServeEnds(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := quick()
	cfg.Program = []string{"/bin/sh", "-c", `: > "$0/$$"; echo begun >&2; sleep 1000`, dir}
	said := &record{}
	ours, theirs := net.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(t.Context(), cfg, theirs, theirs, slog.New(slog.NewTextHandler(said, nil)))
	}()
	in := bufio.NewReader(ours)
	if line, err := in.ReadString('\n'); err != nil || line != helloLine {
		t.Fatalf("%q, %v", line, err)
	}
	io.WriteString(ours, helloLine)
	ours.Write(encodeJob(job{id: "a", text: "x", deadline: time.Now().Add(patience)}))
	await(t, "the program runs", func() bool { return strings.Contains(said.String(), "begun") })
	ours.Close()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("it still runs")
	}
	(&rig{t: t, dir: dir}).checkGone()
}

// A burst of tasks starts no more programs at once than there are cores: those
// that run get the tasks that wait.
func TestBurst(t *testing.T) {
	t.Parallel()
	cfg := quick()
	cfg.Mode, cfg.Program, cfg.Concurrency = persistentMode, program(t, "loads much"), 32
	r := newRig(t, cfg)
	var tasks sync.WaitGroup
	for range cfg.Concurrency {
		tasks.Go(func() { r.expect("abc", worker.Done, "ABC") })
	}
	tasks.Wait()
	starts, err := os.ReadFile(filepath.Join(r.dir, "starts"))
	if err != nil {
		t.Fatal(err)
	}
	now, highest := 0, 0
	for _, what := range starts {
		now += map[byte]int{'+': 1, '-': -1}[what]
		highest = max(highest, now)
	}
	if cores := runtime.GOMAXPROCS(0); highest > cores || now != 0 {
		t.Errorf("%d programs started at once on %d cores: %s", highest, cores, starts)
	}
}

// A task that waits for a program ends with its context, and costs no other
// task its turn.
func TestWaitForAProgram(t *testing.T) {
	t.Parallel()
	cfg := quick()
	cfg.Mode, cfg.Program, cfg.Concurrency = persistentMode, program(t, "is silent"), 100
	r := newRig(t, cfg)
	p := r.h.(*pool)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var tasks sync.WaitGroup
	wait := func(ctx context.Context, what string, ok func() bool) {
		tasks.Go(func() {
			_, err := p.take(ctx, cfg.job(task.Task{ID: "task-1", Text: "x"}))
			if err == nil || err.Outcome != worker.Stopped {
				t.Errorf("%v, want that it was cut short", err)
			}
		})
		await(t, what, func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return ok()
		})
	}
	for n := range int64(cap(p.hot.places)) {
		wait(ctx, "a program starts", func() bool { return p.hot.starting.Load() == n+1 })
	}
	short, end := context.WithCancel(t.Context())
	wait(ctx, "a task waits", func() bool { return len(p.waiting) == 1 })
	wait(short, "two wait", func() bool { return len(p.waiting) == 2 })
	end()
	await(t, "one waits", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.waiting) == 1
	})
	cancel()
	tasks.Wait()
	if n := p.hot.starting.Load(); n != 0 || len(p.waiting) != 0 {
		t.Errorf("%d programs start and %d tasks wait, want none", n, len(p.waiting))
	}
}

// A line that does not follow the protocol ends the connection, and the error
// shows it.
func TestServeRefuses(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"GET / HTTP/1.1\n":                                       `"GET / HTTP/1.1\n"`,
		helloLine + "abcdef\n":                                   `"abcdef\n"`,
		helloLine + `{"id":"a b","text":"x"}`:                    "unexpected EOF",
		helloLine + `{"id":"","text":"x"}` + "\n":                "task id",
		helloLine + `{"id":"a","text":"x","deadline":-1}` + "\n": "deadline",
		helloLine: "",
		"":        "",
	} {
		cfg := quick()
		cfg.Program = []string{"/bin/cat"}
		err := Serve(t.Context(), cfg, strings.NewReader(in), io.Discard, slog.New(slog.DiscardHandler))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, mode string
		program    []string
		fails      string // the first thing that does
	}{
		{"persistent", persistentMode, program(t, ""), ""},
		{"persistent that ignores its end", persistentMode, program(t, "ignores its end"), "it ends when its input does"},
		{"persistent that crashes", persistentMode, program(t, "crashes at start"), "a short text"},
		{"a filter is not persistent", persistentMode, []string{"/bin/true"}, "a short text"},
		{"filter", filterMode, []string{"/bin/cat"}, ""},
		{"filter that is missing", filterMode, []string{"/no/such"}, "a short text"},
		{"filter that reads one line", filterMode, []string{"/usr/bin/head", "-c", "0"}, "a short text"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := quick()
			cfg.Mode, cfg.Program = tt.mode, tt.program
			dir := t.TempDir()
			for i, arg := range cfg.Program {
				cfg.Program[i] = strings.ReplaceAll(arg, "DIR", dir)
			}
			fails := ""
			err := Check(t.Context(), cfg, slog.New(slog.DiscardHandler), func(what string, wrong error) {
				if wrong != nil && fails == "" {
					fails = what
				}
			})
			if fails != tt.fails || (err == nil) != (tt.fails == "") {
				t.Errorf("%q failed, %v, want %q", fails, err, tt.fails)
			}
			(&rig{t: t, dir: dir}).checkGone()
		})
	}
}
