package handler

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/revq/revq/internal/proc"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/worker"
)

// A filter starts a process for each task: the text is its standard input, and
// its standard output is the result.
type filter struct {
	cfg     Config
	program []string
	env     []string
	stderr  *stderr
	slots   slots
}

func newFilter(cfg Config, log *slog.Logger) *filter {
	return &filter{cfg: cfg, program: cfg.program(), env: environment(), stderr: newStderr(log), slots: make(slots, cfg.Concurrency)}
}

// environment returns the variables of ours that programs get. The others may
// hold secrets.
func environment() []string {
	var env []string
	for _, name := range []string{"PATH", "LANG", "TZ"} {
		if value, set := os.LookupEnv(name); set {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// unitEnvironment returns the variables of the unit that a program has to
// itself, except those with which the service manager speaks to its main
// process: a program that uses them would speak for revq.
func unitEnvironment() []string {
	return slices.DeleteFunc(os.Environ(), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return name == "NOTIFY_SOCKET" || strings.HasPrefix(name, "WATCHDOG_") || strings.HasPrefix(name, "LISTEN_")
	})
}

// Handle runs the program for t.
func (f *filter) Handle(ctx context.Context, t task.Task) (string, error) {
	if err := f.slots.take(ctx); err != nil {
		return "", err
	}
	defer f.slots.release()
	text, err := f.run(ctx, f.cfg.job(t))
	if err != nil {
		return "", err
	}
	return text, nil
}

// Close has nothing to do: processes end with their tasks.
func (f *filter) Close() {}

// run runs the program for j, and returns when no process of its group is left.
func (f *filter) run(ctx context.Context, j job) (string, *worker.Error) {
	cmd := exec.Command(f.program[0], f.program[1:]...)
	cmd.Env = append(slices.Clip(f.env),
		"REVQ_TASK_ID="+j.id,
		"REVQ_QUEUE="+j.queue,
		"REVQ_ATTEMPT="+strconv.FormatInt(j.attempt, 10),
		"REVQ_LAST_ATTEMPT="+oneIf(j.last),
		"REVQ_DEADLINE="+strconv.FormatInt(j.deadline.Unix(), 10),
	)
	if j.trace != "" {
		cmd.Env = append(cmd.Env, "TRACEPARENT="+j.trace)
	}
	out, said := &output{maxBytes: f.cfg.MaxOutput, full: make(chan struct{})}, &voice{to: f.stderr, id: j.id}
	// All three are copied at the same time: a program may write before it has
	// read its input, or never read it.
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(j.text), out, said

	timeout := max(0, time.Until(j.deadline)) // the other side of a socket may give any
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	e := ending{}
	p, err := proc.Start(cmd)
	if err != nil {
		e.start = err
	} else {
		e.cut = f.await(ctx, p, timer.C, out.full)
		e.status, e.signal = status(p.State())
		e.output = out.text.String()
	}
	if wrong := decide(e, limits{timeout.Round(10 * time.Millisecond), f.cfg.MaxOutput}); wrong != nil {
		return "", saying(wrong, said.end())
	}
	said.end()
	return e.output, nil
}

// await waits for the end of p. It kills p and its whole group when the time is
// over, the output is too large, or ctx ends, and returns the first such
// reason.
func (f *filter) await(ctx context.Context, p *proc.Process, timeout <-chan time.Time, full <-chan struct{}) cut {
	done, reason := ctx.Done(), notCut
	for {
		why := notCut
		select {
		case <-p.Done():
			return reason
		case <-timeout:
			why = tooLong
		case <-full:
			why, full = tooLarge, nil
		case <-done:
			why, done = stopped, nil
		}
		if reason == notCut {
			reason = why
		}
		p.Kill()
	}
}

// status returns how a process ended: with an exit status or by a signal.
func status(s *os.ProcessState) (int, syscall.Signal) {
	if ws, ok := s.Sys().(syscall.WaitStatus); ok && ws.Signal() > 0 { // -1: it exited
		return 0, ws.Signal()
	}
	return s.ExitCode(), 0
}

func oneIf(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// An output keeps what a process writes, up to a limit.
type output struct {
	maxBytes int
	text     strings.Builder
	full     chan struct{} // is closed when the limit is exceeded
	over     bool
}

func (o *output) Write(b []byte) (int, error) {
	switch {
	case o.over: // the process is being killed
	case o.text.Len()+len(b) > o.maxBytes:
		o.over = true
		close(o.full)
	default:
		o.text.Write(b)
	}
	return len(b), nil
}

// ReadFrom lets os/exec copy without a new buffer for each process.
func (o *output) ReadFrom(r io.Reader) (int64, error) { return copyAll(o, r) }

var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

func copyAll(w io.Writer, r io.Reader) (n int64, err error) {
	buffer := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buffer)
	for {
		read, err := r.Read(buffer[:])
		n += int64(read)
		w.Write(buffer[:read]) // takes everything
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}
