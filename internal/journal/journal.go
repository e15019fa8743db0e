// Package journal writes logs as systemd's journal reads them from a unit's
// standard error: each line begins with its priority (sd-daemon(3)), so that
// journalctl -p warning shows what matters.
package journal

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
)

// Is reports whether f is connected to the journal. It is not enough that
// JOURNAL_STREAM is set: a program in a terminal may inherit it from the
// desktop, so it names the device and the inode (systemd.exec(5)).
func Is(f *os.File) bool {
	info, err := f.Stat()
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}

// Prefix returns what begins a line of a level.
func Prefix(level slog.Level) string {
	switch {
	case level >= slog.LevelError:
		return "<3>"
	case level >= slog.LevelWarn:
		return "<4>"
	case level >= slog.LevelInfo:
		return "<6>"
	}
	return "<7>"
}

// Error writes a message, of one or more lines, as an error to w: with priorities if
// w is the journal.
func Error(w io.Writer, message string) {
	if f, ok := w.(*os.File); ok && Is(f) {
		prefix := Prefix(slog.LevelError)
		message = prefix + strings.ReplaceAll(message, "\n", "\n"+prefix)
	}
	fmt.Fprintln(w, message)
}

// Handler returns a handler that makes one line of each record, with its
// priority. format returns a handler that writes each record with one Write. The
// journal adds the time, so the records have none.
func Handler(w io.Writer, options slog.HandlerOptions, format func(io.Writer, *slog.HandlerOptions) slog.Handler) slog.Handler {
	options.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}
	lines := &lines{to: w}
	return handler{format(lines, &options), lines}
}

type handler struct {
	slog.Handler
	lines *lines
}

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	h.lines.mu.Lock()
	defer h.lines.mu.Unlock()
	h.lines.prefix = Prefix(r.Level)
	return h.Handler.Handle(ctx, r)
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.Handler.WithAttrs(attrs), h.lines}
}

func (h handler) WithGroup(name string) slog.Handler {
	return handler{h.Handler.WithGroup(name), h.lines}
}

// lines writes each line with a prefix.
type lines struct {
	mu     sync.Mutex
	to     io.Writer
	prefix string // of the line that comes next
	buffer []byte
}

func (l *lines) Write(line []byte) (int, error) {
	l.buffer = append(append(l.buffer[:0], l.prefix...), line...)
	if _, err := l.to.Write(l.buffer); err != nil {
		return 0, err
	}
	return len(line), nil
}
