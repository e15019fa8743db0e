package daemon

import (
	"fmt"
	"log/slog"
	"os"
	"syscall"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/command"
)

type logConfig struct {
	level  slog.Level
	format string // text or json
}

func (c *logConfig) flags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{
			Name:     "log-level",
			Usage:    "least `LEVEL` of what is logged: debug, info, warn or error",
			Category: "daemon",
			Sources:  command.Variable("log-level"),
			Value:    "info",
			Validator: func(level string) error {
				if c.level.UnmarshalText([]byte(level)) != nil {
					return fmt.Errorf("there is no log level %q: use debug, info, warn or error", level)
				}
				return nil
			},
		},
		&cli.StringFlag{
			Name:        "log-format",
			Usage:       "`FORMAT` of the log, text or json",
			Category:    "daemon",
			Sources:     command.Variable("log-format"),
			Value:       c.format,
			Destination: &c.format,
			Validator: func(format string) error {
				if format != "text" && format != "json" {
					return fmt.Errorf("there is no log format %q: use text or json", format)
				}
				return nil
			},
		},
	}
}

// logger returns a logger to w. The journal stamps lines by itself.
func (c *logConfig) logger(w *os.File) *slog.Logger {
	options := &slog.HandlerOptions{Level: c.level}
	if isJournal(w) {
		options.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	if c.format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// isJournal reports whether f leads to the journal. The variable alone does not
// tell: what is started in a terminal may have inherited it from its desktop.
func isJournal(f *os.File) bool {
	info, err := f.Stat()
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}
