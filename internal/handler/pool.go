package handler

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/revq/revq/internal/proc"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/worker"
)

// neverEnded says how a process ended that had to be killed.
const neverEnded = "it did not end by itself"

// endGrace is how long a process may take to end once its input has ended.
const endGrace = 2 * time.Second

// A pool has conversations with programs, at most one for each slot. It begins
// them when they are needed.
type pool struct {
	cfg   Config
	open  func(ctx context.Context, j job) (*conversation, *worker.Error)
	slots slots

	hot    hot
	ending sync.WaitGroup
	mu     sync.Mutex
	idle   []*conversation // the one used last is at the end
}

func newPool(cfg Config, open func(context.Context, job) (*conversation, *worker.Error)) *pool {
	return &pool{cfg: cfg, open: open, slots: make(slots, cfg.Concurrency), hot: newHot(runtime.GOMAXPROCS(0))}
}

// Handle has a program handle t.
func (p *pool) Handle(ctx context.Context, t task.Task) (string, error) {
	return p.HandleReporting(ctx, t, func(string) {})
}

// HandleReporting is Handle, and passes on what the program says of its
// progress.
func (p *pool) HandleReporting(ctx context.Context, t task.Task, report func(progress string)) (string, error) {
	if err := p.slots.take(ctx); err != nil {
		return "", err
	}
	release := p.slots.release
	defer func() { release() }()
	defer p.hot.leave(p.hot.enter(ctx))
	j := p.cfg.job(t)
	c, err := p.take(ctx, j)
	if err != nil {
		return "", err
	}
	began := time.Now()
	text, err, goesOn := c.ask(ctx, j, &p.cfg, report)
	p.hot.took(time.Since(began))
	switch {
	case !goesOn:
		c.end(0)
		if c.voice != nil {
			err = saying(err, c.voice.end())
		}
	case p.cfg.Recycle > 0 && c.handled >= p.cfg.Recycle:
		// The result does not wait for the end of the process, but the slot
		// does, so that there are no more processes than slots.
		release = func() {}
		p.ending.Go(func() {
			c.end(endGrace)
			p.slots.release()
		})
	default:
		p.mu.Lock()
		p.idle = append(p.idle, c)
		p.mu.Unlock()
	}
	if err != nil {
		return "", err
	}
	return text, nil
}

// take returns an idle conversation, or begins one.
func (p *pool) take(ctx context.Context, j job) (*conversation, *worker.Error) {
	for {
		p.mu.Lock()
		n := len(p.idle)
		if n == 0 {
			p.mu.Unlock()
			break
		}
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		if c.fresh() {
			return c, nil
		}
		c.end(0) // it ended, or wrote something without a task
	}
	c, err := p.open(ctx, j)
	if err != nil {
		return nil, err
	}
	if err := c.hello(ctx, earlier(j.deadline, time.Now().Add(helloTimeout))); err != nil {
		c.end(0)
		if c.voice != nil {
			err = saying(err, c.voice.end())
		}
		return nil, err
	}
	return c, nil
}

// Close ends all processes.
func (p *pool) Close() {
	p.mu.Lock()
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, c := range idle {
		p.ending.Go(func() { c.end(endGrace) })
	}
	p.ending.Wait()
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// readable reports whether data or the end can be read from fd.
func readable(fd uintptr) bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if !errors.Is(err, unix.EINTR) {
			return n > 0 || err != nil
		}
	}
}

// pipes are the standard input and output of a process.
type pipes struct{ w, r *os.File }

func (p pipes) Read(b []byte) (int, error)            { return p.r.Read(b) }
func (p pipes) Write(b []byte) (int, error)           { return p.w.Write(b) }
func (p pipes) SyscallConn() (syscall.RawConn, error) { return p.r.SyscallConn() }
func (p pipes) SetDeadline(t time.Time) error {
	return errors.Join(p.w.SetDeadline(t), p.r.SetDeadline(t))
}
func (p pipes) Close() error { return errors.Join(p.w.Close(), p.r.Close()) }

// processOpener returns a function that starts the program, with pipes to it.
func processOpener(cfg Config, log *slog.Logger) func(context.Context, job) (*conversation, *worker.Error) {
	program, said := cfg.program(), newStderr(log)
	env := append(environment(), "REVQ_QUEUE="+cfg.Queue)
	return func(_ context.Context, j job) (*conversation, *worker.Error) {
		cmd := exec.Command(program[0], program[1:]...)
		v := &voice{to: said, id: j.id}
		cmd.Env, cmd.Stderr = env, v
		ours, process, err := startWithPipes(cmd)
		if err != nil {
			return nil, decide(ending{start: err}, limits{})
		}
		c := newConversation(ours, &cfg)
		c.voice = v
		c.end = func(grace time.Duration) string {
			defer ours.r.Close()
			ours.w.Close()
			timer := time.NewTimer(grace)
			defer timer.Stop()
			select {
			case <-process.Done():
				return process.State().String()
			case <-timer.C:
			}
			process.Kill()
			<-process.Done()
			return neverEnded
		}
		return c, nil
	}
}

// startWithPipes starts cmd with pipes for its standard input and output, and
// returns our ends.
func startWithPipes(cmd *exec.Cmd) (ours pipes, p *proc.Process, err error) {
	theirs := pipes{}
	if theirs.r, ours.w, err = os.Pipe(); err != nil {
		return pipes{}, nil, err
	}
	defer theirs.r.Close()
	if ours.r, theirs.w, err = os.Pipe(); err != nil {
		ours.w.Close()
		return pipes{}, nil, err
	}
	defer theirs.w.Close()
	cmd.Stdin, cmd.Stdout = theirs.r, theirs.w
	if p, err = proc.Start(cmd); err != nil {
		ours.Close()
		return pipes{}, nil, err
	}
	return ours, p, nil
}

// socketOpener returns a function that connects to the socket at path.
func socketOpener(path string, cfg Config) func(context.Context, job) (*conversation, *worker.Error) {
	return func(ctx context.Context, j job) (*conversation, *worker.Error) {
		d := net.Dialer{Deadline: earlier(j.deadline, time.Now().Add(helloTimeout))}
		conn, err := d.DialContext(ctx, "unix", path)
		switch {
		case err != nil && ctx.Err() != nil:
			return nil, verdict(worker.Stopped, "the attempt was cut short")
		case err != nil:
			return nil, verdict(worker.Misconfigured, "connect to the handler: %w", err)
		}
		c := newConversation(conn.(*net.UnixConn), &cfg)
		c.end = func(time.Duration) string {
			conn.Close()
			return "the other end of " + path + " is closed"
		}
		return c, nil
	}
}
