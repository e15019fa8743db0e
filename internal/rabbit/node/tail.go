package node

import (
	"bytes"
	"strings"
	"sync"
)

// tailSize is what of a log is kept for an error: some twenty lines.
const tailSize = 3 << 10

// A tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
	cut bool // something was dropped
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - tailSize; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
		t.cut = true
	}
	return len(p), nil
}

// String returns the kept lines without the first if it is incomplete, each indented on a new line.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	kept := t.buf
	if t.cut {
		_, kept, _ = bytes.Cut(kept, []byte("\n"))
	}
	var b strings.Builder
	for line := range strings.Lines(string(kept)) {
		if line = strings.TrimSpace(line); line != "" {
			b.WriteString("\n  " + line)
		}
	}
	return b.String()
}
