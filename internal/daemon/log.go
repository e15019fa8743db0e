package daemon

import (
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/revq/revq/internal/journal"
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

// logger returns a logger to w.
func (c *logConfig) logger(w *os.File) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.level)); err != nil {
		panic(err) // cannot happen: the setting accepts no other level
	}
	format := func(w io.Writer, options *slog.HandlerOptions) slog.Handler { return slog.NewTextHandler(w, options) }
	if strings.EqualFold(c.format, "json") {
		format = func(w io.Writer, options *slog.HandlerOptions) slog.Handler {
			return slog.NewJSONHandler(visible.JSONWriter(w), options)
		}
	}
	options := slog.HandlerOptions{Level: level}
	if journal.Is(w) {
		return slog.New(journal.Handler(w, options, format))
	}
	return slog.New(format(w, &options))
}
