// Package handler has programs handle tasks: one process for each task (a
// filter), processes that handle one task after the other (persistent), or
// programs in units of their own, over a Unix socket. README.md describes the
// exit statuses and the protocol for those who write such programs.
//
// outcome.go and protocol.go decide what an ending or a line means, and do
// nothing else. The other files run processes and move bytes.
package handler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"strings"
	"time"

	"github.com/revq/revq/internal/setting"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/worker"
)

// Config says which program handles tasks, and how. DefaultConfig gives one
// without a program.
type Config struct {
	// Program is the program and its arguments. No shell is involved.
	Program []string

	// Exec is the program where there are no arguments, as from the environment.
	Exec string

	// Mode is filter, persistent, or unix: and the path of a socket. Default
	// filter.
	Mode string

	// Timeout is how long an attempt may take until it has failed and its
	// process group is killed. Default 5 min, far from the half hour after
	// which RabbitMQ takes a task back.
	Timeout time.Duration

	// MaxOutput is the longest result in bytes. Default 1 MiB: listeners get
	// it as one message, and several are in memory at once in each process.
	MaxOutput int

	// Recycle is how many tasks a persistent process handles until another one
	// takes its place. Default 0: any number.
	Recycle int

	// Queue is the name of the queue, which programs are told. Default
	// reverse_text.
	Queue string

	// Concurrency is how many tasks are handled at once.
	Concurrency int
}

// The modes. What follows a socket's prefix is its path.
const (
	filterMode     = "filter"
	persistentMode = "persistent"
	socketPrefix   = "unix:"

	modePattern = filterMode + "|" + persistentMode + "|" + socketPrefix + ".+"
)

// DefaultConfig returns the configuration used unless something else is given.
func DefaultConfig() Config {
	return Config{Mode: filterMode, Timeout: 5 * time.Minute, MaxOutput: 1 << 20, Queue: "reverse_text", Concurrency: 1}
}

// Settings declares what an operator can set of c, which holds the defaults.
func (c *Config) Settings() []setting.Setting {
	mode := setting.String("handler", "`MODE` of the program: filter (a process for each task), persistent (a process for many), or unix:PATH (a program in a unit of its own)", &c.Mode, checkMode)
	mode.Pattern = modePattern
	return setting.In("handler",
		setting.String("exec", "`PROGRAM` that handles tasks, if none follows --; without any, texts are reversed", &c.Exec, nil),
		mode,
		setting.Time("task-timeout", "`TIME` that a program may take for a task; beyond it the attempt has failed and its processes are killed", &c.Timeout, 100*time.Millisecond, 0),
		setting.Count("max-output", "bytes", "longest result of a program in `BYTES`; beyond it the attempt has failed", &c.MaxOutput, 1, task.MaxText).
			With("Socket servers leave out results longer than a sixth of their --keep-bytes."),
		setting.Count("recycle", "tasks", "`TASKS` that a persistent process handles until a new one takes its place; 0 for any number", &c.Recycle, 0, 0),
	)
}

func checkMode(mode string) error {
	if mode == filterMode || mode == persistentMode || strings.HasPrefix(mode, socketPrefix) && mode != socketPrefix {
		return nil
	}
	return fmt.Errorf("there is no handler %q: use filter, persistent or unix:PATH", mode)
}

// Enabled reports whether there is a program or socket at all.
func (c *Config) Enabled() bool {
	return len(c.Program) > 0 || c.Exec != "" || strings.HasPrefix(c.Mode, socketPrefix)
}

// Check returns what is wrong with c.
func (c *Config) Check() error {
	_, socket := strings.CutPrefix(c.Mode, socketPrefix)
	switch {
	case len(c.Program) > 0 && c.Program[0] == "":
		return errors.New("the program's name is empty: write -- PROGRAM ARG …")
	case len(c.Program) > 0 && c.Exec != "":
		return fmt.Errorf("two programs are given, %q after -- and %q with --exec: leave one out", c.Program[0], c.Exec)
	case socket && (len(c.Program) > 0 || c.Exec != ""):
		return fmt.Errorf("--handler %s needs no program, since another unit runs it: leave the program out", c.Mode)
	case c.Mode == persistentMode && !c.Enabled():
		return errors.New("--handler persistent needs a program: write -- PROGRAM ARG …, or set --exec")
	}
	return nil
}

// program returns the program and its arguments.
func (c *Config) program() []string {
	if len(c.Program) == 0 && c.Exec != "" {
		return []string{c.Exec}
	}
	return c.Program
}

// Longest returns the longest time that handling one task can take.
func (c *Config) Longest() time.Duration { return c.Timeout }

// Missing returns why the program cannot be started at present, as far as that
// can be seen from outside. It may be there later.
func (c *Config) Missing() error {
	if program := c.program(); len(program) > 0 {
		_, err := exec.LookPath(program[0])
		return err
	}
	return nil
}

// A Handler handles tasks with a program.
type Handler interface {
	worker.Handler

	// Close ends all processes and returns when they are gone. No task is
	// being handled any more.
	Close()
}

// New returns the Handler that cfg asks for. What programs write to their
// standard error goes to log.
func New(cfg Config, log *slog.Logger) Handler {
	switch path, socket := strings.CutPrefix(cfg.Mode, socketPrefix); {
	case socket:
		return newPool(cfg, socketOpener(path, cfg))
	case cfg.Mode == persistentMode:
		return newPool(cfg, processOpener(cfg, log))
	default:
		return newFilter(cfg, log)
	}
}

// A job is a task as programs are told of it.
type job struct {
	id, queue, text string
	attempt         int64
	last            bool
	deadline        time.Time
}

func (c *Config) job(t task.Task) job {
	return job{id: t.ID, queue: c.Queue, text: t.Text, attempt: t.Attempt, last: t.Last, deadline: time.Now().Add(c.Timeout)}
}

// slots bound what runs at once. A worker keeps to the same number, but for
// tasks of a session that has just ended.
type slots chan struct{}

func (s slots) take(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s slots) release() { <-s }
