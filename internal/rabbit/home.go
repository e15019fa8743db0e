package rabbit

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"
)

// homeAfter is how long a session lasts at another node than its link's own
// before it moves back, if that node takes connections again. Otherwise all
// connections would gather at the nodes that never failed, and fail together
// with the next one. The time doubles, up to homeLimit, when a session there
// ends before it has lasted for that long.
const (
	homeAfter = 10 * time.Second
	homeLimit = 16 * time.Minute
)

// errHome ends a session that moves back to the link's own node.
var errHome = errors.New("the connection moves back to its own node")

// A home says when a link moves back to its own node.
type home struct {
	after time.Duration
	fails int // moves in a row after which the session ended soon
	moved bool
}

// wait returns how long a session lasts before it moves.
func (h *home) wait() time.Duration {
	return min(h.after<<min(h.fails, 16), max(homeLimit, h.after))
}

// ended records the end of a session. It returns whether the next one begins at
// the link's own node.
func (h *home) ended(why error, lasted time.Duration) (back bool) {
	switch {
	case errors.Is(why, errHome):
		h.moved = true
		return true
	case !h.moved:
	case lasted < h.after:
		h.fails++
	default:
		h.fails = 0
	}
	h.moved = false
	return false
}

// homesick calls leave when s should move: it is at another node than the link's
// own, which takes connections. It returns when the session ends.
func (l *link) homesick(s *session, leave func()) {
	wait := l.home.wait()
	for s.many && sleep(s.ctx, wait+rand.N(wait/2)) {
		urls := l.cfg.urls()
		url := urls[l.first%len(urls)]
		if url == s.url {
			return
		}
		if l.works(s.ctx, url) {
			leave()
			return
		}
	}
}

// works reports whether a node takes connections, has what the link uses, and
// serves it.
func (l *link) works(ctx context.Context, url string) bool {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.DialTimeout)
	defer cancel()
	other, err := open(ctx, l.cfg, url, l.role)
	if err != nil {
		return false
	}
	defer other.close()
	var missing []object
	err = other.bounded(ctx, func() (err error) {
		missing, err = other.missing(l.cfg.Topology, func(o object) bool { return slices.Contains(l.uses, o.name) })
		return err
	})
	if err != nil || len(missing) > 0 {
		return false
	}
	return l.serves == nil || l.serves(ctx, other) == nil
}
