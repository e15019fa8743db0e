// Package handler has programs handle tasks: one process for each task (a
// filter), processes that handle one task after the other (persistent), or
// programs in units of their own, over a Unix socket. README.md describes the
// exit statuses and the protocol for authors of such programs.
//
// outcome.go and protocol.go only decide what the end of a process or a line
// means. The other files run processes and move bytes.
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

	// Exec is a program without arguments, such as from the environment.
	Exec string

	// Mode is filter, persistent, or unix: followed by the path of a socket.
	// Default filter.
	Mode string

	// Timeout is how long an attempt may take. After that it has failed, and
	// its process group is killed. Default 5 min, much less than the half hour
	// after which RabbitMQ takes a task back.
	Timeout time.Duration

	// MaxOutput is the maximum length of a result in bytes. Default 1 MiB:
	// listeners get a result as one message, and each process holds several of
	// them in memory at once.
	MaxOutput int

	// Recycle is how many tasks a persistent process handles before another
	// one replaces it. Default 0: any number.
	Recycle int

	// Queue is the name of the queue that programs are told. Default
	// reverse_text.
	Queue string

	// Concurrency is how many tasks are handled at once.
	Concurrency int
}

// The modes. The path of a socket follows the prefix.
const (
	filterMode     = "filter"
	persistentMode = "persistent"
	socketPrefix   = "unix:"

	modePattern = filterMode + "|" + persistentMode + "|" + socketPrefix + ".+"
)

// DefaultConfig returns the default configuration.
func DefaultConfig() Config {
	return Config{Mode: filterMode, Timeout: 5 * time.Minute, MaxOutput: 1 << 20, Queue: "reverse_text", Concurrency: 1}
}

// Settings declares the settings of c, which holds the defaults.
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

// Missing returns an error if the program does not exist or is not executable.
// It may appear later.
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

	// Close ends all processes and returns when they are gone. It is called
	// when no task is being handled any more.
	Close()
}

// New returns the Handler for cfg. It logs what programs write to their
// standard error.
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

// A job is what programs are told about a task.
type job struct {
	id, queue, text string
	attempt         int64
	last            bool
	deadline        time.Time
	trace           string
}

func (c *Config) job(t task.Task) job {
	return job{id: t.ID, queue: c.Queue, text: t.Text, attempt: t.Attempt(), last: t.Last, deadline: time.Now().Add(c.Timeout), trace: t.Trace}
}

// slots bound how many tasks run at once. A worker handles no more than that,
// except when tasks of a session that has just ended are still running.
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
