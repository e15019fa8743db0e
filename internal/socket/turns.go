package socket

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/revq/revq/internal/front"
)

const (
	// minTurn is how long a listener may catch up at least, even if others
	// wait: long enough for tens of megabytes over a fast network.
	minTurn = 5 * time.Second

	// turnRate is how many bytes a second a listener must take, on average, to
	// keep its place after minTurn while another listener waits.
	turnRate = 64 << 10

	// turnLength is how long a fast listener keeps its place while another
	// listener waits.
	turnLength = 30 * time.Second

	// maxTurn is how long a catch-up may take even if nobody waits, since it
	// occupies a connection to the broker.
	maxTurn = 10 * time.Minute

	// leftTick is how often the server checks whether a listener that catches
	// up has left, or a client that waits for a result. Nothing reads from its
	// connection meanwhile.
	leftTick = 250 * time.Millisecond

	// placePatience is how long a listener waits for the place of another one
	// whose turn was cut.
	placePatience = 5 * time.Second
)

var (
	errTooMany  = errors.New("the maximum number of listeners is reading from the broker")
	errTurnOver = errors.New("the turn is over: resume again")
	errLeft     = errors.New("the listener has left")
)

// turns assigns the places for listeners that catch up from the broker. If no
// place is free, a listener gets the place of one that has had its turn. That
// one is told to resume again, and continues from its last result.
type turns struct {
	maxTurns int
	long     longTurn

	mu      sync.Mutex
	running map[*turn]struct{}
}

// A turn is one catch-up. Its context ends when the turn is cut.
type turn struct {
	conn  net.Conn
	began time.Time
	sent  atomic.Int64 // bytes
	ctx   context.Context
	end   context.CancelCauseFunc
	over  chan struct{} // closed by finish

	claimed bool // another one waits for it; guarded by turns

	mu       sync.Mutex // guards the deadline of writes
	finished bool
}

func newTurns(maxTurns int) *turns {
	return &turns{maxTurns: maxTurns, running: make(map[*turn]struct{}), long: longTurn{place: make(chan struct{}, 1), tick: minTurn}}
}

// begin waits for a place. The caller must call finish.
func (ts *turns) begin(ctx context.Context, conn net.Conn) (*turn, error) {
	late := time.NewTimer(placePatience)
	defer late.Stop()
	for {
		t, other := ts.take(ctx, conn)
		switch {
		case t != nil:
			go t.watch()
			return t, nil
		case other == nil:
			return nil, errTooMany
		}
		other.cut(errTurnOver)
		select {
		case <-other.over:
		case <-late.C:
			return nil, errTooMany
		case <-ctx.Done():
		}
	}
}

// take returns a turn, or else another turn to cut for it, or neither.
func (ts *turns) take(ctx context.Context, conn net.Conn) (t, other *turn) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ctx.Err() != nil { // no turn begins once await was called
		return nil, nil
	}
	if len(ts.running) < ts.maxTurns {
		t = &turn{conn: conn, began: time.Now(), over: make(chan struct{})}
		t.ctx, t.end = context.WithCancelCause(ctx)
		ts.running[t] = struct{}{}
		return t, nil
	}
	for running := range ts.running {
		if !running.claimed && isOver(time.Since(running.began), running.sent.Load()) &&
			(other == nil || running.began.Before(other.began)) {
			other = running
		}
	}
	if other != nil {
		other.claimed = true
	}
	return nil, other
}

// isOver reports whether a listener must give its place to one that waits,
// after it has caught up for the time took and was sent that many bytes.
func isOver(took time.Duration, sent int64) bool {
	return took >= turnLength || took >= minTurn && sent < int64(took.Seconds()*turnRate)
}

// finish ends the turn and frees its place.
func (ts *turns) finish(t *turn) {
	t.mu.Lock()
	t.finished = true
	t.end(nil)
	t.conn.SetWriteDeadline(time.Time{}) // the shard or the hub, which writes next, has timeouts of its own
	t.mu.Unlock()
	ts.mu.Lock()
	delete(ts.running, t)
	ts.mu.Unlock()
	close(t.over)
}

// count returns how many listeners catch up.
func (ts *turns) count() int {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return len(ts.running)
}

// await returns when no listener catches up any more, or when ctx ends. The
// contexts that were passed to begin must have ended.
func (ts *turns) await(ctx context.Context) {
	for {
		ts.mu.Lock()
		var one *turn
		for one = range ts.running {
			break
		}
		ts.mu.Unlock()
		if one == nil {
			return
		}
		select {
		case <-one.over:
		case <-ctx.Done():
			return
		}
	}
}

// watch cuts the turn when its context ends, after maxTurn, or when the
// listener has left.
func (t *turn) watch() {
	fd, err := descriptor(front.Below(t.conn))
	ticker := time.NewTicker(leftTick)
	defer ticker.Stop()
	for {
		select {
		case <-t.over:
			return
		case <-t.ctx.Done():
			t.cut(nil)
			return
		case now := <-ticker.C:
			switch {
			case now.Sub(t.began) > maxTurn:
				t.cut(errTurnOver)
			case err == nil && hasLeft(fd):
				t.cut(errLeft)
			}
		}
	}
}

// A longTurn lets one catch-up at a time frame and write a long text: a frame of
// JSON may be six times as long as its text. They take turns in the order in
// which they ask.
type longTurn struct {
	place  chan struct{}
	holder atomic.Pointer[turn] // that has the place
	tick   time.Duration        // see begin
}

// begin waits for the place. If one listener takes longer than tick for a text,
// its turn is cut, so that a slow one does not hold up the others. The caller
// must call end.
func (l *longTurn) begin(t *turn) error {
	tick := time.NewTicker(l.tick)
	defer tick.Stop()
	for before := (*turn)(nil); ; {
		select {
		case l.place <- struct{}{}:
			l.holder.Store(t)
			return nil
		case <-t.ctx.Done():
			return context.Cause(t.ctx)
		case <-tick.C:
			holder := l.holder.Load()
			if holder != nil && holder == before {
				holder.cut(errTurnOver)
			}
			before = holder
		}
	}
}

func (l *longTurn) end() {
	l.holder.Store(nil)
	<-l.place
}

// hasLeft reports whether the peer of a socket has closed its side.
func hasLeft(fd int) bool {
	state := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(state, 0)
	return err == nil && n > 0
}

// cut ends the turn's context and interrupts a write at once. With TLS, nothing
// can be written after an interrupted write, so the write gets closeGrace to
// end.
func (t *turn) cut(why error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.finished {
		return
	}
	t.end(why)
	t.conn.SetWriteDeadline(time.Now().Add(t.grace()))
}

func (t *turn) grace() time.Duration {
	if front.Below(t.conn) != t.conn {
		return closeGrace
	}
	return 0
}

// write writes b within timeout, and returns how many bytes were written. The
// error is the reason why the turn was cut, or errWrite.
func (t *turn) write(b []byte, timeout time.Duration) (n int, err error) {
	t.mu.Lock()
	if cause := context.Cause(t.ctx); cause != nil {
		t.mu.Unlock()
		return 0, cause
	}
	t.conn.SetWriteDeadline(time.Now().Add(timeout))
	t.mu.Unlock()
	for n < len(b) && err == nil {
		var part int
		part, err = t.conn.Write(b[n:min(len(b), n+recordBytes)])
		n += part
		t.sent.Add(int64(part))
	}
	switch cause := context.Cause(t.ctx); {
	case err == nil:
		return n, nil
	case cause != nil && front.Below(t.conn) == t.conn:
		return n, cause
	}
	return n, errWrite
}
