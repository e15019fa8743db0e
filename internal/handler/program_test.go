package handler

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/revq/revq/internal/worker"
)

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
