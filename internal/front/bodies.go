package front

import (
	"fmt"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/memory"
)

const (
	// freeBody is the largest body that needs no room in the bound on all of
	// them: an ordinary text is taken however many uploads there are. Those
	// bodies are bounded by the number of connections.
	freeBody = 16 << 10

	// A body must bring pieceBytes in each pieceTime, or it gives its room to
	// others when they need some: 64 KiB a second is what 1 MiB needs anyway
	// to arrive within the read timeout, and more than that.
	pieceBytes = 64 << 10
	pieceTime  = time.Second

	// giveBackAbove is how many bytes of bodies there must have been for their
	// memory to be worth giving back.
	giveBackAbove = 16 << 20
)

var faultSlow = &fault{fasthttp.StatusRequestTimeout, fmt.Sprintf(
	"the body came too slowly while others had no room: send at least %d KiB a second", pieceBytes>>10)}

// A bodies bounds the bytes of all request bodies that are being received or
// handled, as they are announced: fasthttp takes the memory for a whole body
// or chunk when it begins. Nobody is refused, and nobody is too slow, as long
// as there is room.
type bodies struct {
	most    int64 // bytes, in sum
	largest int64 // body that is taken; fasthttp refuses a larger one by itself
	crowded *fault

	mu        sync.Mutex
	sum       int64
	peak      int64 // of sum, since memory was given back
	receiving map[*conn]struct{}
}

// A share is what a connection has of the bound. It is guarded by bodies.mu.
type share struct {
	bytes   int64
	since   time.Time // when the current piece began
	piece   int       // bytes of it
	evicted bool
}

// newBodies returns nil, which bounds nothing, if most is 0. There is always
// room for one of the largest bodies.
func newBodies(most, largest int64) *bodies {
	if most == 0 {
		return nil
	}
	most = max(most, largest)
	return &bodies{
		most: most, largest: largest, receiving: make(map[*conn]struct{}),
		crowded: &fault{fasthttp.StatusServiceUnavailable, fmt.Sprintf(
			"the requests that are being received have %d bytes together, and there is no room for this one: send it again in a second", most)},
	}
}

// announce records that the body which c begins to receive, or receives in
// chunks, has total bytes by now. If there is no room, nothing of it is read.
func (b *bodies) announce(c *conn, total int64) *fault {
	if total <= freeBody || total > b.largest {
		total = 0
	}
	if total == 0 && !c.sharing {
		return nil
	}
	c.sharing = true
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &c.share
	if s.evicted {
		return faultSlow
	}
	now := time.Now()
	if over := b.sum + total - s.bytes - b.most; over > 0 && !b.makeRoom(c, over, now) {
		return b.crowded
	}
	b.add(s, total-s.bytes)
	if _, more := b.receiving[c]; !more {
		s.since, s.piece = now, 0
		b.receiving[c] = struct{}{}
	}
	return nil
}

func (b *bodies) add(s *share, bytes int64) {
	s.bytes += bytes
	b.sum += bytes
	b.peak = max(b.peak, b.sum)
	if b.peak > giveBackAbove && b.sum < b.peak/4 {
		b.peak = b.sum
		memory.GiveBack()
	}
}

// makeRoom ends bodies that come too slowly, but not that of c, until over bytes
// have come free.
func (b *bodies) makeRoom(c *conn, over int64, now time.Time) bool {
	for slow := range b.receiving {
		if slow == c || now.Sub(slow.share.since) <= pieceTime {
			continue
		}
		over -= slow.share.bytes
		b.add(&slow.share, -slow.share.bytes)
		slow.share.evicted = true
		delete(b.receiving, slow)
		slow.SetReadDeadline(now) // it waits in Read
		if over <= 0 {
			return true
		}
	}
	return false
}

// received records n bytes of c's body. It returns faultSlow if c's room has
// been given to others.
func (b *bodies) received(c *conn, n int) *fault {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &c.share
	if s.evicted {
		return faultSlow
	}
	if s.piece += n; s.piece >= pieceBytes {
		s.since, s.piece = time.Now(), 0
	}
	return nil
}

// complete records that the body of c is there: it is being handled.
func (b *bodies) complete(c *conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.receiving, c)
}

// release gives back c's room: its requests have been answered, or it ends.
func (b *bodies) release(c *conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.add(&c.share, -c.share.bytes)
	delete(b.receiving, c)
}
