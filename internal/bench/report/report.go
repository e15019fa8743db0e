// Package report holds what `revq bench` has measured, and writes it as JSON or
// as tables.
package report

import "time"

// A Report is what was measured. In JSON, rates are per second and sizes in
// bytes.
type Report struct {
	Began       time.Time `json:"began"`
	Machine     Machine   `json:"machine"`
	Interrupted bool      `json:"interrupted,omitempty"` // not everything was measured, or not for the whole time

	Raw      []RawResult       `json:"raw,omitempty"`
	Ingest   []*IngestResult   `json:"ingest,omitempty"`
	Worker   []*WorkerResult   `json:"worker,omitempty"`
	Pipeline []*PipelineResult `json:"pipeline,omitempty"`
	Fanout   []*FanoutResult   `json:"fanout,omitempty"`
	Start    []*StartResult    `json:"start,omitempty"`
	Growth   []*Growth         `json:"growth,omitempty"`
}

// A Machine is what the load ran on. The broker and the daemons may run
// elsewhere.
type Machine struct {
	CPUs    int    `json:"cpus"`
	Model   string `json:"cpu_model"`
	Memory  int64  `json:"memory_bytes"`
	Kernel  string `json:"kernel"`
	Version string `json:"revq_version"`
	Go      string `json:"go_version"`
}

// Empty reports whether nothing was measured.
func (r *Report) Empty() bool {
	n := len(r.Raw) + len(r.Ingest) + len(r.Worker) + len(r.Pipeline) + len(r.Fanout) + len(r.Start)
	for _, g := range r.Growth {
		n += len(g.Ingest) + len(g.Worker)
	}
	return n == 0
}

// RawResult is one measurement of the broker alone.
type RawResult struct {
	What      string           `json:"what"`
	TextBytes int              `json:"text_bytes"`
	InFlight  int              `json:"in_flight"` // messages in flight at once
	Messages  int64            `json:"messages"`
	Seconds   float64          `json:"seconds"`
	PerSecond float64          `json:"per_second"`
	Usage     map[string]Usage `json:"usage,omitempty"` // by process
}

// What a RawResult is of.
const (
	RawPublish       = "publish to a quorum queue, confirmed"
	RawConsume       = "consume from a quorum queue, each acknowledged"
	RawStreamPublish = "publish to a stream, confirmed"
	RawStreamConsume = "consume from a stream, acknowledged in groups"
)

// IngestResult is how fast an API accepts texts. Rates and counts are of texts,
// and of the time after the warm-up.
type IngestResult struct {
	Connections int    `json:"connections"`
	Sites       int    `json:"sites"`
	Kind        string `json:"kind"`
	Batch       int    `json:"batch"`
	TextBytes   int    `json:"text_bytes"`

	// Depth is the number of tasks in the queue at the start, where that is
	// what is measured.
	Depth int64 `json:"depth,omitempty"`

	Seconds   float64       `json:"seconds"`
	Answers   map[int]int64 `json:"answers"`  // texts by HTTP status; 0 is an answer that says nothing of a text
	Lost      int64         `json:"lost"`     // texts of requests whose connection broke
	Accepted  int64         `json:"accepted"` // texts answered 202
	PerSecond float64       `json:"accepted_per_second"`
	Latency   Latency       `json:"latency"` // of requests, each from its sending to its answer

	Usage map[string]Usage `json:"usage,omitempty"` // by process

	// Total is how many texts were accepted, with those before and after the
	// time that counts.
	Total int64 `json:"-"`
}

// WorkerResult is how fast workers empty a queue that was full when they
// started.
type WorkerResult struct {
	Workers     int `json:"workers"`
	Concurrency int `json:"concurrency"` // tasks at once, of each worker
	TextBytes   int `json:"text_bytes"`

	Queued    int64   `json:"queued"` // when they started; some tasks are done before all workers are ready
	Seconds   float64 `json:"seconds"`
	Results   int64   `json:"results"` // that reached a listener, without the first
	PerSecond float64 `json:"results_per_second"`

	Usage map[string]Usage `json:"usage,omitempty"` // by process
}

// PipelineResult is how long texts take from the API to a listener, and how
// many get there.
type PipelineResult struct {
	Rate        float64 `json:"texts_due_per_second"` // 0 for as many as possible
	InFlight    int     `json:"in_flight,omitempty"`
	Connections int     `json:"connections"`
	TextBytes   int     `json:"text_bytes"`

	Seconds   float64       `json:"seconds"`
	Results   int64         `json:"results"` // that arrived
	PerSecond float64       `json:"results_per_second"`
	Latency   Latency       `json:"latency"` // from when a text was due to the listener's frame
	Answers   map[int]int64 `json:"answers"` // to all texts, by HTTP status
	Missing   int64         `json:"missing"` // texts accepted whose result did not arrive
	Repeated  int64         `json:"repeated"`

	Usage map[string]Usage `json:"usage,omitempty"` // by process
}

// FanoutResult is how messages reach many listeners of a websocket server.
type FanoutResult struct {
	Server    string `json:"server"`
	Listeners int    `json:"listeners"`
	TextBytes int    `json:"text_bytes"`
	Window    int    `json:"window"` // messages that not all listeners have, at most

	ConnectsPerSecond float64 `json:"connects_per_second"`

	// The server's memory before the listeners connected, when all were
	// connected and nothing had been sent, and after as many messages as
	// possible; 0 if the server's process is not visible.
	ResidentBefore int64   `json:"resident_before_bytes,omitempty"`
	ResidentIdle   int64   `json:"resident_idle_bytes,omitempty"`
	ResidentFull   int64   `json:"resident_full_bytes,omitempty"`
	PerListener    float64 `json:"resident_per_listener_bytes,omitempty"`

	Light  *FanoutLight `json:"light,omitempty"`
	Full   *FanoutFull  `json:"full,omitempty"`
	Rounds []Round      `json:"rounds,omitempty"`

	Closed int64  `json:"closed"` // listeners that the server has closed
	Reason string `json:"closed_reason,omitempty"`
}

// FanoutLight is the part of a FanoutResult with few messages.
type FanoutLight struct {
	Rate    float64 `json:"messages_per_second"`
	Each    Latency `json:"each"` // from when a message was due to each listener
	Last    Latency `json:"last"` // from when a message was due to the last listener
	Missing int64   `json:"missing"`
}

// FanoutFull is the part with as many messages as possible.
type FanoutFull struct {
	Seconds      float64 `json:"seconds"`
	Deliveries   int64   `json:"deliveries"`
	PerSecond    float64 `json:"deliveries_per_second"`
	Messages     float64 `json:"messages_per_second"`
	ServerMicros float64 `json:"server_cpu_us_per_delivery,omitempty"`
	LoadMicros   float64 `json:"load_cpu_us_per_delivery"`
	Others       float64 `json:"others_cpus"` // processors that everything else kept busy, the broker among it
}

// A Round is the figures of all listeners leaving and connecting again.
type Round struct {
	Connected int64 `json:"resident_connected_bytes"`
	Left      int64 `json:"resident_left_bytes"`
}

// StartResult is how long a daemon takes until it is ready, while the broker is
// up, and how large its program is.
type StartResult struct {
	Daemon   string         `json:"daemon"`
	Ready    []Milliseconds `json:"ready_after_ms"` // from its fork to READY, of each start
	Bytes    int64          `json:"binary_bytes"`
	Resident int64          `json:"resident_bytes"` // once ready
}

// A Growth is how costs grow with something.
type Growth struct {
	Over   string          `json:"over"`
	Ingest []*IngestResult `json:"ingest,omitempty"`
	Worker []*WorkerResult `json:"worker,omitempty"`
}

// Usage is what processes used while something was measured.
type Usage struct {
	CPU      float64 `json:"cpu_seconds"`
	Resident int64   `json:"resident_bytes"` // at the end
}

// Others is the name under which Usage has everything else on this machine. If it
// is high, a measurement means little.
const Others = "others"

// Latency sums up latencies.
type Latency struct {
	Count int64        `json:"count"`
	P50   Milliseconds `json:"p50_ms"`
	P90   Milliseconds `json:"p90_ms"`
	P99   Milliseconds `json:"p99_ms"`
	P999  Milliseconds `json:"p999_ms"`
	Max   Milliseconds `json:"max_ms"`
}

// Milliseconds is a duration in a report.
type Milliseconds float64

// Millis returns d in milliseconds.
func Millis(d time.Duration) Milliseconds {
	return Milliseconds(float64(d) / float64(time.Millisecond))
}
