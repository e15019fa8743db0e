package daemon

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"syscall"

	"github.com/revq/revq/internal/setting"
	"github.com/revq/revq/internal/visible"
)

type logConfig struct {
	level  string // as slog.Level knows it
	format string // text or json
}

func defaultLog() logConfig { return logConfig{level: "info", format: "text"} }

func (c *logConfig) settings() []setting.Setting {
	return setting.In("daemon",
		setting.OneOf("log-level", "lowest `LEVEL` that is logged: debug, info, warn or error", &c.level, "debug", "info", "warn", "error"),
		setting.OneOf("log-format", "`FORMAT` of the log, text or json", &c.format, "text", "json"),
	)
}

// logger returns a logger to w. It adds no time if w is the journal, which adds
// its own.
func (c *logConfig) logger(w *os.File) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.level)); err != nil {
		panic(err) // cannot happen: the setting accepts no other level
	}
	options := &slog.HandlerOptions{Level: level}
	if isJournal(w) {
		options.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	if strings.EqualFold(c.format, "json") {
		return slog.New(slog.NewJSONHandler(visible.JSONWriter(w), options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// isJournal reports whether f is connected to the journal. It is not enough
// that JOURNAL_STREAM is set: a program in a terminal may inherit it from the
// desktop.
func isJournal(f *os.File) bool {
	info, err := f.Stat()
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}
