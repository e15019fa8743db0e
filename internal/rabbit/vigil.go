package rabbit

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

const (
	// starveAfter is how long a consumer with room for tasks may receive none
	// before it looks whether tasks wait.
	starveAfter = time.Second

	// starveWithin is how long a waiting task may then take to the consumer.
	// Measured: a few milliseconds.
	starveWithin = 2 * time.Second

	// starveLimit bounds the time before that, which doubles with each session
	// that starves without a single task: to leave the node is no help then.
	starveLimit = time.Minute

	// lookWithin is how long the nodes together may take to say how many tasks
	// wait.
	lookWithin = 2500 * time.Millisecond
)

// errStarved means that tasks wait, and that a consumer gets none.
var errStarved = errors.New("tasks wait, but the node sends none: its consumer has died, or the node was cut off from the others")

// A vigil finds out whether a consumer still receives tasks, in a cluster of
// several nodes. A node can hang, or be cut off from the others, while the
// connection to it stays open, and while the others have tasks that only this
// consumer could take.
type vigil struct {
	cfg           Config
	after, within time.Duration

	heard    atomic.Int64 // tasks that the consumer has received
	starving int          // sessions in a row that starved and received none
}

// begin watches a session until ctx or the session ends.
func (v *vigil) begin(ctx context.Context, s *session, hasRoom func() bool) {
	if s.many {
		go v.watch(ctx, s, min(v.after<<min(v.starving, 16), starveLimit), hasRoom)
	}
}

// ended records the end of a session that began when heard was before.
func (v *vigil) ended(s *session, before int64) {
	if errors.Is(context.Cause(s.ctx), errStarved) && v.heard.Load() == before {
		v.starving++
	} else {
		v.starving = 0
	}
}

// watch ends the session if tasks wait and the consumer gets none although it
// has room for them: with errNoAnswer if its node hangs, otherwise with
// errStarved. A consumer without room is not watched: its tasks are not to be
// dropped for a pause of its node.
func (v *vigil) watch(ctx context.Context, s *session, after time.Duration, hasRoom func() bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	var other *session
	defer func() {
		if other != nil {
			other.close()
		}
	}()
	for {
		if !silent(ctx, v.heard.Load, after) {
			return
		}
		before := v.heard.Load()
		quiet := func() bool { return v.heard.Load() == before && hasRoom() }
		if !quiet() {
			continue
		}
		s.mustAnswer()
		if !quiet() || ctx.Err() != nil {
			continue
		}
		// A node that was cut off may still count tasks that others have done, so
		// two nodes must agree.
		var waiting int
		if other, waiting = v.look(s, other); waiting == 0 || s.reaches(v.within, func() bool { return !quiet() || ctx.Err() != nil }) {
			continue
		}
		urls := around(v.cfg.urls(), other.url)
		second, err := v.lookAt(s, urls[:len(urls)-1])
		if err != nil {
			continue
		}
		second.session.close()
		if second.waiting > 0 && quiet() && ctx.Err() == nil {
			s.end(errStarved)
			return
		}
	}
}

// look returns how many tasks wait, as other says it, a session with another
// node. If there is none or it does not answer, look returns a new one. A node
// that cannot say it counts no tasks.
func (v *vigil) look(s, other *session) (*session, int) {
	if other != nil && other.ctx.Err() == nil {
		if n, err := v.waiting(other); err == nil {
			return other, n
		}
		other.close()
	}
	found, err := v.lookAt(s, around(v.cfg.urls(), s.url))
	if err != nil {
		return nil, 0
	}
	return found.session, found.waiting
}

// A view is what a node says of the queue.
type view struct {
	session *session
	waiting int
}

// lookAt returns the view of the first node that has one.
func (v *vigil) lookAt(s *session, urls []string) (view, error) {
	return elsewhere(s.ctx, urls, lookWithin, func(ctx context.Context, url string) (view, error) {
		other, err := open(ctx, v.cfg, url, "look")
		if err != nil {
			return view{}, err
		}
		defer context.AfterFunc(ctx, func() { other.raw.Close() })()
		n, err := v.waiting(other)
		if err != nil {
			other.close()
		}
		return view{other, n}, err
	}, func(late view) { late.session.close() })
}

// waiting asks a node how many tasks wait.
func (v *vigil) waiting(other *session) (n int, err error) {
	hung := time.AfterFunc(lookWithin, func() { other.raw.Close() })
	defer hung.Stop()
	name := TasksQueueOf(v.cfg.Topology.Queue)
	q, err := other.ch.QueueDeclarePassive(name, true, false, false, false, nil)
	if err != nil {
		return 0, fmt.Errorf("look for %s: %w", name, err)
	}
	return q.Messages, nil
}
