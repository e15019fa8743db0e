package socket

import (
	"net"
	"time"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/token"
	"github.com/revq/revq/internal/wire"
)

// A listener is a connection and its place in a log. It belongs to one shard,
// and nothing else uses it, so it needs no lock, no goroutine and no buffer: an
// idle listener costs this struct and its socket. A listener whose connection
// cannot be polled belongs to the hub instead.
type listener struct {
	conn  net.Conn // keeps fd open
	fd    int      // of the socket, also of one below TLS; -1 if there is none
	index int      // in the shard's list

	permit *token.Permit // nil without tokens
	client *front.Client // nil without limits

	dialect dialect
	log     *feed.Log
	view    *feed.View    // of what it wants; nil for everything
	pos     feed.Position // everything before it has been written; feed.Pending before the greeting

	// If a frame was written in part, it ends at frameEnd, and nothing but its
	// rest may be written next. held keeps that rest after the log has dropped
	// it. held is nil between two frames.
	frameEnd feed.Position
	held     *feed.Hold

	// control holds bytes that are written before the next frame of the log:
	// greeting, ping, pong, close.
	control []byte

	phase  phase
	slow   bool      // it was blocked for too long, and makeRoom was called for a farewell
	waited bool      // it had no position yet when a ping was due
	silent bool      // it has sent nothing since the last ping
	heard  int       // bytes received since the last ping, or since the farewell
	since  time.Time // when the phase began; not set for open
	pingAt time.Time // when the next ping is due

	in      *inbound // nil between messages
	deaf    bool     // it broke the protocol: what it sends is no longer parsed
	leaving bool     // a farewell is at the end of control, or was sent

	dismissed bool // the reason for its end was counted
	counts    *counts
}

// maxControl bounds the bytes that a listener can make the server store: one
// that sends pings and does not read the pongs is closed.
const maxControl = 4 << 10

// dismiss appends a farewell to what l is sent. Its connection then ends.
func (l *listener) dismiss(why farewell) {
	if !l.leaving {
		l.leaving, l.dismissed = true, true
		l.counts.closed(why)
		l.control = l.dialect.appendBye(l.control, why)
	}
}

// next returns the bytes to write to l next, if any, and whether they come from
// the log. An error means that nothing can be written to l any more.
func (l *listener) next() (b []byte, fromLog bool, err error) {
	if l.pos == feed.Pending && !l.leaving {
		l.greet()
	}
	if len(l.control) > 0 || l.leaving || l.pos == feed.Pending {
		if l.held == nil {
			return l.control, false, nil
		}
		b, err = l.held.Read(l.pos, l.frameEnd)
		return b, true, err
	}
	if l.view != nil {
		return l.nextWanted()
	}
	b, err = l.log.Read(l.pos)
	if err != nil {
		l.dismiss(byeFellBehind)
		return l.next()
	}
	return b, true, nil
}

// greet greets l once the log has a live position. A greeting promises that the
// listener can resume from its mark, which cannot be kept before.
func (l *listener) greet() {
	pos, at := l.log.Live()
	if l.view != nil {
		pos, at = l.view.Live()
	}
	if l.pos = pos; pos != feed.Pending {
		l.control = feed.AppendGreeting(l.control, l.log.Format(), at, wire.Greeting)
	}
}

// wrote records that the first n bytes of b, which next returned, were written.
// It returns true if they end with l's farewell.
func (l *listener) wrote(b []byte, n int, fromLog bool, now time.Time) (last bool) {
	l.phase = open
	if fromLog {
		l.wroteFrames(b, n)
	} else if l.control = l.control[n:]; len(l.control) == 0 {
		l.control = nil
	}
	if last = l.leaving && l.held == nil && l.control == nil; last {
		l.phase, l.since, l.heard = left, now, 0
	}
	return last
}

// wroteFrames is wrote for bytes of the log. They begin with the rest of the
// frame that is held, if one is.
func (l *listener) wroteFrames(b []byte, n int) {
	begin := 0
	if l.held != nil {
		begin = int(l.frameEnd - l.pos)
	}
	if n < len(b) || n < begin {
		l.frameEnd = l.pos + feed.Position(frameEnd(l.dialect, b, begin, n))
	} else {
		l.frameEnd = l.pos + feed.Position(n)
	}
	l.pos += feed.Position(n)
	switch {
	case l.pos == l.frameEnd:
		l.release()
	case l.held == nil:
		l.held = l.log.Hold(l.pos)
	case !l.held.Covers(l.pos):
		l.release()
		l.held = l.log.Hold(l.pos)
	}
}

// release releases the part of the log that l holds.
func (l *listener) release() {
	if l.held != nil {
		l.held.Release()
		l.held = nil
	}
}

// close releases what l holds and closes its connection.
func (l *listener) close() {
	l.release()
	l.conn.Close()
}

// frameEnd returns the end of the frame that byte n-1 of b is in. end is the
// end of an earlier frame in b, or 0.
func frameEnd(d dialect, b []byte, end, n int) int {
	for end < n {
		end += d.frameLength(b[end:])
	}
	return end
}

// receive handles the bytes b that l has sent. It returns true when l has
// answered a farewell, or goes on sending. parser is for listeners that are between messages.
func (l *listener) receive(b []byte, cfg *Config, parser *inbound) (gone bool) {
	l.silent = false
	if l.heard += len(b); l.heard > maxHeard {
		l.dismiss(byeTooMuch)
	}
	// One that takes no notice of the farewell is not waited for. The farewell
	// has to be written first: with the connection it would be lost.
	if l.heard > maxFlood || l.phase == left && l.heard > 4*maxHeard {
		return true
	}
	return l.dialect.receive(l, b, cfg.MaxMessage, parser)
}
