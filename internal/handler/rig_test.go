package handler

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
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
