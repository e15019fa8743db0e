package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
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

	Rate     float64 // texts a second, of the pipeline; 0 for as many as possible
	InFlight int     // texts on their way through the pipeline, at most, where there is no rate
	Posters  int     // connections that post to the pipeline

	PipelineBytes int // length of a text

	Workers     int   // of a system of our own
	Concurrency int   // tasks in hand at once, of each
	Tasks       int64 // that are queued for workers
	MaxDepth    int64 // up to which the queue is made to grow

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
	MaxInFlight    = 1_000_000
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

		Rate:     100,
		InFlight: 1024,
		Posters:  256,

		PipelineBytes: 100,
		Workers:       2,
		Concurrency:   256,
		Tasks:         100_000,
		MaxDepth:      1_000_000,

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
	b.AMQP, _, _ = strings.Cut(b.AMQP, ",") // any node of a cluster will do
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

// with runs do with daemons of our own.
func (b *Bench) with(ctx context.Context, layout Layout, do func(*System) error) (err error) {
	s, err := b.rig.Start(ctx, layout)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	return do(s)
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
	if !b.Up {
		return b.ingest(ctx, b.API)
	}
	return b.with(ctx, Layout{APISites: 1}, func(s *System) error { return b.ingest(ctx, s.API) })
}

func (b *Bench) ingest(ctx context.Context, api []string) (err error) {
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
	if in.Targets, err = b.targets(ctx, api, in.Processes); err != nil {
		return err
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

// targets looks the sites of an API up, and adds its processes to ps.
func (b *Bench) targets(ctx context.Context, urls []string, ps map[string]Processes) (targets []*Target, err error) {
	for _, url := range urls {
		t, err := ParseTarget(ctx, url, b.Foreign, "http")
		if err != nil {
			return nil, fmt.Errorf("the API: %w", err)
		}
		targets = append(targets, t)
		local(ps, "api", t)
	}
	return targets, nil
}

// Pipeline measures the whole way of texts, at the rate that is configured.
func (b *Bench) Pipeline(ctx context.Context) error { return b.pipelines(ctx, b.Rate) }

// pipelines measures the whole way of texts at each of some rates. A rate below 0 is a fraction of what was reached
// with as many as possible before.
func (b *Bench) pipelines(ctx context.Context, rates ...float64) error {
	processes := map[string]Processes{"load": Self()}
	if !b.Up {
		return b.pipelinesOn(ctx, b.API, b.Socket, processes, rates)
	}
	layout := Layout{APISites: 1, SocketSites: 1, Workers: b.Workers, Env: b.workerEnv()}
	return b.with(ctx, layout, func(s *System) error {
		processes["worker"], processes["broker"] = s.Processes("worker"), b.rig.Broker()
		return b.pipelinesOn(ctx, s.API, s.Socket[0], processes, rates)
	})
}

func (b *Bench) pipelinesOn(ctx context.Context, api []string, socket string, processes map[string]Processes, rates []float64) (err error) {
	p := Pipeline{
		InFlight: b.InFlight, Connections: b.Posters, TextBytes: b.PipelineBytes, Window: b.window(), Processes: processes,
	}
	if p.API, err = b.targets(ctx, api, processes); err != nil {
		return err
	}
	if p.Socket, err = ParseTarget(ctx, socket, b.Foreign, "ws"); err != nil {
		return fmt.Errorf("the socket server: %w", err)
	}
	local(processes, "socket", p.Socket)
	for _, rate := range rates {
		if p.Rate = rate; rate < 0 {
			p.Rate = -rate * b.Report.Pipeline[len(b.Report.Pipeline)-1].PerSecond
		}
		what := "texts to a listener, as many as possible"
		if p.Rate > 0 {
			what = fmt.Sprintf("texts to a listener, %.0f a second", p.Rate)
		}
		result, err := p.Run(ctx, func(done float64) { b.Progress(what, done) })
		if result != nil {
			b.Report.Pipeline = append(b.Report.Pipeline, result)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// All measures everything on a private broker, in less than five minutes on two cores.
func (b *Bench) All(ctx context.Context) error {
	for _, step := range []func() error{
		func() error { return b.Raw(ctx) },
		func() error { return b.Ingest(ctx) },
		func() error {
			batches := b.Config
			defer func() { b.Config = batches }()
			b.Kind = NDJSON
			return b.Ingest(ctx)
		},
		func() error { return b.Worker(ctx) },
		func() error { return b.pipelines(ctx, b.Rate, 0, -0.5) },
		func() error { return b.Start(ctx) },
		func() error { return b.Fanout(ctx) },
		func() error {
			many := b.Config
			defer func() { b.Config = many }()
			b.Listeners, b.Rounds = 10*many.Listeners, allRounds
			b.Listeners = min(b.Listeners, OpenFiles()-2*spareFiles) // the server has a limit, too
			b.LightRate = manyRate
			return b.Fanout(ctx)
		},
		func() error {
			long := b.Config
			defer func() { b.Config = long }()
			b.Duration, b.Warmup = long.Duration/4, long.Warmup/4
			b.Tasks, b.MaxDepth = long.Tasks/2, allDepth
			return b.Grow(ctx, Growths)
		},
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

const (
	allDepth  = 100_000 // to which the queue grows among everything else
	allRounds = 3
	manyRate  = 5 // messages a second to ten thousand listeners that leave the server idle most of the time
)

// Fanout measures how results reach many listeners.
func (b *Bench) Fanout(ctx context.Context) error {
	if !b.Up {
		return b.fanout(ctx, b.Socket)
	}
	return b.with(ctx, Layout{SocketSites: 1}, func(s *System) error { return b.fanout(ctx, s.Socket[0]) })
}

func (b *Bench) fanout(ctx context.Context, socket string) error {
	t, err := ParseTarget(ctx, socket, b.Foreign, "ws")
	if err != nil {
		return fmt.Errorf("the socket server: %w", err)
	}
	f := Fanout{
		Target: t, Listeners: b.Listeners, First: b.First, TextBytes: b.FanoutBytes, Window: b.Window,
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
