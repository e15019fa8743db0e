// Package feed keeps what listeners are sent: a shared log of results, framed
// once for all of them.
//
// A listener has no buffer and no queue, it is a position in a log. Whatever
// lies between its position and the end is sent with one write, straight from
// the log; a slow listener costs nothing but its place, and when the log has
// moved on beyond that, ErrGone says so.
package feed

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/revq/revq/internal/task"
)

// Config sizes a feed. DefaultConfig gives a usable one.
type Config struct {
	// MaxBytes is how much each format's log keeps, in bytes. Default 32 MiB:
	// minutes for slow listeners, even under a heavy load.
	MaxBytes int

	// Window is how many results are remembered, so that a repetition of one
	// of them is dropped. Default 100,000 (about 6 MB): repetitions come from
	// workers that died between publishing and acknowledging, within seconds.
	Window int
}

// DefaultConfig returns the sizes used unless others are given.
func DefaultConfig() Config { return Config{MaxBytes: 32 << 20, Window: 100_000} }

// A Format is a way to present results to listeners.
type Format int

// The formats. Each has a log of its own.
const (
	Text Format = iota // websocket text frames that hold the processed text
	JSON               // websocket text frames that hold a Message
	formats
)

// ParseFormat returns the format called name; "" is Text.
func ParseFormat(name string) (Format, error) {
	switch name {
	case "", "text":
		return Text, nil
	case "json":
		return JSON, nil
	}
	return 0, fmt.Errorf("there is no format %q: use text or json", name)
}

// A Message is what listeners get in the JSON format, one object a frame.
type Message struct {
	// Type is "greeting" for the first message and "result" for all others.
	Type string `json:"type"`

	// Offset is the result's position in the system's stream of results: it
	// is the same at every site, and grows from one result to the next. That
	// of a greeting is the newest one's before the listener joined, -1 if
	// there was none.
	Offset int64 `json:"offset"`

	// ID is the id of the task.
	ID string `json:"id,omitzero"`

	// Text is the processed text, or the greeting.
	Text string `json:"text"`

	// Accepted and Done are when the API took the task and when a worker had
	// finished it, with microseconds. Accepted is left out for a task that
	// came to the broker by another way.
	Accepted time.Time `json:"accepted,omitzero"`
	Done     time.Time `json:"done,omitzero"`
}

// A Feed holds the logs of all formats.
type Feed struct {
	logs [formats]*Log

	mu      sync.Mutex
	last    int64 // offset of the newest result
	seen    window
	wakes   []func()
	scratch []byte
}

// New returns an empty feed.
func New(cfg Config) *Feed {
	f := &Feed{last: -1, seen: newWindow(cfg.Window)}
	for i := range f.logs {
		f.logs[i] = newLog(cfg.MaxBytes)
	}
	return f
}

// Log returns the log of one format.
func (f *Feed) Log(format Format) *Log { return f.logs[format] }

// OnAppend has wake called after each new result. It must not block.
func (f *Feed) OnAppend(wake func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wakes = append(f.wakes, wake)
}

// Append adds a result to all logs, unless its task's result is there already:
// a task is done at least once, and listeners see it once.
func (f *Feed) Append(offset int64, r task.Result) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.seen.add(r.ID) {
		return
	}
	f.last = offset
	f.scratch = AppendFrame(f.scratch[:0], OpText, []byte(r.Text))
	f.logs[Text].append(f.scratch)
	f.scratch = AppendFrame(f.scratch[:0], OpText, encode(Message{
		Type: "result", Offset: offset, ID: r.ID, Text: r.Text, Accepted: r.Accepted.UTC(), Done: r.Done.UTC(),
	}))
	f.logs[JSON].append(f.scratch)
	for _, wake := range f.wakes {
		wake()
	}
}

// Join returns where a new listener begins, and the frame that greets it: it
// gets everything that is appended from now on.
func (f *Feed) Join(format Format, greeting string) (Position, []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	payload := []byte(greeting)
	if format == JSON {
		payload = encode(Message{Type: "greeting", Offset: f.last, Text: greeting})
	}
	return f.logs[format].End(), AppendFrame(nil, OpText, payload)
}

func encode(m Message) []byte {
	b, err := json.Marshal(m)
	if err != nil {
		panic(err) // strings, numbers and times can always be encoded
	}
	return b
}

// A window remembers the newest ids.
type window struct {
	ids  map[digest]struct{}
	ring []digest // the oldest at next, once full
	next int
}

// A digest stands for an id of any length. Clients choose ids, so it has to
// withstand those who look for two ids that are taken for one.
type digest [16]byte

func newWindow(size int) window {
	return window{ids: make(map[digest]struct{}), ring: make([]digest, 0, size)}
}

// add returns false if id is remembered already.
func (w *window) add(id string) bool {
	sum := sha256.Sum256([]byte(id))
	d := digest(sum[:16])
	if _, ok := w.ids[d]; ok {
		return false
	}
	w.ids[d] = struct{}{}
	if len(w.ring) < cap(w.ring) {
		w.ring = append(w.ring, d)
		return true
	}
	delete(w.ids, w.ring[w.next])
	w.ring[w.next] = d
	w.next = (w.next + 1) % len(w.ring)
	return true
}
