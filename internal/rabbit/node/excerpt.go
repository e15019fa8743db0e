package node

import (
	"bytes"
	"strings"
	"sync"
)

// How much of a log an excerpt keeps. RabbitMQ's first errors say what is
// wrong. Dozens of lines about processes that end because of it follow.
const (
	excerptErrors = 8
	excerptLast   = 4
	excerptWidth  = 300 // bytes of a line; some lines have kilobytes
)

// An excerpt keeps the first errors and the last lines of the log that is
// written to it.
type excerpt struct {
	mu     sync.Mutex
	line   []byte // the beginning of an unfinished line
	errors []string
	last   []string
}

func (e *excerpt) Write(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for part := range bytes.Lines(p) {
		e.line = append(e.line, part[:min(len(part), excerptWidth-min(len(e.line), excerptWidth))]...)
		if part[len(part)-1] == '\n' {
			e.add(strings.TrimSpace(string(e.line)))
			e.line = e.line[:0]
		}
	}
	return len(p), nil
}

func (e *excerpt) add(line string) {
	switch {
	case line == "" || strings.HasSuffix(line, ">"): // a line with only time, level and process
	case strings.Contains(line, "[error]") && len(e.errors) < excerptErrors:
		e.errors = append(e.errors, line)
	default:
		e.last = append(e.last, line)
		if len(e.last) > excerptLast {
			e.last = e.last[1:]
		}
	}
}

// String returns what was kept, each line indented on a new line.
func (e *excerpt) String() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var b strings.Builder
	for _, line := range e.errors {
		b.WriteString("\n  " + line)
	}
	if len(e.errors) > 0 && len(e.last) > 0 {
		b.WriteString("\n  ...")
	}
	for _, line := range e.last {
		b.WriteString("\n  " + line)
	}
	return b.String()
}
