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
// end when it has been filled from the past.
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

	// live is the position behind what was in the stream before the feed
	// began; Pending until all of that has been appended.
	live atomic.Int64

	mu       sync.RWMutex
	segments []segment // the oldest first; frames are added to the last
	bytes    int       // of all segments
}

// A segment has its full capacity from the start and is only ever appended
// to, so that what was read from it stays valid, also after its release.
type segment struct {
	start  Position
	frames []byte
}

func (s segment) end() Position { return s.start + Position(len(s.frames)) }

func newLog(maxBytes int) *Log {
	l := &Log{maxBytes: maxBytes, segments: []segment{{}}}
	l.live.Store(int64(Pending))
	return l
}

// Live returns the position at which a listener begins that joined while the
// feed was being filled: Pending as long as that goes on.
func (l *Log) Live() Position { return Position(l.live.Load()) }

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
	// Nearly all listeners read from the newest segment.
	for _, s := range slices.Backward(l.segments) {
		if from >= s.start {
			if from < s.end() {
				return s.frames[from-s.start:], nil
			}
			return nil, nil
		}
	}
	return nil, ErrGone
}

// append adds one frame, and releases the oldest segments if the log is full.
// It returns where the log then starts and ends.
func (l *Log) append(frame []byte) (start, end Position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := &l.segments[len(l.segments)-1]
	if len(frame) > cap(last.frames)-len(last.frames) {
		l.segments = append(l.segments, segment{
			start:  last.end(),
			frames: make([]byte, 0, max(segmentBytes, len(frame))),
		})
		last = &l.segments[len(l.segments)-1]
	}
	last.frames = append(last.frames, frame...)
	l.bytes += len(frame)
	for l.bytes > l.maxBytes && len(l.segments) > 1 {
		l.bytes -= len(l.segments[0].frames)
		l.segments[0].frames = nil // the array of segments lives on for a while
		l.segments = l.segments[1:]
	}
	return l.segments[0].start, last.end()
}
