package feed

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/revq/revq/internal/wire"
)

// A Position is a place in a Log, in bytes since the log began. The positions
// that a Log returns lie between two frames.
type Position int64

// Pending is the position of listeners that will begin at the end of the
// backlog, while that is being read.
const Pending Position = -1

// ErrGone means that the frames at a position are no longer kept.
var ErrGone = errors.New("the log no longer holds this position")

// segmentBytes is the size of the pieces in which a log grows and shrinks. One
// write to a listener sends at most the rest of a segment. The size is large
// enough to make writes rare, and small enough to release memory in fine steps.
const segmentBytes = 256 << 10

// A Log holds the frames of one format for any number of listeners. Each frame
// is encoded once, and a listener is only a Position. One writer and many
// readers may use a Log at once; readers never wait for each other.
type Log struct {
	maxBytes int
	format   Format

	// live is the position after the backlog, Pending until all of it has been
	// appended. liveMark is the mark there; it is written before live.
	live     atomic.Int64
	liveMark wire.Mark

	mu       sync.RWMutex
	segments []*segment // the oldest first; frames are added to the last
	bytes    int        // of all segments

	// retired are segments that the log has released and listeners still hold,
	// the oldest first. Together they may have as many bytes as the log.
	retired      []*segment
	retiredBytes int
	holds        int // on all segments
}

// A segment has its full capacity from the start and is only appended to, so
// slices of it stay valid, even after its release.
type segment struct {
	start   Position
	frames  []byte // nil when nobody can read them any more
	holds   int    // number of Holds on it
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

// Live returns the position and the mark after the backlog, where a listener
// begins that joined while the backlog was being read. The position is Pending
// as long as it is being read.
func (l *Log) Live() (Position, wire.Mark) {
	if pos := Position(l.live.Load()); pos != Pending {
		return pos, l.liveMark
	}
	return Pending, wire.Mark{Offset: -1}
}

func (l *Log) isLive() bool { return Position(l.live.Load()) != Pending }

// End returns the position after the newest frame.
func (l *Log) End() Position {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.segments[len(l.segments)-1].end()
}

// Read returns the frames from a position to the end of its segment; none at
// the end of the log. The result ends between two frames. It must not be
// changed, and it stays valid. The error is ErrGone or nil.
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

// find returns the segment that a position is in, the last segment if the
// position is the end, or nil if the log no longer holds the position.
func (l *Log) find(at Position) *segment {
	// Nearly all listeners read from the newest segment.
	for _, s := range slices.Backward(l.segments) {
		if at >= s.start {
			return s
		}
	}
	return nil
}

// A Hold keeps a frame in memory after the log has released it, for a listener
// that has received a part of it: the rest must be sent before anything else,
// even before the reason for a close. It costs no memory as long as the log
// holds the frame.
type Hold struct {
	log     *Log
	segment *segment
}

// Hold returns a hold on the frame at a position that Read has just returned.
// Release must be called.
func (l *Log) Hold(at Position) *Hold {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.find(at)
	if s == nil { // the log released it since Read
		s = &segment{retired: true}
	}
	s.holds++
	l.holds++
	return &Hold{l, s}
}

// Read returns the bytes between two positions in the frame. The error is
// ErrGone if listeners held more bytes than the log's size and these were the
// oldest.
func (h *Hold) Read(from, to Position) ([]byte, error) {
	h.log.mu.RLock()
	defer h.log.mu.RUnlock()
	s := h.segment
	if s.frames == nil {
		return nil, ErrGone
	}
	return s.frames[from-s.start : to-s.start], nil
}

// Covers reports whether a position is in the segment that is held.
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

// retire releases a segment of the log: now, or when nobody holds it any more.
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

// forget releases the memory of a retired segment.
func (l *Log) forget(s *segment) {
	l.retiredBytes -= cap(s.frames)
	s.frames = nil
}

// Held returns the number of holds, and how many bytes are in memory only for
// them.
func (l *Log) Held() (holds, bytes int) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.holds, l.retiredBytes
}

// append adds one frame, and releases the oldest segments if the log is full.
// It returns the new start and end of the log.
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
		l.segments[0] = nil // the array still refers to it otherwise
		l.segments = l.segments[1:]
		l.bytes -= len(oldest.frames)
		l.retire(oldest)
	}
	return l.segments[0].start, last.end()
}
