package rabbit

import (
	"context"
	"errors"
	"fmt"

	"github.com/revq/revq/internal/memory"
	"github.com/revq/revq/internal/task"
)

// A reading is one call of Reader.History. It may need several sessions: one
// that has waited for a slow listener is closed, and a node may end.
type reading struct {
	cfg    Config
	ahead  demand
	first  int // number of the node to begin with
	offset int64
	before int64
	result func(offset int64, r task.Result) error
	mark   func(offset int64, id string) error
	end    func() error

	ended bool  // end was called
	last  entry // the last one passed on; its offset is -1 if there is none
}

// History reads the stream and then follows it, until ctx ends or one of the
// functions returns an error, which History returns. It begins the given number
// of messages before an offset, or at the oldest message that the broker keeps.
//
// It calls result with each result, and mark with each mark. It calls end once:
// when it has passed on all that was in the stream when History was called, or
// at once if the stream ends before the offset. It uses a connection of its
// own, and goes on over another one if that ends.
//
// The broker is not read faster than the functions return. All histories of r
// together hold historyShare and two windows each, the result that is being
// passed on, and one message of any length.
func (r *Reader) History(ctx context.Context, offset, before int64,
	result func(offset int64, r task.Result) error, mark func(offset int64, id string) error, end func() error) error {
	defer memory.GiveBack() // it may have read a GiB
	h := &reading{
		cfg: r.cfg, ahead: r.past, first: int(r.histories.Add(1)), offset: offset, before: before,
		result: result, mark: mark, end: end, last: entry{offset: -1},
	}
	for {
		again, err := h.read(ctx)
		if !again {
			return err
		}
	}
}

// open opens a session and a cursor on the first node where that works.
func (h *reading) open(ctx context.Context) (*session, *cursor, error) {
	var errs []error
	urls := h.cfg.urls()
	for i := range urls {
		url := urls[(h.first+i)%len(urls)]
		s, err := open(ctx, h.cfg, url, "history")
		if err == nil {
			s.pace.bound(historyWindow)
			var c *cursor
			if c, err = s.openCursor(ctx, h.cfg, "revq-history", h.ahead, h.begin); err == nil {
				return s, c, nil
			}
			s.close()
		}
		err = fmt.Errorf("read from %s: %w", host(url), err)
		if errors.Is(err, errMissing) || errors.Is(err, ErrBlocked) || isRefused(err) || ctx.Err() != nil {
			return nil, nil, err // another node would answer the same
		}
		errs = append(errs, err)
	}
	return nil, nil, errors.Join(errs...)
}

// begin returns where to begin in a stream with this end. Both are the broker's
// offsets.
func (h *reading) begin(end int64) (from int64, err error) {
	switch {
	case h.last.offset >= firstOf(end):
		return 0, errMissing
	case h.last.offset >= 0:
		return messageOf(h.last.offset), nil
	case messageOf(h.offset) < end:
		return max(0, messageOf(h.offset)-h.before), nil // each message has at least one result, or is a mark
	}
	return end, nil
}

// read reads in one session. It reports whether another one may go on.
func (h *reading) read(ctx context.Context) (again bool, err error) {
	s, c, err := h.open(ctx)
	if err != nil {
		return false, permissions(err, h.cfg)
	}
	defer s.close()
	defer c.close()
	if messageOf(h.offset) >= c.end {
		if err := h.endOnce(); err != nil {
			return false, err
		}
	}
	meeting, taken := h.last.offset >= 0, 0
	for {
		entries, err := c.next(ctx)
		if err != nil {
			paused := errors.Is(context.Cause(s.ctx), errPaused)
			return ctx.Err() == nil && (paused || s.ctx.Err() != nil && taken > 0), err
		}
		message := messageOf(entries[0].offset)
		if meeting {
			meeting = false
			if entries, err = meet(entries, h.last); err != nil {
				return false, err
			}
		} else {
			taken++
		}
		for _, e := range entries {
			if err := h.pass(e); err != nil {
				return false, err
			}
		}
		if message >= c.end {
			if err := h.endOnce(); err != nil {
				return false, err
			}
		}
	}
}

func (h *reading) pass(e entry) error {
	h.last = entry{offset: e.offset, id: e.id}
	switch {
	case e.mark && e.invalid != nil: // see Reader.pass
		return nil
	case e.mark:
		return h.mark(e.offset, e.id)
	}
	return h.result(e.offset, e.result)
}

func (h *reading) endOnce() error {
	if h.ended {
		return nil
	}
	h.ended = true
	return h.end()
}
