package main

import (
	"fmt"
	"io"
	"time"

	"github.com/schollz/progressbar/v3"
)

// A report is what `revq send` shows: a line for each text on stdout, and on
// stderr what went wrong and, if that is a terminal, how far it is.
type report struct {
	stdout, stderr io.Writer
	quiet          bool
	bar            *progressbar.ProgressBar // nil for none
	bytes          bool                     // the bar counts bytes, not texts
}

// newReport returns a report on texts from lines of size bytes (-1: unknown),
// or on those from the arguments, which need no progress.
func (s *sending) newReport(lines bool, size int64) *report {
	r := &report{stdout: s.stdout, stderr: s.stderr, quiet: s.quiet, bytes: size >= 0}
	if lines && !s.quiet && isTerminal(s.stderr) {
		options := []progressbar.Option{
			progressbar.OptionSetWriter(s.stderr),
			progressbar.OptionSetDescription("sending"),
			progressbar.OptionThrottle(100 * time.Millisecond),
			progressbar.OptionClearOnFinish(),
			progressbar.OptionShowCount(),
		}
		if r.bytes {
			options = append(options, progressbar.OptionShowBytes(true))
		} else {
			options = append(options, progressbar.OptionShowIts(), progressbar.OptionSetItsString("texts"))
		}
		r.bar = progressbar.NewOptions64(size, options...)
	}
	return r
}

// print writes a line of data.
func (r *report) print(line string) error {
	if r.quiet {
		return nil
	}
	if r.bar != nil && isTerminal(r.stdout) {
		r.bar.Clear() // the line takes its place
	}
	_, err := fmt.Fprintln(r.stdout, line)
	return err
}

// problem writes a line on what went wrong.
func (r *report) problem(format string, args ...any) {
	if r.bar != nil {
		r.bar.Clear()
	}
	note(r.stderr, format, args...)
}

// advance shows that batch is done.
func (r *report) advance(batch []text) {
	if r.bar == nil {
		return
	}
	n := len(batch)
	if r.bytes {
		n = 0
		for _, t := range batch {
			n += t.size
		}
	}
	r.bar.Add(n)
}

func (r *report) end() {
	if r.bar != nil {
		r.bar.Finish()
	}
}
