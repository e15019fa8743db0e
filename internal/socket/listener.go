package socket

import (
	"net"
	"time"

	"github.com/revq/revq/internal/feed"
)

// A listener is a connection and its place in a log. It belongs to one shard
// and is touched by nothing else, so it needs no lock, no goroutine and no
// buffer; what is below is all that an idle one costs beside its socket.
type listener struct {
	conn  net.Conn // keeps fd open
	fd    int
	index int // in the shard's list

	dialect dialect
	log     *feed.Log
	pos     feed.Position // everything before it has been written; or feed.Pending

	// torn is where the frame ends that was written in part, if it is behind
	// pos: nothing else may be written before that.
	torn feed.Position

	// control holds bytes that go out before anything else from the log:
	// greeting, ping, pong, close.
	control []byte

	blockedSince time.Time // when its socket took no more; zero if it does
	pingedAt     time.Time // zero if it has shown itself since
	heard        int       // bytes received since the last ping

	in      *inbound  // nil between frames
	leaving bool      // a farewell is the last thing in control, or sent
	leftAt  time.Time // when the farewell was sent
}

// maxControl bounds what a listener can make us owe it: someone who sends
// pings and reads no pongs is closed.
const maxControl = 4 << 10
