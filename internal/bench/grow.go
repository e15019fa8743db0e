package bench

import (
	"context"
	"fmt"
	"slices"

	"github.com/revq/revq/internal/bench/load"
	"github.com/revq/revq/internal/bench/report"
)

// What costs can grow with.
const (
	OverConnections = "connections" // that post
	OverSizes       = "sizes"       // of texts
	OverDepth       = "depth"       // of the queue
	OverWorkers     = "workers"
	OverSites       = "sites" // of the API
)

// Growths are all that costs can grow with.
var Growths = []string{OverConnections, OverSizes, OverDepth, OverWorkers, OverSites}

// The steps of each growth.
var (
	connectionSteps = []int{1, 4, 16, 64, 256, 1024}
	sizeSteps       = []int{16, 256, 4 << 10, 16 << 10, 64<<10 - 1024}
	depthSteps      = []int64{0, 1000, 10_000, 100_000, 1_000_000}
	workerSteps     = []int{1, 2, 4, 8}
	siteSteps       = []int{1, 2, 3, 4}
)

// Grow measures how costs grow with each of over.
func (b *Bench) Grow(ctx context.Context, over []string) error {
	for _, what := range over {
		g := &report.Growth{Over: what}
		b.Report.Growth = append(b.Report.Growth, g)
		do := map[string]func(context.Context, *report.Growth) error{
			OverConnections: b.growConnections,
			OverSizes:       b.growSizes,
			OverDepth:       b.growDepth,
			OverWorkers:     b.growWorkers,
			OverSites:       b.growSites,
		}[what]
		if err := do(ctx, g); err != nil {
			return fmt.Errorf("growth over %s: %w", what, err)
		}
	}
	return nil
}

// ingestOn posts to a system that the rig runs, and appends the result to g.
// change adapts what is measured.
func (b *Bench) ingestOn(ctx context.Context, g *report.Growth, s *System, change func(*Ingest)) error {
	in := Ingest{
		Connections: SingleConnections, Kind: b.Kind, Batch: 1, TextBytes: b.TextBytes, Window: b.window(),
		Processes: map[string]Processes{"api": s.Processes("api"), "broker": b.rig.Broker(), "load": Self()},
	}
	for _, url := range s.API {
		t, err := ParseTarget(ctx, url, false, "http")
		if err != nil {
			return err
		}
		in.Targets = append(in.Targets, t)
	}
	if in.Kind == load.NDJSON {
		in.Connections, in.Batch = BatchConnections, b.Batch
	}
	change(&in)
	result, err := in.Run(ctx, func(done float64) {
		b.Progress(fmt.Sprintf("growth over %s: step %d", g.Over, len(g.Ingest)+1), done)
	})
	if result != nil {
		g.Ingest = append(g.Ingest, result)
	}
	return err
}

func (b *Bench) growConnections(ctx context.Context, g *report.Growth) error {
	for _, n := range connectionSteps {
		if err := b.with(ctx, Layout{APISites: 1}, func(s *System) error {
			return b.ingestOn(ctx, g, s, func(in *Ingest) { in.Connections = n })
		}); err != nil {
			return err
		}
	}
	return nil
}

func (b *Bench) growSizes(ctx context.Context, g *report.Growth) error {
	before := b.Config
	defer func() { b.Config = before }()
	for _, n := range sizeSteps {
		b.TextBytes = n
		if err := b.raw(ctx, true); err != nil { // the broker's costs grow with the size, too
			return err
		}
		if err := b.with(ctx, Layout{APISites: 1}, func(s *System) error {
			return b.ingestOn(ctx, g, s, func(*Ingest) {})
		}); err != nil {
			return err
		}
	}
	return nil
}

func (b *Bench) growSites(ctx context.Context, g *report.Growth) error {
	for _, n := range siteSteps {
		if err := b.with(ctx, Layout{APISites: n}, func(s *System) error {
			return b.ingestOn(ctx, g, s, func(*Ingest) {})
		}); err != nil {
			return err
		}
	}
	return nil
}

// growDepth measures posting to a queue, and consuming from it, with more and
// more tasks in it.
func (b *Bench) growDepth(ctx context.Context, g *report.Growth) error {
	for _, depth := range depthSteps {
		if depth > b.MaxDepth {
			break
		}
		if err := b.with(ctx, Layout{APISites: 1, SocketSites: 1}, func(s *System) error {
			queued, err := b.fill(ctx, s, depth)
			if err != nil {
				return err
			}
			if err := b.ingestOn(ctx, g, s, func(*Ingest) {}); err != nil {
				return err
			}
			posted := g.Ingest[len(g.Ingest)-1]
			posted.Depth = queued
			result, err := b.drain(ctx, s, queued+posted.Total, b.Workers)
			if result != nil {
				g.Worker = append(g.Worker, result)
			}
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

func (b *Bench) growWorkers(ctx context.Context, g *report.Growth) error {
	for _, n := range workerSteps {
		result, err := b.worker(ctx, b.Tasks, n)
		if result != nil {
			g.Worker = append(g.Worker, result)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// CheckGrowths returns an error if one of over is unknown.
func CheckGrowths(over []string) error {
	for _, what := range over {
		if !slices.Contains(Growths, what) {
			return fmt.Errorf("growth over %q is not known: give some of %v", what, Growths)
		}
	}
	return nil
}
