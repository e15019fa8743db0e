package api

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/token"
	"github.com/revq/revq/internal/wire"
)

// queues are the named queues that have taken a task of this server. The broker
// would tell neither this server's user nor its clients which queues there are.
type queues struct {
	// names is replaced as a whole, so that requests look names up without a
	// lock.
	names atomic.Pointer[map[string]string] // each name by itself
	mu    sync.Mutex                        // of add
}

// maxKnown bounds how many names are kept; more are not suggested.
const maxKnown = 1000

// of returns the name of the queue that a request is for. It does not copy the
// name of a queue that is known.
func (q *queues) of(h *fasthttp.RequestHeader) string {
	name := front.NameIn(h, wire.QueuePrefix)
	if name == nil {
		return wire.DefaultQueue
	}
	if known := q.names.Load(); known != nil {
		if known, ok := (*known)[string(name)]; ok {
			return known
		}
	}
	return string(name)
}

// add records that the queue exists.
func (q *queues) add(name string) {
	has := func() (map[string]string, bool) {
		names := q.names.Load()
		if names == nil {
			return nil, false
		}
		_, ok := (*names)[name]
		return *names, ok || len(*names) == maxKnown
	}
	if _, ok := has(); ok {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	names, ok := has()
	if ok {
		return
	}
	more := map[string]string{name: name}
	maps.Copy(more, names)
	q.names.Store(&more)
}

// remove forgets a queue that turned out not to exist.
func (q *queues) remove(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	names := q.names.Load()
	if names == nil {
		return
	}
	if _, ok := (*names)[name]; ok {
		fewer := maps.Clone(*names)
		delete(fewer, name)
		q.names.Store(&fewer)
	}
}

// missing returns the problem of a task for a queue that does not exist. It
// names others, those that permit covers.
func (q *queues) missing(name string, permit *token.Permit) *front.Problem {
	q.remove(name)
	detail := fmt.Sprintf("there is no queue %s: make it with `revq setup --queue %s`", name, name)
	var others []string
	if names := q.names.Load(); names != nil {
		others = slices.Sorted(maps.Keys(*names))
	}
	if permit != nil {
		others = slices.DeleteFunc(others, func(other string) bool { return !permit.Queues.Covers(token.Queues{other}) })
	}
	if len(others) > 0 {
		const maxNames = 10
		detail += "; this server has sent tasks to " + strings.Join(others[:min(len(others), maxNames)], ", ")
	}
	return front.NewProblem(fasthttp.StatusNotFound, detail)
}

// queueOf returns the queue that a token must be for.
func (s *Server) queueOf(h *fasthttp.RequestHeader) []string { return []string{s.known.of(h)} }

// checkNamed is checkHead for a path with the name of a queue.
func (s *Server) checkNamed(h *fasthttp.RequestHeader) *front.Problem {
	if err := wire.CheckQueue(string(front.NameIn(h, wire.QueuePrefix))); err != nil {
		return front.NewProblem(fasthttp.StatusNotFound, "there is no such queue: "+err.Error())
	}
	return checkHead(h)
}
