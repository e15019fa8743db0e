// Package reverse is the built-in handler: it pauses in proportion to the
// length of a text, and returns the text in reverse.
package reverse

import (
	"context"
	"time"

	"github.com/rivo/uniseg"

	"github.com/revq/revq/internal/task"
)

// Config sets the pause.
type Config struct {
	// PausePerChar is the pause for each character as a reader sees it
	// (a grapheme cluster). Default 100 ms, slow enough to watch.
	PausePerChar time.Duration

	// MaxPause is the longest pause for one text. Default 60 s, far below the
	// half hour after which RabbitMQ takes a task back.
	MaxPause time.Duration
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{PausePerChar: 100 * time.Millisecond, MaxPause: time.Minute}
}

// A Handler pauses and reverses texts.
type Handler struct{ cfg Config }

// New returns a Handler with the pauses of cfg.
func New(cfg Config) *Handler { return &Handler{cfg} }

// Handle returns the task's text in reverse, after the pause, which takes at most
// half of the time until ctx's deadline, if it has one. If ctx ends first, Handle
// returns the cause at once.
func (h *Handler) Handle(ctx context.Context, t task.Task) (string, error) {
	pause := h.cfg.pause(t.Text)
	if deadline, ok := ctx.Deadline(); ok {
		pause = min(pause, time.Until(deadline)/2)
	}
	if pause > 0 {
		timer := time.NewTimer(pause)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
	return Reverse(t.Text), nil
}

// Limit returns how long handling text takes.
func (c *Config) Limit(text string) time.Duration { return c.pause(text) }

// pause returns how long to pause for text.
func (c Config) pause(text string) time.Duration {
	if c.PausePerChar == 0 {
		return 0
	}
	// Divide rather than multiply: the product may overflow.
	if n := uniseg.GraphemeClusterCount(text); n < int(c.MaxPause/c.PausePerChar) {
		return time.Duration(n) * c.PausePerChar
	}
	return c.MaxPause
}

// Reverse returns the grapheme clusters of text (Unicode Standard Annex 29) in
// the opposite order, so that an accent stays on its letter and a family stays
// together. Clusters may join with their new neighbours: Reverse does not undo
// itself for every text.
func Reverse(text string) string {
	reversed := make([]byte, len(text))
	end := len(text)
	state := -1
	for rest := text; rest != ""; {
		var cluster string
		cluster, rest, _, state = uniseg.FirstGraphemeClusterInString(rest, state)
		end -= copy(reversed[end-len(cluster):], cluster)
	}
	return string(reversed)
}
