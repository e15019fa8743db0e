package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/revq/revq/internal/bench/load"
	"github.com/revq/revq/internal/bench/report"
)

// A Bench measures one thing after the other and collects the results.
type Bench struct {
	Config
	Report report.Report

	// Progress is called from time to time with the current step and the part
	// of it that is done, from 0 to 1.
	Progress func(what string, done float64)

	rig *Rig
}

// Open starts a private broker if Up is set. The caller closes the Bench, also
// if Open fails.
func (b *Bench) Open(ctx context.Context) (err error) {
	b.Report.Began, b.Report.Machine = time.Now(), thisMachine()
	b.AMQP, _, _ = strings.Cut(b.AMQP, ",") // one node of a cluster is enough
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

// Close ends what Open has started.
func (b *Bench) Close() error {
	if b.rig == nil {
		return nil
	}
	return b.rig.Close()
}

func (b *Bench) window() Window { return Window{b.Warmup, b.Duration, b.Count} }

// local adds the processes that listen on a target's port to ps, if they are
// visible.
func local(ps map[string]Processes, name string, t *Target) {
	if !t.Addr.IP.IsLoopback() {
		return
	}
	if found, err := ListeningOn(t.Addr.Port); err == nil {
		ps[name] = found
	}
}

// with calls do while the rig runs the daemons of a layout.
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
		URL: b.AMQP, InFlight: b.RawInFlight, TextBytes: b.TextBytes, Window: b.window(),
		Processes: map[string]Processes{"load": Self()}, PublishOnly: publishOnly,
	}
	local(raw.Processes, "broker", target)
	return raw.Run(ctx, b.Progress, func(r report.RawResult) { b.Report.Raw = append(b.Report.Raw, r) })
}

// Ingest measures the API, and right before it, for comparison, publishing to
// the broker alone.
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
	if b.Kind == load.NDJSON {
		in.Batch = b.Batch
	}
	if in.Connections == 0 {
		in.Connections = SingleConnections
		if b.Kind == load.NDJSON {
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

// targets looks up the sites of an API, and adds its processes to ps.
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

// Pipeline measures how texts get from the API to a listener, at b.Rate.
func (b *Bench) Pipeline(ctx context.Context) error { return b.pipelines(ctx, b.Rate) }

// pipelines measures that at each of several rates. A rate below 0 is a fraction
// of the rate that the previous measurement reached.
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

// pipelinesOn does what pipelines does, on an API and a socket server.
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

// Numbers that All uses instead of those of the Config.
const (
	allDepth  = 100_000 // tasks in the queue at most
	allRounds = 3

	// manyRate is how many messages a second leave the server idle most of the
	// time with ten thousand listeners.
	manyRate = 5
)

// All measures everything on a private broker, in less than five minutes on two
// cores.
func (b *Bench) All(ctx context.Context) error {
	for _, step := range []func() error{
		func() error { return b.Raw(ctx) },
		func() error { return b.Ingest(ctx) },
		b.changed(func(c *Config) { c.Kind = load.NDJSON }, func() error { return b.Ingest(ctx) }),
		func() error { return b.Worker(ctx) },
		func() error { return b.pipelines(ctx, b.Rate, 0, -0.5) },
		func() error { return b.Start(ctx) },
		func() error { return b.Fanout(ctx) },
		b.changed(func(c *Config) {
			c.Listeners = min(10*c.Listeners, OpenFiles()-2*spareFiles) // the server has a limit, too
			c.Rounds, c.LightRate = allRounds, manyRate
		}, func() error { return b.Fanout(ctx) }),
		b.changed(func(c *Config) {
			c.Duration, c.Warmup = c.Duration/4, c.Warmup/4
			c.Tasks, c.MaxDepth = c.Tasks/2, allDepth
		}, func() error { return b.Grow(ctx, Growths) }),
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// changed returns a step that measures with another Config.
func (b *Bench) changed(change func(*Config), do func() error) func() error {
	return func() error {
		before := b.Config
		defer func() { b.Config = before }()
		change(&b.Config)
		return do()
	}
}

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
	visible := make(map[string]Processes)
	local(visible, "server", t)
	f.Server = visible["server"]
	switch {
	case b.ListenOnly:
	case b.PublishURL != "":
		if _, err := ParseTarget(ctx, b.PublishURL, b.Foreign, "http"); err != nil {
			return fmt.Errorf("where to publish: %w", err)
		}
		f.Publish = func(context.Context) (load.Publisher, error) { return load.PublishByPost(b.PublishURL, b.Window), nil }
	default:
		if _, err := ParseTarget(ctx, b.AMQP, b.Foreign, "amqp", "amqps"); err != nil {
			return fmt.Errorf("the broker: %w", err)
		}
		f.Publish = func(ctx context.Context) (load.Publisher, error) { return load.PublishResults(ctx, b.AMQP, b.Window) }
	}
	result, err := f.Run(ctx, b.Progress)
	if result != nil {
		b.Report.Fanout = append(b.Report.Fanout, result)
	}
	return err
}
