package main

import (
	"fmt"
	"io"
	"time"
)

// A report prints what `revq send` does: a line for each text on stdout; errors
// and, if it is a terminal, progress on stderr.
type report struct {
	stdout, stderr io.Writer
	quiet          bool
	lines          bool      // the texts are lines, of which there may be many
	progress       *progress // nil for none
	began          time.Time
	texts          int   // number of texts that are done
	done, size     int64 // bytes of the input; size is -1 if it is not known
}

// newReport returns a report on texts from lines of size bytes (-1: unknown),
// or on texts from the arguments, for which it shows only the tasks' progress.
func (s *sending) newReport(lines bool, size int64) *report {
	r := &report{stdout: s.stdout, stderr: s.stderr, quiet: s.quiet, lines: lines, began: time.Now(), size: size}
	if (lines || s.wait) && !s.quiet {
		r.progress = newProgress(s.stderr)
	}
	return r
}

// print writes a line of data.
func (r *report) print(line string) error {
	if r.quiet {
		return nil
	}
	if isTerminal(r.stdout) {
		r.progress.clear() // the data is printed in its place
	}
	_, err := fmt.Fprintln(r.stdout, line)
	return err
}

// problem writes a line about what went wrong.
func (r *report) problem(format string, args ...any) {
	r.progress.clear()
	note(r.stderr, format, args...)
}

// advance counts batch as done and shows the progress.
func (r *report) advance(batch []text) {
	r.texts += len(batch)
	for _, t := range batch {
		r.done += int64(t.size)
	}
	if !r.lines {
		return
	}
	rate := float64(r.texts) / time.Since(r.began).Seconds()
	if r.size > 0 {
		r.progress.show("sending %3d%%, %d texts, %.0f/s", min(100, 100*r.done/r.size), r.texts, rate)
	} else {
		r.progress.show("sending %d texts, %.0f/s", r.texts, rate)
	}
}

func (r *report) end() { r.progress.clear() }
