package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

const (
	// progressInterval is the minimum time between two lines of progress.
	progressInterval = 100 * time.Millisecond

	// maxProgress is the maximum length of a line of progress, in columns. A
	// terminal wraps a longer line when its window gets narrower, and then it
	// cannot be cleared.
	maxProgress = 40
)

// A progress is one line on a terminal that says how much is done. It is nil if
// there is no terminal; its methods then do nothing.
type progress struct {
	terminal *os.File

	mu    sync.Mutex
	shown time.Time // when a line was written last
	there bool      // a line is on the screen
}

// newProgress returns a progress on out, or nil if out is not a terminal.
func newProgress(out io.Writer) *progress {
	if !isTerminal(out) {
		return nil
	}
	return &progress{terminal: out.(*os.File)}
}

// show replaces the line, at most once in each progressInterval.
func (p *progress) show(format string, args ...any) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.shown) < progressInterval {
		return
	}
	p.shown, p.there = time.Now(), true
	line := []rune(fmt.Sprintf(format, args...))
	fmt.Fprintf(p.terminal, "\r%s\x1b[K", string(line[:min(len(line), p.width())]))
}

// width returns how long the line may be. The last column stays free: some
// terminals wrap when it is written to.
func (p *progress) width() int {
	columns, _, err := term.GetSize(int(p.terminal.Fd()))
	if err != nil {
		return 0
	}
	return max(0, min(maxProgress, columns-1))
}

// clear removes the line.
func (p *progress) clear() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.there {
		io.WriteString(p.terminal, "\r\x1b[K")
		p.there = false
	}
}
