package front

import (
	"fmt"
	"math/bits"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/memory"
)

const (
	// freeBody is the maximum size of a body that is not counted, so that an
	// ordinary text is accepted however many uploads there are. The number of
	// connections bounds those bodies.
	freeBody = 16 << 10

	// A body must bring pieceBytes in each pieceTime, or it loses its room when
	// others need it. To arrive within the default read timeout, 1 MiB needs
	// more than this rate anyway.
	pieceBytes = 64 << 10
	pieceTime  = time.Second

	// giveBackAbove is the total size of bodies above which it is worth
	// returning their memory to the system afterwards.
	giveBackAbove = 16 << 20
)

var faultSlow = &fault{fasthttp.StatusRequestTimeout, fmt.Sprintf(
	"the body came too slowly while others had no room: send at least %d KiB a second", pieceBytes>>10)}

// A bodies bounds the total size of all request bodies that are being received
// or handled. It counts what fasthttp allocates for them: the memory for a whole
// body or chunk when it begins. As long as there is room, it refuses no body and
// ends no slow one.
type bodies struct {
	maxSum  int64
	largest int64 // maximum size of a body; fasthttp refuses a larger one
	crowded *fault

	// maxLeaving bounds leaving. A body that was ended keeps its memory until
	// its goroutine notices, and others have begun in its place by then.
	maxLeaving int64

	mu        sync.Mutex
	sum       int64 // of all shares
	leaving   int64 // of the shares that were ended
	peak      int64 // of sum, since memory was last returned
	receiving map[*conn]struct{}
}

// A share is the part of the bound that a connection uses. bodies.mu guards it.
type share struct {
	bytes   int64
	since   time.Time // when the current piece began
	piece   int       // received bytes of the current piece
	evicted bool
}

// newBodies returns nil, for no bound, if maxSum is 0. The bound has always room
// for one body of the maximum size.
func newBodies(maxSum, largest int64) *bodies {
	if maxSum == 0 {
		return nil
	}
	maxSum = max(maxSum, allocated(largest))
	return &bodies{
		maxSum: maxSum, largest: largest, maxLeaving: max(maxSum/4, allocated(largest)), receiving: make(map[*conn]struct{}),
		crowded: &fault{fasthttp.StatusServiceUnavailable, fmt.Sprintf(
			"other requests use the %d bytes that all bodies may have together: retry in a second", maxSum)},
	}
}

// allocated returns how many bytes fasthttp allocates for a body: up to 100 MiB,
// a power of two.
func allocated(size int64) int64 {
	if size <= 0 || size > 100<<20 {
		return size
	}
	return 1 << bits.Len64(uint64(size-1))
}

// announce records the size of a body that c begins to receive; for a body in
// chunks, the size known by now. It returns a fault if there is no room, and
// then the body is not read.
func (b *bodies) announce(c *conn, total int64) *fault {
	if total = allocated(total); total <= freeBody || total > allocated(b.largest) {
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
	if over := b.sum - b.leaving + total - s.bytes - b.maxSum; over > 0 && !b.makeRoom(c, over, now) {
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

// makeRoom ends bodies that come too slowly, except that of c, until over bytes
// are free. It returns false if they do not suffice.
func (b *bodies) makeRoom(c *conn, over int64, now time.Time) bool {
	for slow := range b.receiving {
		if slow == c || now.Sub(slow.share.since) <= pieceTime {
			continue
		}
		if b.leaving+slow.share.bytes > b.maxLeaving {
			return false
		}
		over -= slow.share.bytes
		b.leaving += slow.share.bytes
		slow.share.evicted = true
		delete(b.receiving, slow)
		slow.SetReadDeadline(now) // ends its Read
		if over <= 0 {
			return true
		}
	}
	return false
}

// received records that c has received n bytes. It returns faultSlow if c has
// lost its room to others.
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

// complete records that the body of c has arrived and is being handled.
func (b *bodies) complete(c *conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.receiving, c)
}

// release frees c's room: its requests were answered, or it ends.
func (b *bodies) release(c *conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c.share.evicted {
		b.leaving -= c.share.bytes
	}
	b.add(&c.share, -c.share.bytes)
	delete(b.receiving, c)
}
