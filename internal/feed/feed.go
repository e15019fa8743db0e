// Package feed keeps what listeners are sent: a shared log of results, framed
// once for all of them.
//
// A listener has no buffer and no queue: it is a position in a log. Everything
// between its position and the end is sent with one write, straight from the
// log. A slow listener costs nothing more. When the log no longer holds its
// position, the listener gets ErrGone.
package feed

import (
	"fmt"
	"hash/maphash"
	"sync"

	"github.com/revq/revq/internal/memory"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// Config sizes a feed. DefaultConfig gives a usable one.
type Config struct {
	// MaxBytes is the size of each format's log in bytes. Default 32 MiB: that
	// gives slow listeners minutes, even under a heavy load.
	MaxBytes int

	// Window is how many results are remembered, so that repetitions of them
	// are dropped. Default 100,000 (about 6 MB). Repetitions arrive within
	// seconds: they come from workers that died between publishing and
	// acknowledging.
	Window int

	// Backlog is how many messages are read at the start, so that listeners
	// can resume at once. As many before them are read so that repetitions of
	// those are recognised. Each message has at least one result, or is a mark.
	// Default 2,000: that is ten seconds or more of two workers below full
	// load. The broker reads messages that arrived one by one also one by one.
	// That takes up to a millisecond each, and half a second for 4,000 on two cores.
	Backlog int
}

// LongestResult returns the length in bytes of the longest text that fits into
// every log, whatever characters it has: JSON may take six bytes for one.
func (c Config) LongestResult() int { return max(0, (c.MaxBytes-frameOverhead)/6) }

// frameOverhead is more than everything in a frame except the text.
const frameOverhead = 1 << 10

// DefaultConfig returns the default sizes.
func DefaultConfig() Config { return Config{MaxBytes: 32 << 20, Window: 100_000, Backlog: 2_000} }

// A Format is a way to present results to listeners.
type Format int

// The formats. Each has a log of its own.
const (
	Text   Format = iota // websocket text frames that hold the processed text
	JSON                 // websocket text frames that hold a wire.Message
	Events               // server-sent events whose data is a wire.Message, in HTTP chunks
	formats
)

// ParseFormat returns the websocket format called name; "" is Text.
func ParseFormat(name string) (Format, error) {
	switch name {
	case "", wire.FormatText:
		return Text, nil
	case wire.FormatJSON:
		return JSON, nil
	}
	return 0, fmt.Errorf("there is no format %q: use text or json", name)
}

// A Feed holds the logs of all formats.
type Feed struct {
	logs [formats]*Log

	mu   sync.RWMutex
	last wire.Mark // the newest
	index
	live    uint64 // the number of the first record after the backlog
	seen    *Window
	awaited map[digest]*awaited
	counts  counts
	wakes   []func()
	data    []byte // scratch: of the newest message
	frame   []byte // scratch
}

// New returns an empty feed. What is appended before GoLive is the backlog:
// only listeners that resume get it.
func New(cfg Config) *Feed {
	f := &Feed{last: wire.Mark{Offset: -1}, seen: NewWindow(cfg.Window), awaited: make(map[digest]*awaited)}
	for i := range f.logs {
		f.logs[i] = newLog(Format(i), cfg.MaxBytes)
	}
	return f
}

// Log returns the log of one format.
func (f *Feed) Log(format Format) *Log { return f.logs[format] }

// OnAppend registers wake, which is called after each append. It must not
// block.
func (f *Feed) OnAppend(wake func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wakes = append(f.wakes, wake)
}

func (f *Feed) wake() {
	for _, wake := range f.wakes {
		wake()
	}
}

// GoLive ends the backlog: listeners that wait at Pending begin here.
func (f *Feed) GoLive() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.logs[0].isLive() {
		f.live = f.end()
	}
	for _, l := range f.logs {
		if !l.isLive() {
			l.liveMark = f.last
			l.live.Store(int64(l.End()))
		}
	}
	f.wake()
}

// Remember takes a result that is in no log, so that a repetition of it is not
// either.
func (f *Feed) Remember(r task.Result) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen.Add(r)
}

// Append adds a result to all logs, unless it is a repetition: a task is done
// at least once, and listeners see its result once. The same id with another
// text is another task, since it was accepted, too.
func (f *Feed) Append(offset int64, r task.Result) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.seen.Add(r) {
		f.counts.repetitions.Add(1)
		return
	}
	f.counts.add(r, f.logs[0].isLive())
	f.last = wire.Mark{Offset: offset, ID: r.ID}
	rec := record{offset: offset, id: nameOf(r.ID), queue: nameOf(r.Queue), class: classOf(r.Kind)}
	m := resultMessage(offset, r)
	f.data = appendJSON(f.data[:0], m)
	var starts [formats]Position
	for format := range formats {
		f.frame = appendMessage(f.frame[:0], format, m, f.data)
		starts[format], rec.ends[format] = f.logs[format].append(f.frame)
	}
	f.add(rec)
	f.trim(starts)
	f.tell(rec)
	f.data, f.frame = small(f.data), small(f.frame)
	f.wake()
}

// small returns scratch, or nil if a long text has made it large: such texts
// are rare, and the memory would be kept for ever.
func small(scratch []byte) []byte {
	if cap(scratch) > segmentBytes {
		memory.GiveBack()
		return nil
	}
	return scratch
}

// AppendMark records a mark message: a place in the stream without a result.
// Listeners may stand there, too, even if the stream has no results.
func (f *Feed) AppendMark(offset int64, id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = wire.Mark{Offset: offset, ID: id}
	rec := record{offset: offset, id: nameOf(id), class: mark}
	for format, l := range f.logs {
		rec.ends[format] = l.End()
	}
	f.addMark(rec) // without results, trim is never called
}

// AppendGap tells all listeners that results are missing here, and why.
func (f *Feed) AppendGap(reason string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts.gaps.Add(1)
	rec := record{offset: f.last.Offset, class: gap}
	var starts [formats]Position
	for format := range formats {
		f.frame = AppendGap(f.frame[:0], format, f.last, reason)
		starts[format], rec.ends[format] = f.logs[format].append(f.frame)
	}
	f.add(rec)
	f.trim(starts)
	f.stream = f.end() // offsets from before may mean other results from now on
	f.last = wire.Mark{Offset: -1}
	f.wake()
}

// A Verdict is what Find says about a mark.
type Verdict int

// The verdicts.
const (
	Here    Verdict = iota // the log continues at the returned position
	Older                  // the log begins later, or the feed does not know the mark: the broker may have it
	Ahead                  // the feed has not reached the mark, or never will
	Foreign                // another result is there: the mark is of another stream
)

// Find returns the position after a mark in the log of one format.
func (f *Feed) Find(format Format, m wire.Mark) (Position, Verdict) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	pos, _, verdict := f.find(format, m)
	return pos, verdict
}

// find also returns the number of the first record after the mark.
func (f *Feed) find(format Format, m wire.Mark) (pos Position, next uint64, verdict Verdict) {
	l := f.logs[format]
	switch {
	case m.Offset > f.last.Offset:
		return 0, 0, Ahead
	case f.last.Offset < 0 && l.isLive(): // the stream is empty so far, and the mark is its beginning
		return l.End(), f.end(), Here
	}
	next, lowest, found := f.search(m.Offset)
	switch {
	case found && m.ID != "" && f.at(next).id != digestOf(m.ID):
		return 0, 0, Foreign
	case found:
		next++
	case next == lowest || m.ID != "": // something with this id was at the mark
		return 0, 0, Older
	}
	return f.begin(next, format), next, Here
}

// Last returns the mark of the newest result or mark message. Its offset is -1
// if there is none.
func (f *Feed) Last() wire.Mark {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.last
}

// Join returns where a new listener begins: the position and the mark after
// which it gets everything that is appended from now on. The mark's offset is
// -1 at the beginning of the stream, and while the position is Pending, since
// it is not known then.
func (f *Feed) Join(format Format) (Position, wire.Mark) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if !f.logs[format].isLive() {
		return Pending, wire.Mark{Offset: -1}
	}
	return f.logs[format].End(), f.last
}

// AppendGreeting appends the first frame of a listener that stands after m.
func AppendGreeting(dst []byte, format Format, m wire.Mark, text string) []byte {
	greeting := wire.Message{Type: wire.TypeGreeting, Offset: m.Offset, ID: m.ID, Text: text}
	return appendOne(dst, format, greeting)
}

// AppendResult appends the frame of a result.
func AppendResult(dst []byte, format Format, offset int64, r task.Result) []byte {
	return appendOne(dst, format, resultMessage(offset, r))
}

// AppendPlace appends the frame that says where a listener stands without a
// result: for one with a filter, since others were left out. In the Text format
// it appends nothing.
func AppendPlace(dst []byte, format Format, m wire.Mark) []byte {
	return appendOne(dst, format, wire.Message{Type: wire.TypeMark, Offset: m.Offset, ID: m.ID})
}

// types are the types of messages by the kinds of results.
var types = [...]string{
	task.Done:     wire.TypeResult,
	task.GivenUp:  wire.TypeFailed,
	task.Progress: wire.TypeProgress,
	task.Lost:     wire.TypeLost,
}

func classOf(kind task.Kind) class {
	if kind == task.Progress {
		return message
	}
	return last
}

func resultMessage(offset int64, r task.Result) wire.Message {
	m := wire.Message{Type: types[r.Kind], Offset: offset, ID: r.ID, Queue: r.Queue, Text: r.Text}
	if r.Kind != task.Lost {
		m.Accepted, m.Done, m.Traceparent = r.Accepted.UTC(), r.Done.UTC(), r.Trace
	}
	return m
}

// AppendGap appends the frame that says that results after m are missing. In
// the Text format only the end of the connection can say so.
func AppendGap(dst []byte, format Format, m wire.Mark, reason string) []byte {
	if format == Text {
		return AppendClose(dst, wire.CloseGap, "results are missing: "+reason)
	}
	gap := wire.Message{Type: wire.TypeGap, Offset: m.Offset, ID: m.ID, Text: reason}
	return appendOne(dst, format, gap)
}

// appendOne appends m as a frame of one format.
func appendOne(dst []byte, format Format, m wire.Message) []byte {
	var data []byte
	if format != Text {
		data = appendJSON(make([]byte, 0, messageOverhead+len(m.ID)+len(m.Text)), m)
	}
	return appendMessage(dst, format, m, data)
}

// appendMessage appends m as a frame; data is its encoding in JSON. In the Text
// format it appends nothing but results and the greeting.
func appendMessage(dst []byte, format Format, m wire.Message, data []byte) []byte {
	switch {
	case format == Events:
		return appendEvent(dst, m, data)
	case format == JSON:
		return AppendFrame(dst, OpText, data)
	case m.Type != wire.TypeResult && m.Type != wire.TypeGreeting:
		return dst
	default:
		return AppendFrame(dst, OpText, []byte(m.Text))
	}
}

// A Window remembers the newest results by their ids and the digests of their
// tasks' texts. An id without a digest and the same id with one count as two
// results: it is better to show a result twice than not at all.
type Window struct {
	ids  map[digest]struct{}
	ring []digest // once it is full, the oldest is at next
	next int
}

// A digest stands for an id of any length within this process. Among 100,000
// ids, a new one collides with another once in 10^14 times by accident. Nobody
// can search for ids that collide, since digestSeed is random and secret.
type digest uint64

var digestSeed = maphash.MakeSeed()

func digestOf(id string) digest { return digest(maphash.String(digestSeed, id)) }

// with returns the digest of an id and a text.
func (d digest) with(text task.Digest) digest { return d ^ digest(text) }

// NewWindow returns a Window of size results.
func NewWindow(size int) *Window {
	return &Window{ids: make(map[digest]struct{}), ring: make([]digest, 0, size)}
}

// Add returns false if r is a repetition of a remembered result. Progress and a
// lost result, which may have no id, never are. A task that was given up may be
// done later, if somebody requeues it; if it is done, another copy of it may
// not be told to be given up.
func (w *Window) Add(r task.Result) bool {
	d := digestOf(r.ID).with(r.Of)
	switch r.Kind {
	case task.Done:
		return w.add(d)
	case task.GivenUp:
		if _, done := w.ids[d]; done {
			return false
		}
		return w.add(d ^ givenUp)
	}
	return true
}

// givenUp distinguishes the end of a task that was given up from its result.
var givenUp = digestOf("given up")

func (w *Window) add(d digest) bool {
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
