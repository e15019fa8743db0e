package bench

import (
	"context"
	"fmt"
	"time"
)

// A Bench measures, one thing after the other, and reports.
type Bench struct {
	Config
	Report Report

	// Progress is called now and then with what is being done, and how much of it, from 0 to 1.
	Progress func(what string, done float64)

	rig *Rig
}

// Config says what to measure. DefaultConfig gives a usable one.
type Config struct {
	// Up has a private broker and daemons started, instead of using what runs.
	Up bool

	// API are the URLs of the sites of a running API, Socket the one to listen at, AMQP that of its broker.
	API    []string
	Socket string
	AMQP   string // may be empty: then nothing is measured for comparison

	// Foreign allows targets on other machines. Default false: load belongs on machines that are one's own.
	Foreign bool

	Duration time.Duration // of each measurement
	Warmup   time.Duration // before each measurement
	Count    int64         // ends a measurement early, after so many texts; 0 for no end

	Connections int // 0 for a number that suits Kind
	Kind        Kind
	Batch       int
	TextBytes   int
	Unsettled   int // messages under way at once, of measurements of the broker alone

	Listeners   int
	First       string // what each listener sends once it is connected
	PublishURL  string // where to post messages to for the listeners of another server; "" for revq's own results
	ListenOnly  bool   // nothing is published
	FanoutBytes int    // length of a message
	Window      int    // messages on their way to listeners at once
	LightRate   float64
	Settle      time.Duration
	Rounds      int
}

// The limits of what can be asked for.
const (
	MaxDuration    = 10 * time.Minute
	MaxCount       = 100_000_000
	MaxConnections = 10_000
	MaxBatch       = 10_000 // what the API takes
	MaxTextBytes   = 16 << 20
	MaxUnsettled   = 65_535 // what AMQP can say of a prefetch
	MaxListeners   = 1_000_000
	MaxWindow      = 1_000_000
	MaxRounds      = 1000
	MaxRate        = 1_000_000
)

// How many connections post unless something else is asked for: so many batches are below what the API takes at once.
const (
	SingleConnections = 256
	BatchConnections  = 32
)

// DefaultConfig returns what is measured unless something else is asked for.
func DefaultConfig() Config {
	return Config{
		API:       []string{"http://localhost:8081"},
		Socket:    "ws://localhost:8083/listen_results",
		Duration:  10 * time.Second,
		Warmup:    time.Second,
		Kind:      Form,
		Batch:     100,
		TextBytes: 100,
		Unsettled: 256,

		Listeners:   1000,
		FanoutBytes: 100,
		Window:      4096,
		LightRate:   20,
		Settle:      3 * time.Second,
	}
}

// Open looks the targets up, or starts a broker of our own. Close must be called after it, also if it fails.
func (b *Bench) Open(ctx context.Context) (err error) {
	b.Report.Began, b.Report.Machine = time.Now(), thisMachine()
	if !b.Up {
		return nil
	}
	b.Progress("starting a private broker", 0)
	if b.rig, err = NewRig(ctx); err != nil {
		return err
	}
	b.AMQP = b.rig.AMQP()
	return nil
}

// Close removes what Open has started.
func (b *Bench) Close() error {
	if b.rig == nil {
		return nil
	}
	return b.rig.Close()
}

func (b *Bench) window() Window { return Window{b.Warmup, b.Duration, b.Count} }

// local adds the processes that listen on a target's port, if they are to be seen.
func local(ps map[string]Processes, name string, t *Target) {
	if !t.Addr.IP.IsLoopback() {
		return
	}
	if found, err := ListeningOn(t.Addr.Port); err == nil {
		ps[name] = found
	}
}

// Raw measures the broker alone.
func (b *Bench) Raw(ctx context.Context) error { return b.raw(ctx, false) }

func (b *Bench) raw(ctx context.Context, publishOnly bool) error {
	target, err := ParseTarget(ctx, b.AMQP, b.Foreign, "amqp", "amqps")
	if err != nil {
		return fmt.Errorf("the broker: %w", err)
	}
	raw := Raw{
		URL: b.AMQP, Unsettled: b.Unsettled, TextBytes: b.TextBytes, Window: b.window(),
		Processes: map[string]Processes{"load": Self()}, PublishOnly: publishOnly,
	}
	local(raw.Processes, "broker", target)
	return raw.Run(ctx, b.Progress, func(r RawResult) { b.Report.Raw = append(b.Report.Raw, r) })
}

// Ingest measures the API and, for comparison, publishing to the broker alone, right before.
func (b *Bench) Ingest(ctx context.Context) error {
	api := b.API
	if b.Up {
		s, err := b.rig.Start(ctx, Layout{APISites: 1})
		if err != nil {
			return err
		}
		defer s.Stop()
		api = s.API
	}
	in := Ingest{
		Connections: b.Connections, Kind: b.Kind, Batch: 1, TextBytes: b.TextBytes, Window: b.window(),
		Processes: map[string]Processes{"load": Self()},
	}
	if b.Kind == NDJSON {
		in.Batch = b.Batch
	}
	if in.Connections == 0 {
		in.Connections = SingleConnections
		if b.Kind == NDJSON {
			in.Connections = BatchConnections
		}
	}
	for _, url := range api {
		t, err := ParseTarget(ctx, url, b.Foreign, "http")
		if err != nil {
			return fmt.Errorf("the API: %w", err)
		}
		in.Targets = append(in.Targets, t)
		local(in.Processes, "api", t)
	}
	if b.AMQP != "" {
		t, err := ParseTarget(ctx, b.AMQP, b.Foreign, "amqp", "amqps")
		if err != nil {
			return fmt.Errorf("the broker: %w", err)
		}
		local(in.Processes, "broker", t)
		if err := b.raw(ctx, true); err != nil {
			return err
		}
	}
	result, err := in.Run(ctx, func(done float64) {
		b.Progress(fmt.Sprintf("posting %s over %d connections", in.Kind, in.Connections), done)
	})
	if result != nil {
		b.Report.Ingest = append(b.Report.Ingest, result)
	}
	return err
}

// Fanout measures how results reach many listeners.
func (b *Bench) Fanout(ctx context.Context) error {
	socket := b.Socket
	if b.Up {
		s, err := b.rig.Start(ctx, Layout{APISites: 1})
		if err != nil {
			return err
		}
		defer s.Stop()
		socket = s.Socket
	}
	return b.fanout(ctx, socket, b.Listeners)
}

func (b *Bench) fanout(ctx context.Context, socket string, listeners int) error {
	t, err := ParseTarget(ctx, socket, b.Foreign, "ws")
	if err != nil {
		return fmt.Errorf("the socket server: %w", err)
	}
	f := Fanout{
		Target: t, Listeners: listeners, First: b.First, TextBytes: b.FanoutBytes, Window: b.Window,
		Light: b.Duration, Rate: b.LightRate, Full: b.Duration, Warmup: b.Warmup, Settle: b.Settle, Rounds: b.Rounds,
	}
	seen := make(map[string]Processes)
	local(seen, "server", t)
	f.Server = seen["server"]
	switch {
	case b.ListenOnly:
	case b.PublishURL != "":
		if _, err := ParseTarget(ctx, b.PublishURL, b.Foreign, "http"); err != nil {
			return fmt.Errorf("where to publish: %w", err)
		}
		f.Publish = func(context.Context) (Publisher, error) { return publishByPost(b.PublishURL, b.Window), nil }
	default:
		if _, err := ParseTarget(ctx, b.AMQP, b.Foreign, "amqp", "amqps"); err != nil {
			return fmt.Errorf("the broker: %w", err)
		}
		f.Publish = func(ctx context.Context) (Publisher, error) { return publishResults(ctx, b.AMQP, b.Window) }
	}
	result, err := f.Run(ctx, b.Progress)
	if result != nil {
		b.Report.Fanout = append(b.Report.Fanout, result)
	}
	return err
}
