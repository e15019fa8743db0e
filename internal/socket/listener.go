package socket

import (
	"net"
	"time"

	"github.com/revq/revq/internal/feed"
)

// A listener is a connection and its place in a log. It belongs to one shard
// and is touched by nothing else, so it needs no lock, no goroutine and no
// buffer; what is below is all that an idle one costs beside its socket. One
// whose connection cannot be polled belongs to a plain instead.
type listener struct {
	conn  net.Conn // keeps fd open
	fd    int      // in a shard
	index int      // in the shard's list

	dialect dialect
	log     *feed.Log
	pos     feed.Position // everything before it has been written; feed.Pending before the greeting

	// A frame that was written in part ends at frameEnd: nothing but the log's
	// bytes may be written before that. They are held meanwhile, since the log
	// moves on. held is nil between two frames.
	frameEnd feed.Position
	held     *feed.Hold

	// control holds bytes that go out before anything else from the log:
	// greeting, ping, pong, close.
	control []byte

	blockedSince time.Time // when its socket took no more; zero if it does
	waited       bool      // for its position, when it was to be pinged
	slow         bool      // it was given room for a farewell, since it was blocked for too long
	pingedAt     time.Time // zero if it has shown itself since
	heard        int       // bytes received since the last ping

	in      *inbound  // nil between messages
	deaf    bool      // it broke the protocol: nothing more is read of what it sends
	leaving bool      // a farewell is the last thing in control, or sent
	leftAt  time.Time // when the farewell was sent
}

// maxControl bounds what a listener can make us owe it: someone who sends
// pings and reads no pongs is closed.
const maxControl = 4 << 10

// dismiss has l told why it is closed, as soon as it takes more.
func (l *listener) dismiss(why farewell) {
	if !l.leaving {
		l.leaving = true
		l.control = l.dialect.appendBye(l.control, why)
	}
}

// next returns what is to be written to l, if anything, and whether it comes
// from the log. An error means that nothing can be written to l any more.
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
	b, err = l.log.Read(l.pos)
	if err != nil {
		l.dismiss(byeFellBehind)
		return l.next()
	}
	return b, true, nil
}

// greet greets l if it is known where it stands. Before, a greeting would
// promise what nobody could keep: who is greeted can resume from there.
func (l *listener) greet() {
	pos, at := l.log.Live()
	if l.pos = pos; pos != feed.Pending {
		l.control = feed.AppendGreeting(l.control, l.log.Format(), at, Greeting)
	}
}

// wrote records that the first n bytes were written of what next has returned.
// It returns true if these were l's last words.
func (l *listener) wrote(b []byte, n int, fromLog bool) (last bool) {
	if fromLog {
		l.wroteFrames(b, n)
	} else if l.control = l.control[n:]; len(l.control) == 0 {
		l.control = nil
	}
	return l.leaving && l.held == nil && l.control == nil
}

// wroteFrames is wrote for bytes of the log. They begin with what is left of
// the frame that is held.
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

// release gives up what l holds of the log.
func (l *listener) release() {
	if l.held != nil {
		l.held.Release()
		l.held = nil
	}
}

// close closes l's connection, after which nothing is written to l.
func (l *listener) close() {
	l.release()
	l.conn.Close()
}

// frameEnd returns where the frame ends that byte n-1 is in, of frames in b of
// which one ends, or the first begins, at end.
func frameEnd(d dialect, b []byte, end, n int) int {
	for end < n {
		end += d.frameLength(b[end:])
	}
	return end
}

// receive takes in what l has sent. It returns true when nobody waits for
// anything any more. parser is for listeners that are between messages.
func (l *listener) receive(b []byte, cfg *Config, parser *inbound) (gone bool) {
	l.pingedAt = time.Time{}
	if l.heard += len(b); l.heard > maxHeard {
		l.dismiss(byeTooMuch)
	}
	return l.dialect.receive(l, b, cfg.MaxMessage, parser)
}

// ping asks l whether it is still there. It returns false if l has not shown
// itself since it was asked an interval ago. One that was not greeted for a
// whole interval is better served by another site.
func (l *listener) ping(now time.Time, interval time.Duration) (there bool) {
	if l.pos == feed.Pending {
		if l.waited {
			l.dismiss(byeNoBroker)
		}
		l.waited = true
	}
	switch {
	case l.leaving:
	case l.pingedAt.IsZero() || !l.dialect.answersPings():
		l.pingedAt, l.heard = now, 0
		l.control = l.dialect.appendPing(l.control)
	default:
		return now.Sub(l.pingedAt) < interval
	}
	return true
}
