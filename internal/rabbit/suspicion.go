package rabbit

import (
	"errors"
	"time"
)

// suspectAfter is how long a broker with several nodes may confirm nothing while
// messages are in flight. Then the link goes to another node: this one may hang,
// be cut off, or have lost what it passed on to a leader that died (measured on
// 3.10.8: the messages were never confirmed).
const suspectAfter = 2 * time.Second

// suspectStagger is how much longer the next connection of the same publisher
// waits. A session that begins before a queue has another leader is no better
// than the one before, so they do not all begin at once.
const suspectStagger = 500 * time.Millisecond

// suspectAgain is the same for a session that follows such a one, until it has
// confirmed a message. The nodes need a few seconds to give up one that is silent and to give a stream
// another leader. What is published before that may never be confirmed, so the
// sessions are short until then, and one of them begins soon afterwards.
const suspectAgain = time.Second

// suspectTries is how many sessions in a row are given up after that time. After
// them the time doubles, up to stuckTimeout: the broker is slow as a whole, and a
// new session only adds to its work.
const suspectTries = 4

// suspicionAfter returns how long the next session may confirm nothing, after so
// many that were given up, on a connection whose turn comes so much later than
// that of the publisher's first one.
func suspicionAfter(suspects int, stagger time.Duration) time.Duration {
	if suspects == 0 {
		return suspectAfter + stagger
	}
	return min(suspectAgain<<max(0, min(suspects, 16)-suspectTries), stuckTimeout) + stagger/2
}

// lagsAfter is how long a connection may confirm nothing while messages are in
// flight before others are preferred for new messages.
const lagsAfter = 250 * time.Millisecond

// errSuspect ends a session that confirms nothing.
var errSuspect = errors.New("the broker confirms nothing over this connection: its node hangs or was cut off, or a queue has lost its leader")

// mustAnswer ends the session of a pipeline in which messages are in flight if its
// node does not answer. It is done before the session is suspect for another
// reason, so that the link knows which nodes to pass over.
func (p *pipeline) mustAnswer() {
	const within = suspectAfter - 2*lagsAfter
	if p.answers(within) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.silence >= within && p.shared.blocked.Load() == 0 {
		p.s.end(errNoAnswer)
	}
}
