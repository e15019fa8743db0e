package socket

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// turnLeast is how long a listener may catch up whoever waits: enough for
	// tens of megabytes where the network is fast.
	turnLeast = 5 * time.Second

	// turnRate is how many bytes a second a listener must take, on average, to
	// keep its place after turnLeast when another one waits.
	turnRate = 64 << 10

	// turnLength is how long a fast one keeps it when another one waits.
	turnLength = 30 * time.Second

	// turnMost is how long a catch-up may take though nobody waits: its
	// connection to the broker is one that nobody else has.
	turnMost = 10 * time.Minute

	// leftTick is how often is looked whether a listener that catches up is
	// still there. Nothing else reads from its connection meanwhile.
	leftTick = 250 * time.Millisecond

	// placePatience is how long a listener waits for the place of one whose
	// turn has been ended.
	placePatience = 5 * time.Second
)

var (
	errTooMany  = errors.New("as many listeners as may do so are reading from the broker")
	errTurnOver = errors.New("the turn is over: resume again")
	errLeft     = errors.New("the listener has left")
)

// turns deals out the places of those who catch up from the broker. A listener
// that finds none free gets the place of one that has had its turn: that one is
// told to resume again, and goes on where it stands.
type turns struct {
	most int

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

func newTurns(most int) *turns { return &turns{most: most, running: make(map[*turn]struct{})} }

// begin waits for a place. Finish must be called.
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

// take returns a turn, or another one that is to be cut for it, or neither.
func (ts *turns) take(ctx context.Context, conn net.Conn) (t, other *turn) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ctx.Err() != nil { // nobody begins when await has been called
		return nil, nil
	}
	if len(ts.running) < ts.most {
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

// isOver reports whether a listener that has caught up for a time, and taken so
// many bytes, gives its place to one that waits.
func isOver(took time.Duration, sent int64) bool {
	return took >= turnLength || took >= turnLeast && sent < int64(took.Seconds()*turnRate)
}

// finish gives the place to others.
func (ts *turns) finish(t *turn) {
	t.mu.Lock()
	t.finished = true
	t.end(nil)
	t.conn.SetWriteDeadline(time.Time{}) // whoever writes next has an own idea of it
	t.mu.Unlock()
	ts.mu.Lock()
	delete(ts.running, t)
	ts.mu.Unlock()
	close(t.over)
}

// count returns how many catch up.
func (ts *turns) count() int {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return len(ts.running)
}

// await returns when nobody catches up any more, or ctx ends. The contexts that
// begin is given must have ended.
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

// watch cuts the turn when its context ends, after turnMost, or when the
// listener has left.
func (t *turn) watch() {
	fd, err := descriptor(below(t.conn))
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
			case now.Sub(t.began) > turnMost:
				t.cut(errTurnOver)
			case err == nil && hasLeft(fd):
				t.cut(errLeft)
			}
		}
	}
}

// hasLeft reports whether the peer of a socket has closed its side.
func hasLeft(fd int) bool {
	state := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(state, 0)
	return err == nil && n > 0
}

// cut ends the turn's context. What is being written is given up at once; with
// TLS, which does not go on after that, it has a moment.
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
	if below(t.conn) != t.conn {
		return closeGrace
	}
	return 0
}

// write writes b within a time, and returns how much of it was written. The
// error is why the turn was cut, or errWrite.
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
	case cause != nil && below(t.conn) == t.conn:
		return n, cause
	}
	return n, errWrite
}
