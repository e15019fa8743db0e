package handler

import (
	"bytes"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"
)

const (
	// maxSaid is how many bytes of the end of a program's standard error go
	// into a dead letter.
	maxSaid = 2 << 10

	// maxLine is how many bytes of a line of standard error are logged.
	maxLine = 1 << 10

	// lineRate and lineBurst bound how many lines a second are logged for all
	// processes together: a journal drops messages of a service that logs too
	// fast, and among them would be the worker's own.
	lineRate  = 50
	lineBurst = 200
)

// A stderr logs what processes write to their standard error.
type stderr struct {
	log *slog.Logger
	now func() time.Time

	mu      sync.Mutex
	left    float64 // lines that may be logged now
	filled  time.Time
	dropped int // lines that were dropped since the last one that was logged
}

func newStderr(log *slog.Logger) *stderr {
	return &stderr{log: log, now: time.Now, left: lineBurst}
}

func (s *stderr) line(id, text string) {
	s.mu.Lock()
	now := s.now()
	if !s.filled.IsZero() {
		s.left = min(lineBurst, s.left+lineRate*now.Sub(s.filled).Seconds())
	}
	s.filled = now
	if s.left < 1 {
		s.dropped++
		s.mu.Unlock()
		return
	}
	s.left--
	dropped := s.dropped
	s.dropped = 0
	s.mu.Unlock()
	if dropped > 0 {
		s.log.Warn("handlers write too much to standard error; lines were left out", "lines", dropped)
	}
	s.log.Info("the handler says", "task", id, "line", text)
}

// A voice is the standard error of one process.
type voice struct {
	to *stderr

	mu   sync.Mutex
	id   string // of the task that it handles
	line []byte // the beginning of the line that is being written, at most maxLine
	cut  bool   // the line is longer
	tail []byte // the end of what it wrote for this task, at most twice maxSaid
}

// Write takes what the process writes.
func (v *voice) Write(b []byte) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.tail = append(v.tail, b[max(0, len(b)-maxSaid):]...)
	if len(v.tail) > 2*maxSaid {
		v.tail = append(v.tail[:0], v.tail[len(v.tail)-maxSaid:]...)
	}
	for rest := b; len(rest) > 0; {
		part, after, ended := bytes.Cut(rest, []byte{'\n'})
		rest = after
		if room := maxLine - len(v.line); len(part) > room {
			part, v.cut = part[:room], true
		}
		v.line = append(v.line, part...)
		if ended {
			v.flush()
		}
	}
	return len(b), nil
}

// flush logs the line. v.mu must be held.
func (v *voice) flush() {
	text := strings.ToValidUTF8(strings.TrimSuffix(string(v.line), "\r"), "\uFFFD")
	if v.cut {
		text += "…"
	}
	v.line, v.cut = v.line[:0], false
	if text != "" {
		v.to.line(v.id, text)
	}
}

// begin assigns what is written from now on to a task.
func (v *voice) begin(id string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.id, v.tail = id, v.tail[:0]
}

// end logs the rest of a line, and returns the end of what was written for the
// task.
func (v *voice) end() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.flush()
	return string(v.tail[max(0, len(v.tail)-maxSaid):])
}

// ReadFrom lets os/exec copy without a new buffer for each process.
func (v *voice) ReadFrom(r io.Reader) (int64, error) { return copyAll(v, r) }
