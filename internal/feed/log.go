package feed

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
)

// A Position is a place in a Log, in bytes since the log began. Those that a
// Log gives out lie between two frames.
type Position int64

// Pending is the position of listeners that are to begin where the log will
// end when the backlog is in it.
const Pending Position = -1

// ErrGone means that the frames at a position are no longer kept.
var ErrGone = errors.New("the log no longer holds this position")

// segmentBytes is the size of the pieces in which a log grows and shrinks. One
// write to a listener takes at most what is left of one: large enough to make
// writes rare, small enough to release memory in fine steps.
const segmentBytes = 256 << 10

// A Log holds the frames of one format, each encoded once, for any number of
// listeners: a listener is no more than a Position. It is safe for concurrent
// use by one writer and many readers, and readers never wait for each other.
type Log struct {
	maxBytes int
	format   Format

	// live is the position after the backlog; Pending until all of that has
	// been appended. liveMark is what is there, written before live is.
	live     atomic.Int64
	liveMark Mark

	mu       sync.RWMutex
	segments []*segment // the oldest first; frames are added to the last
	bytes    int        // of all segments

	// retired are segments that the log has released and listeners still hold,
	// the oldest first. They may have as many bytes as the log itself.
	retired      []*segment
	retiredBytes int
	holds        int // on all segments
}

// A segment has its full capacity from the start and is only ever appended
// to, so that what was read from it stays valid, also after its release.
type segment struct {
	start   Position
	frames  []byte // nil when nobody can read them any more
	holds   int    // how many Holds are on it
	retired bool
}

func (s *segment) end() Position { return s.start + Position(len(s.frames)) }

func newLog(format Format, maxBytes int) *Log {
	l := &Log{format: format, maxBytes: maxBytes, segments: []*segment{{}}}
	l.live.Store(int64(Pending))
	return l
}

// Format returns the format of the log's frames.
func (l *Log) Format() Format { return l.format }

// Live returns the position at which a listener begins that joined while the
// backlog was being read, and the mark there: Pending as long as that goes on.
func (l *Log) Live() (Position, Mark) {
	if pos := Position(l.live.Load()); pos != Pending {
		return pos, l.liveMark
	}
	return Pending, Mark{Offset: -1}
}

func (l *Log) isLive() bool { return Position(l.live.Load()) != Pending }

// End returns the position behind the newest frame.
func (l *Log) End() Position {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.segments[len(l.segments)-1].end()
}

// Read returns frames from a position on: as many as lie together in memory,
// none at the end of the log. The result ends between two frames. It must not
// be changed; it stays valid. The error is ErrGone or nil.
func (l *Log) Read(from Position) ([]byte, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	s := l.find(from)
	if s == nil {
		return nil, ErrGone
	}
	if from < s.end() {
		return s.frames[from-s.start:], nil
	}
	return nil, nil
}

// find returns the segment that a position is in, or behind if it is the end;
// nil if the log does not hold it any more.
func (l *Log) find(at Position) *segment {
	// Nearly all listeners read from the newest segment.
	for _, s := range slices.Backward(l.segments) {
		if at >= s.start {
			return s
		}
	}
	return nil
}

// A Hold keeps the rest of a frame for a listener that has taken a part of it,
// when the log moves on: nothing else, not even why it is closed, can be sent
// to it before. It costs no memory as long as the log holds the frame.
type Hold struct {
	log     *Log
	segment *segment
}

// Hold returns a hold on the frame that a position is in, which Read has just
// returned. Release must be called.
func (l *Log) Hold(at Position) *Hold {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.find(at)
	if s == nil { // released between Read and now
		s = &segment{retired: true}
	}
	s.holds++
	l.holds++
	return &Hold{l, s}
}

// Read returns what is between two positions in the frame. The error is
// ErrGone if more was held than the log's size and this was the oldest.
func (h *Hold) Read(from, to Position) ([]byte, error) {
	h.log.mu.RLock()
	defer h.log.mu.RUnlock()
	s := h.segment
	if s.frames == nil {
		return nil, ErrGone
	}
	return s.frames[from-s.start : to-s.start], nil
}

// Covers reports whether a position lies in what is held.
func (h *Hold) Covers(at Position) bool {
	h.log.mu.RLock()
	defer h.log.mu.RUnlock()
	return at >= h.segment.start && at < h.segment.end()
}

// Release ends the hold.
func (h *Hold) Release() {
	l, s := h.log, h.segment
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holds--
	if s.holds--; s.holds == 0 && s.retired && s.frames != nil {
		l.retired = slices.DeleteFunc(l.retired, func(other *segment) bool { return other == s })
		l.forget(s)
	}
}

// retire releases a segment of the log, now or when nobody holds it any more.
func (l *Log) retire(s *segment) {
	s.retired = true
	l.retiredBytes += cap(s.frames)
	if s.holds == 0 {
		l.forget(s)
		return
	}
	l.retired = append(l.retired, s)
	for l.retiredBytes > l.maxBytes {
		l.forget(l.retired[0])
		l.retired = slices.Delete(l.retired, 0, 1)
	}
}

// forget gives back the memory of a retired segment.
func (l *Log) forget(s *segment) {
	l.retiredBytes -= cap(s.frames)
	s.frames = nil
}

// Held returns how many holds there are, and how many bytes are in memory only
// for them.
func (l *Log) Held() (holds, bytes int) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.holds, l.retiredBytes
}

// append adds one frame, and releases the oldest segments if the log is full.
// It returns where the log then starts and ends.
func (l *Log) append(frame []byte) (start, end Position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.segments[len(l.segments)-1]
	if len(frame) > cap(last.frames)-len(last.frames) {
		last = &segment{start: last.end(), frames: make([]byte, 0, max(segmentBytes, len(frame)))}
		l.segments = append(l.segments, last)
	}
	last.frames = append(last.frames, frame...)
	l.bytes += len(frame)
	for l.bytes > l.maxBytes && len(l.segments) > 1 {
		oldest := l.segments[0]
		l.segments[0] = nil // the array of segments lives on for a while
		l.segments = l.segments[1:]
		l.bytes -= len(oldest.frames)
		l.retire(oldest)
	}
	return l.segments[0].start, last.end()
}
