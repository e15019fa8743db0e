package socket

import (
	"sync/atomic"
	"time"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/tally"
	"github.com/revq/revq/internal/wire"
)

// formatNames are the names of the formats of the feed, in their order.
var formatNames = [...]string{feed.Text: "text", feed.JSON: "json", feed.Events: "events"}

// closes are the reasons for the end of a listener's connection. The last two
// are not farewells.
var closes = [...]struct {
	why  farewell
	name string
}{
	{byeFellBehind, "fell_behind"}, {byeTooSlow, "too_slow"}, {byeTooMuch, "too_much"}, {byeRestart, "restart"},
	{byeFull, "full"}, {byeNoBroker, "no_broker"}, {byeTurnOver, "turn_over"}, {byeNoHistory, "no_history"},
	{byeOver, "over"}, {byeNoResult, "over"}, {farewell{code: wire.CloseProtocolError}, "protocol"},
	{farewell{code: wire.CloseGap}, "gap"}, {farewell{}, "left"},
}

const (
	protocolClose = len(closes) - 3
	gapClose      = len(closes) - 2
	leftClose     = len(closes) - 1
)

// The sources of what listeners that resume are sent.
const (
	fromMemory = iota
	fromBroker
	fromNowhere
)

var sourceNames = [...]string{fromMemory: "memory", fromBroker: "broker", fromNowhere: "none"}

// counts are what a server counts. A nil counts counts nothing.
type counts struct {
	listeners [len(formatNames)]atomic.Int64
	closes    [len(closes)]atomic.Int64
	resumes   [len(sourceNames)]atomic.Int64
	gaps      atomic.Int64
	bytes     atomic.Int64 // written to listeners
	delivery  *tally.Times
	newest    func() (done time.Time)
}

func newCounts(f *feed.Feed) *counts {
	return &counts{delivery: tally.NewTimes(tally.Quick), newest: f.Newest}
}

// closed counts a connection that is ended for a reason of ours.
func (c *counts) closed(why farewell) {
	if c == nil {
		return
	}
	for i := range protocolClose {
		if closes[i].why == why {
			c.closes[i].Add(1)
			return
		}
	}
	c.closes[protocolClose].Add(1)
}

// left counts a listener that is gone.
func (c *counts) left(l *listener) {
	c.listeners[l.log.Format()].Add(-1)
	if !l.dismissed {
		c.closes[leftClose].Add(1)
	}
}

// resumed counts a listener that resumes, after it was brought to its place or
// not.
func (c *counts) resumed(err error, broker bool) {
	source := fromMemory
	switch {
	case broker:
		source = fromBroker
	case err != nil:
		source = fromNowhere
	}
	c.resumes[source].Add(1)
}

// MaxListeners returns how many listeners may be connected.
func (s *Server) MaxListeners() int { return s.cfg.MaxListeners }

// ListenersBy calls each with every format, and how many listeners use it.
func (s *Server) ListenersBy(each func(format string, listeners int64)) {
	for i, name := range formatNames {
		each(name, s.counts.listeners[i].Load())
	}
}

// Closes calls each with every reason for the end of a connection, and how many
// connections ended for it.
func (s *Server) Closes(each func(reason string, listeners int64)) {
	for i, is := range closes {
		if i > 0 && closes[i-1].name == is.name {
			continue // its connections are counted with the previous one
		}
		n := s.counts.closes[i].Load()
		if next := i + 1; next < len(closes) && closes[next].name == is.name {
			n += s.counts.closes[next].Load()
		}
		each(is.name, n)
	}
}

// Resumes calls each with every source, and how many listeners resumed from it:
// from this server's memory, from the broker, or not at all.
func (s *Server) Resumes(each func(source string, listeners int64)) {
	for i, name := range sourceNames {
		each(name, s.counts.resumes[i].Load())
	}
}

// Gaps returns how many listeners that resumed were told of a gap.
func (s *Server) Gaps() int64 { return s.counts.gaps.Load() }

// Sent returns how many bytes were written to listeners.
func (s *Server) Sent() int64 { return s.counts.bytes.Load() }

// DeliveryTimes returns how long it took from the end of a task until its
// result was written to all listeners of a shard that take it. Of the results
// that are written at once, only the newest one counts. The clocks of the
// workers' hosts are part of it.
func (s *Server) DeliveryTimes() tally.Snapshot { return s.counts.delivery.Snapshot() }
