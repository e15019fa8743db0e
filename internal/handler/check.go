package handler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/worker"
)

// samples are the texts that Check has a program handle. They are texts that
// programs tend to handle wrongly.
var samples = []struct{ what, text string }{
	{"a short text", "abcdef"},
	{"line breaks, quotes and letters beyond ASCII", "first \"line\"\n\tsecond\\line ä 日本 👩‍👩‍👧 \u2028 <&>"},
	{"64 KiB", strings.Repeat("0123456789abcdef", 4<<10)},
	{"another one after it", "ghijkl"},
}

// Check has the program of cfg handle some texts. It calls report with the name
// of each check and what was wrong, or nil. It returns an error if a check
// failed. An answer that the text cannot be handled follows the protocol and
// passes.
func Check(ctx context.Context, cfg Config, log *slog.Logger, report func(what string, wrong error)) error {
	cfg.Concurrency = 1
	h := New(cfg, log)
	failed := 0
	for _, s := range samples {
		_, err := h.Handle(ctx, task.Task{ID: task.NewID(), Text: s.text, Accepted: time.Now()})
		if ctx.Err() != nil {
			h.Close()
			return context.Cause(ctx)
		}
		what := s.what
		var e *worker.Error
		if p, isPool := h.(*pool); isPool && errors.As(err, &e) && p.holds() {
			what += fmt.Sprintf(" (answered: %v, retry %s)", err, retryOf(e.Outcome))
			err = nil
		}
		report(what, err)
		if err != nil {
			failed++
		}
	}
	if p, isPool := h.(*pool); isPool && failed == 0 {
		err := p.endsWithInput()
		report("it ends when its input does", err)
		if err != nil {
			failed++
		}
	}
	h.Close()
	if failed > 0 {
		return fmt.Errorf("%d of the checks failed", failed)
	}
	return nil
}

// holds reports whether a conversation continues.
func (p *pool) holds() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.idle) > 0
}

// endsWithInput returns an error unless the program ends by itself once its
// input has ended.
func (p *pool) endsWithInput() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.idle {
		if how := c.end(endGrace); how == neverEnded {
			return fmt.Errorf("it still ran %v after the end of its input, and was killed", endGrace)
		}
	}
	p.idle = nil
	return nil
}
