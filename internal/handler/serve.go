package handler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/revq/revq/internal/task"
)

// Serve speaks the protocol for a filter: it reads tasks from in, runs the
// program of cfg for each, and writes the answers to out, until in or ctx ends.
// It is for units that workers connect to over a socket.
func Serve(ctx context.Context, cfg Config, in io.Reader, out io.Writer, log *slog.Logger) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if _, err := io.WriteString(out, helloLine); err != nil {
		return fmt.Errorf("say hello to the worker: %w", err)
	}
	// The next line is read while a task is being handled, to notice the end
	// of the input: then nobody waits for the answer any more.
	jobs := make(chan job)
	go func() { cancel(readJobs(ctx, in, jobs)) }()
	f := newFilter(cfg, log)
	f.env = unitEnvironment()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case j := <-jobs:
			text, err := f.run(ctx, j)
			if ctx.Err() != nil {
				break
			}
			if _, err := out.Write(encodeReply(j.id, text, err)); err != nil {
				return fmt.Errorf("answer the worker: %w", err)
			}
		}
	}
	if cause := context.Cause(ctx); !errors.Is(cause, io.EOF) && !errors.Is(cause, context.Canceled) {
		return fmt.Errorf("read the worker's next task: %w", cause)
	}
	return nil
}

// readJobs sends the tasks that it reads from in, and returns why there are no
// more.
func readJobs(ctx context.Context, in io.Reader, jobs chan<- job) error {
	l := newLines(in, maxLineFor(task.MaxText))
	for first := true; ; first = false {
		line, err := l.next()
		if err != nil {
			return err
		}
		if first {
			if r, err := parseReply(line); err != nil || r.kind != isHello {
				return fmt.Errorf("its first line is %.80q, not %.10s", line, helloLine)
			}
			continue
		}
		j, err := parseJob(line)
		if err != nil {
			return fmt.Errorf("its line is %.80q: %w", line, err)
		}
		select {
		case jobs <- j:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
