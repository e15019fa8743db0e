package worker

import (
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	// progressInterval is the minimum time between two messages about the
	// progress of a task. Each is a message at the broker and a frame for each
	// listener, so a handler that reports every percent must not cost more
	// than one that does not.
	progressInterval = time.Second

	// maxProgress is the maximum length of such a message in bytes. The rest is
	// cut off.
	maxProgress = 1 << 10
)

// A progress passes on how far an attempt is: the first report at once, and
// then the newest one after each progressInterval. Its methods may be called
// from several goroutines.
type progress struct {
	publish func(text string)

	mu     sync.Mutex
	newest string // was not published yet; "" for none
	next   time.Time
	timer  *time.Timer
	over   bool
}

// report passes on how far the attempt is. It never blocks. Texts that are empty
// or not UTF-8 are ignored.
func (p *progress) report(text string) {
	if text == "" || !utf8.ValidString(text) {
		return
	}
	if len(text) > maxProgress {
		text = strings.ToValidUTF8(text[:maxProgress], "") // may have cut a character
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return
	}
	p.newest = text
	if p.timer != nil {
		return // it will publish
	}
	if wait := time.Until(p.next); wait > 0 {
		p.timer = time.AfterFunc(wait, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.timer = nil
			p.send()
		})
		return
	}
	p.send()
}

// send publishes the newest report. p.mu must be held.
func (p *progress) send() {
	if p.over || p.newest == "" {
		return
	}
	p.publish(p.newest)
	p.newest, p.next = "", time.Now().Add(progressInterval)
}

// end drops what was not published: what comes of the attempt says more.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	if p.timer != nil {
		p.timer.Stop()
	}
}
