package handler

import (
	"context"
	"os"
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
