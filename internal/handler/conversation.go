package handler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/worker"
)

const (
	// helloTimeout is how long a program may take to say hello. A program that
	// has much to load says hello first.
	helloTimeout = 10 * time.Second

	// directWrite is the maximum length of a line that an empty pipe or socket
	// is sure to take at once. Longer ones are written while the answer is
	// read.
	directWrite = 4 << 10
)

// statusDelay is how long to wait for the exit status of a process whose output
// has ended. Then the process is killed.
const statusDelay = 200 * time.Millisecond

// A stream is a connection with a program: pipes to a process, or a socket.
type stream interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
	SyscallConn() (syscall.RawConn, error) // of the side that is read
}

// A conversation is with a program that handles one task after the other. One
// goroutine at a time uses it. It ends at the first error.
type conversation struct {
	stream  stream
	in      *lines
	handled int

	// voice is the program's standard error; nil if it goes elsewhere.
	voice *voice

	// end ends the conversation and returns how the other side ended, such as
	// its exit status. A process may end by itself within the grace; then it
	// is killed.
	end func(grace time.Duration) string
}

func newConversation(s stream, cfg *Config) *conversation {
	return &conversation{stream: s, in: newLines(s, maxLineFor(cfg.MaxOutput))}
}

var past = time.Unix(1, 0)

// during calls do, which must finish before the deadline. The end of ctx cuts
// it short, too. during returns false if the conversation must not continue.
func (c *conversation) during(ctx context.Context, deadline time.Time, do func() *worker.Error) (*worker.Error, bool) {
	c.stream.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { c.stream.SetDeadline(past) })
	err := do()
	if !stop() {
		// The function above may still set the deadline later, in the middle
		// of the next exchange.
		if err != nil {
			err = verdict(worker.Stopped, "the attempt was cut short")
		}
		return err, false
	}
	return err, true
}

// hello sends our hello to the program, and waits for the program's.
func (c *conversation) hello(ctx context.Context, deadline time.Time) *worker.Error {
	err, goesOn := c.during(ctx, deadline, func() *worker.Error {
		if err := c.send([]byte(helloLine)); err != nil {
			return c.broken(worker.Misconfigured, "say hello to the program", err)
		}
		line, err := c.in.next()
		if err != nil {
			return c.broken(worker.Misconfigured, "wait for the program's hello", err)
		}
		r, err := parseReply(line)
		if err == nil && r.kind != isHello {
			err = fmt.Errorf("it is not %.10s", helloLine)
		}
		if err != nil {
			return verdict(worker.Misconfigured, "the program's first line is %.80q: %w", line, err)
		}
		return nil
	})
	if err == nil && !goesOn {
		err = verdict(worker.Stopped, "the attempt was cut short")
	}
	return err
}

// fresh reports whether the program still runs and has written nothing, as it
// should between tasks.
func (c *conversation) fresh() bool {
	if c.in.r.Buffered() > 0 {
		return false
	}
	raw, err := c.stream.SyscallConn()
	if err != nil {
		return false
	}
	silent := false
	err = raw.Control(func(fd uintptr) { silent = !readable(fd) })
	return err == nil && silent
}

// ask has the program handle j. It calls report with each progress. It returns false if the conversation is over.
func (c *conversation) ask(ctx context.Context, j job, cfg *Config, report func(progress string)) (text string, err *worker.Error, goesOn bool) {
	if c.voice != nil {
		c.voice.begin(j.id)
	}
	c.handled++
	keeps := true // the program follows the protocol
	err, goesOn = c.during(ctx, j.deadline, func() *worker.Error {
		var wrong *worker.Error
		text, wrong, keeps = c.exchange(j, cfg, report)
		return wrong
	})
	return text, err, goesOn && keeps
}

func (c *conversation) exchange(j job, cfg *Config, report func(progress string)) (text string, err *worker.Error, keeps bool) {
	if err := c.send(encodeJob(j)); err != nil {
		return "", c.broken(worker.Failed, "hand the task to the program", err), false
	}
	for {
		line, err := c.in.next()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return "", verdict(worker.Failed, "it took longer than the task time-out of %v", cfg.Timeout), false
		}
		if err != nil {
			return "", c.broken(worker.Failed, "wait for the program's answer", err), false
		}
		r, err := parseReply(line)
		switch {
		case err != nil:
			return "", verdict(worker.Failed, "the program answered %.80q: %w", line, err), false
		case r.kind == isHello:
			return "", verdict(worker.Failed, "the program said hello again"), false
		case r.id != j.id:
			return "", verdict(worker.Failed, "the program answered for the task %.80q", r.id), false
		case r.kind == isProgress:
			report(r.text)
			continue
		case r.kind == isError:
			said := r.text
			if len(said) > maxSaid {
				said = said[:maxSaid]
			}
			return "", verdict(r.retry, "the handler says: %s", said), true
		}
		if err := task.CheckText(r.text, cfg.MaxOutput); err != nil {
			return "", verdict(worker.Failed, "its answer is no result: %w", err), true
		}
		return r.text, nil, true
	}
}

// send writes a line. It writes a long line in a goroutine while the answer is
// read, so that neither side waits for the other. Whoever reads then gets the
// error. So is that nobody reads the line any more, since a program says
// more by what it wrote last, and by how it ended.
func (c *conversation) send(line []byte) error {
	if len(line) <= directWrite {
		if _, err := c.stream.Write(line); !errors.Is(err, syscall.EPIPE) {
			return err
		}
		return nil
	}
	go c.stream.Write(line)
	return nil
}

// broken returns an error for what ended the conversation. How the other side
// ended says more than that it did.
func (c *conversation) broken(o worker.Outcome, doing string, err error) *worker.Error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return verdict(o, "%s: it did not come in time", doing)
	}
	how := c.end(statusDelay)
	// Before the hello, no task was begun.
	if o == worker.Misconfigured && (how == "exit status 75" || how == "exit status 111") {
		o = worker.Later
	}
	if errors.Is(err, io.EOF) {
		return verdict(o, "%s: its output ended (%s)", doing, how)
	}
	return verdict(o, "%s: %w (%s)", doing, err, how)
}
