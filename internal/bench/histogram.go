package bench

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/revq/revq/internal/bench/report"
)

// A histogram records latencies.
type histogram struct{ h *hdrhistogram.Histogram }

// A histogram covers latencies from a microsecond to five minutes with three
// significant digits. That takes some 200 KiB.
const (
	longestLatency  = 5 * time.Minute
	latencyDigits   = 3
	latencyUnit     = time.Microsecond
	longestRecorded = int64(longestLatency / latencyUnit)
)

func newHistogram() *histogram {
	return &histogram{hdrhistogram.New(1, longestRecorded, latencyDigits)}
}

// record adds a latency. One out of the range counts as the nearest in it.
func (h *histogram) record(d time.Duration) {
	h.h.RecordValue(min(max(int64(d/latencyUnit), 1), longestRecorded)) // fails only out of the range
}

// latency sums up what was recorded.
func (h *histogram) latency() report.Latency {
	at := func(quantile float64) report.Milliseconds {
		return report.Millis(time.Duration(h.h.ValueAtQuantile(quantile)) * latencyUnit)
	}
	return report.Latency{
		Count: h.h.TotalCount(),
		P50:   at(50), P90: at(90), P99: at(99), P999: at(99.9),
		Max: report.Millis(time.Duration(h.h.Max()) * latencyUnit),
	}
}
