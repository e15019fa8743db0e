package bench

import (
	"time"

	"github.com/revq/revq/internal/bench/load"
	"github.com/revq/revq/internal/wire"
)

// Config says what to measure. DefaultConfig returns one that can be used as it
// is.
type Config struct {
	// Up starts a private broker and daemons, and measures those.
	Up bool

	// API are the URLs of the sites of a running API, Socket is a URL of its
	// socket server, and AMQP that of its broker. Without AMQP, the broker alone
	// is not measured for comparison.
	API    []string
	Socket string
	AMQP   string

	// Foreign allows targets on other machines. The default is false, so that
	// nobody puts a load on somebody else's machine by mistake.
	Foreign bool

	Duration time.Duration // of each measurement
	Warmup   time.Duration // before each measurement
	Count    int64         // ends a measurement early, after so many texts; 0 for no end

	// Ingest.
	Connections int // 0 for a number that suits Kind
	Kind        load.Kind
	Batch       int // texts in a request, of NDJSON
	TextBytes   int // length of a text; also of Raw and Worker

	// Raw.
	RawInFlight int // messages in flight at once

	// Pipeline.
	Rate          float64 // texts a second; 0 for as many as possible
	InFlight      int     // without a rate: texts between their POST and their frame, at most
	Posters       int     // connections that post
	PipelineBytes int     // length of a text

	// Workers of a private broker.
	Workers     int
	Concurrency int    // tasks at once, of each
	Tasks       int64  // that are queued for them
	Exec        string // the program that handles them; "" for the built-in handler
	Persistent  bool   // it is no filter

	// Grow.
	MaxDepth int64 // of the queue

	// Fanout.
	Listeners   int
	First       string // what each listener sends once it is connected; "" for nothing
	PublishURL  string // where to post messages for the listeners of another server; "" for revq's own results
	ListenOnly  bool   // publishes nothing
	FanoutBytes int    // length of a message
	Window      int    // messages that not all listeners have, at most
	LightRate   float64
	Settle      time.Duration
	Rounds      int
}

// The bounds of a Config.
const (
	MaxDuration    = 10 * time.Minute
	MaxCount       = 100_000_000
	MaxConnections = 10_000
	MaxBatch       = 10_000 // what the API accepts
	MaxTextBytes   = 16 << 20
	MaxRawInFlight = 65_535 // the largest prefetch in AMQP
	MaxListeners   = 1_000_000
	MaxInFlight    = 1_000_000
	MaxWindow      = 1_000_000
	MaxRounds      = 1000
	MaxRate        = 1_000_000
)

// How many connections post by default. With so many batches at once, the API
// refuses none.
const (
	SingleConnections = 256
	BatchConnections  = 32
)

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		API:    []string{"http://localhost:8081"},
		Socket: "ws://localhost:8083" + wire.ListenPath,

		Duration: 10 * time.Second,
		Warmup:   time.Second,

		Kind:        load.Form,
		Batch:       100,
		TextBytes:   100,
		RawInFlight: 256,

		Rate:          100,
		InFlight:      1024,
		Posters:       256,
		PipelineBytes: 100,

		Workers:     2,
		Concurrency: 256,
		Tasks:       100_000,
		MaxDepth:    1_000_000,

		Listeners:   1000,
		FanoutBytes: 100,
		Window:      4096,
		LightRate:   20,
		Settle:      3 * time.Second,
	}
}
