package handler

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
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

	// waiting are tasks that wait since as many programs as there are cores
	// start. They get a conversation that has become free, or nil when they
	// may start a program. If every task that finds no program started one, a
	// burst of tasks would keep the cores busy with that, while two programs
	// could have handled them all.
	waiting []chan *conversation
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
		p.give(c)
	}
	if err != nil {
		return "", err
	}
	return text, nil
}

// take returns an idle conversation, or begins one.
func (p *pool) take(ctx context.Context, j job) (*conversation, *worker.Error) {
	for {
		c, err := p.turn(ctx, j.deadline)
		switch {
		case err != nil:
			return nil, err
		case c == nil:
			defer p.started()
			return p.begin(ctx, j)
		case c.fresh():
			return c, nil
		}
		c.end(0) // it ended, or wrote something without a task
	}
}

// turn returns an idle conversation, or nil if the caller may begin one; then
// it must call started. turn waits for either until the deadline.
func (p *pool) turn(ctx context.Context, deadline time.Time) (*conversation, *worker.Error) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		defer p.mu.Unlock()
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		return c, nil
	}
	if int(p.hot.starting.Load()) < cap(p.hot.places) {
		defer p.mu.Unlock()
		p.hot.starting.Add(1)
		return nil, nil
	}
	mine := make(chan *conversation, 1)
	p.waiting = append(p.waiting, mine)
	p.mu.Unlock()

	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	var err *worker.Error
	select {
	case c := <-mine:
		return c, nil
	case <-ctx.Done():
		err = verdict(worker.Stopped, "the attempt was cut short")
	case <-timer.C:
		err = verdict(worker.Later, "no program was free, and none could be started in time")
	}
	p.mu.Lock()
	i := slices.Index(p.waiting, mine)
	if i >= 0 {
		p.waiting = slices.Delete(p.waiting, i, i+1)
	}
	p.mu.Unlock()
	if i < 0 { // it has come meanwhile
		if c := <-mine; c != nil {
			p.give(c)
		} else {
			p.started()
		}
	}
	return nil, err
}

// give passes an idle conversation to a task that waits for one, or keeps it.
func (p *pool) give(c *conversation) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.pass(c) {
		p.idle = append(p.idle, c)
	}
}

// started has the next task start a program.
func (p *pool) started() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.pass(nil) {
		p.hot.starting.Add(-1)
	}
}

func (p *pool) pass(c *conversation) bool {
	if len(p.waiting) == 0 {
		return false
	}
	p.waiting[0] <- c
	p.waiting = slices.Delete(p.waiting, 0, 1)
	return true
}

// begin starts a program, or connects to one, and waits for its hello.
func (p *pool) begin(ctx context.Context, j job) (*conversation, *worker.Error) {
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
