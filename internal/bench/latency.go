package bench

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// A histogram records latencies.
type histogram struct{ h *hdrhistogram.Histogram }

// Latencies from a microsecond to five minutes are told apart to three digits. That takes some 200 KiB.
const (
	longestLatency  = 5 * time.Minute
	latencyDigits   = 3
	latencyUnit     = time.Microsecond
	longestRecorded = int64(longestLatency / latencyUnit)
)

func newHistogram() *histogram {
	return &histogram{hdrhistogram.New(1, longestRecorded, latencyDigits)}
}

// record adds a latency. What is out of the range counts as its end.
func (h *histogram) record(d time.Duration) {
	h.h.RecordValue(min(max(int64(d/latencyUnit), 1), longestRecorded)) // which is in the range
}

// Latency sums up a histogram. In JSON, times are in milliseconds.
type Latency struct {
	Count int64        `json:"count"`
	P50   Milliseconds `json:"p50_ms"`
	P90   Milliseconds `json:"p90_ms"`
	P99   Milliseconds `json:"p99_ms"`
	P999  Milliseconds `json:"p999_ms"`
	Max   Milliseconds `json:"max_ms"`
}

// Milliseconds is a time as it stands in a report.
type Milliseconds float64

func milliseconds(d time.Duration) Milliseconds {
	return Milliseconds(float64(d) / float64(time.Millisecond))
}

func (h *histogram) latency() Latency {
	at := func(quantile float64) Milliseconds {
		return milliseconds(time.Duration(h.h.ValueAtQuantile(quantile)) * latencyUnit)
	}
	return Latency{
		Count: h.h.TotalCount(),
		P50:   at(50), P90: at(90), P99: at(99), P999: at(99.9),
		Max: milliseconds(time.Duration(h.h.Max()) * latencyUnit),
	}
}

// A schedule says when texts are due that come at a constant rate, whether or not they can be sent then: latencies
// are counted from that time. (Coordinated omission would be to count from when a text was sent: a server that stalls
// holds up the client, too, which then sends less and measures few of the long latencies.)
type schedule struct {
	began time.Time
	every time.Duration
	next  int64 // number of the text that is due next
}

func newSchedule(began time.Time, rate float64) *schedule {
	return &schedule{began: began, every: time.Duration(float64(time.Second) / rate)}
}

// due returns when text n, from 0, is due.
func (s *schedule) due(n int64) time.Time { return s.began.Add(time.Duration(n) * s.every) }

// take returns the time at which the next text was due, if that is not after now.
func (s *schedule) take(now time.Time) (due time.Time, ok bool) {
	due = s.due(s.next)
	if due.After(now) {
		return due, false
	}
	s.next++
	return due, true
}
