package rabbit

import (
	"sync"
	"sync/atomic"
)

// shared is the state that the pipelines of one publisher share.
type shared struct {
	// blocked is how many of the pipelines the broker has blocked. An alarm
	// concerns the whole cluster, so if it blocks one, all are taken to be
	// blocked.
	blocked atomic.Int32

	// published is when a message was last published, in nanoseconds since
	// 1970.
	published atomic.Int64

	// confirmed is when the broker last confirmed a message, likewise, in a
	// cluster.
	confirmed atomic.Int64

	// lagging is how many pipelines lag, by the URL of their node.
	mu      sync.Mutex
	lagging map[string]int
	lags    atomic.Bool // any does
}

// lagsAt reports whether a pipeline at a node lags.
func (s *shared) lagsAt(url string) bool {
	if !s.lags.Load() {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lagging[url] > 0
}

// count adds n pipelines that lag.
func (s *shared) count(url string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lagging == nil {
		s.lagging = make(map[string]int)
	}
	if s.lagging[url] += n; s.lagging[url] == 0 {
		delete(s.lagging, url)
	}
	s.lags.Store(len(s.lagging) > 0)
}
