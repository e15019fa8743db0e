// Package program puts the daemons together: it alone knows who talks to whom.
// Each cmd/revq-*/main.go runs one of its programs, and `revq settings` lists
// what can be set about them.
package program

import (
	"context"
	"slices"

	"github.com/revq/revq/internal/api"
	"github.com/revq/revq/internal/daemon"
	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/reverse"
	"github.com/revq/revq/internal/setting"
	"github.com/revq/revq/internal/socket"
	"github.com/revq/revq/internal/worker"
)

// API returns revq-api, which takes texts over HTTP and queues them.
func API() daemon.Program {
	broker, cfg := rabbit.DefaultConfig("revq-api"), api.DefaultConfig()
	return daemon.Program{
		Name:     "revq-api",
		Usage:    "take texts over HTTP and queue them",
		Settings: slices.Concat(broker.Settings(), broker.PublishSettings(), cfg.Settings()),
		Sites:    &daemon.Sites{Default: []int{1, 2}},
		Checks:   []func() error{broker.Check},
		Run: func(ctx context.Context, d *daemon.Daemon) error {
			publisher := rabbit.NewPublisher(broker, d.Log)
			cfg.MaxConnections = front.Connections(d.Log, "max-connections", cfg.MaxConnections, d.Addresses(), 0)
			server := api.New(cfg, publisher, d.Log)
			d.Ready, d.Alive = publisher.Ready, []func() error{publisher.Alive}
			d.Status, d.Reload = server.Status, broker.Reload
			return d.Run(ctx, d.Serve(server), publisher.Run)
		},
	}
}

// Socket returns revq-socket, which sends every result to everyone who listens.
func Socket() daemon.Program {
	broker, cfg, log := rabbit.DefaultConfig("revq-socket"), socket.DefaultConfig(), feed.DefaultConfig()
	return daemon.Program{
		Name:     "revq-socket",
		Usage:    "send every result to everyone who listens",
		Settings: slices.Concat(broker.Settings(), cfg.Settings(), log.Settings()),
		Sites:    &daemon.Sites{Default: []int{3}},
		Checks:   []func() error{broker.Check},
		Run: func(ctx context.Context, d *daemon.Daemon) error {
			results, reader := feed.New(log), rabbit.NewReader(broker, log.Backlog, d.Log)
			// Each that catches up has a connection to the broker.
			cfg.MaxListeners = front.Connections(d.Log, "max-listeners", cfg.MaxListeners, 1, cfg.MaxResuming)
			server := socket.New(cfg, results, reader, d.Log)
			d.Ready, d.Alive = reader.Current, []func() error{reader.Alive, server.Alive}
			d.Status, d.Reload = server.Status, broker.Reload
			return d.Run(ctx, d.Serve(server), func(ctx context.Context) error { return reader.Run(ctx, results) })
		},
	}
}

// Worker returns revq-worker, which takes tasks from the queue, handles them,
// and publishes the results.
func Worker() daemon.Program {
	broker, cfg, job := rabbit.DefaultConfig("revq-worker").Patient(), worker.DefaultConfig(), reverse.DefaultConfig()
	return daemon.Program{
		Name:     "revq-worker",
		Usage:    "take tasks from the queue, handle them, and publish the results",
		Settings: slices.Concat(broker.Settings(), broker.PublishSettings(), cfg.Settings(), job.Settings()),
		Checks:   []func() error{broker.Check, func() error { return cfg.Check(job.Longest(), "--max-pause") }},
		Run: func(ctx context.Context, d *daemon.Daemon) error {
			broker.InHand = cfg.Concurrency
			publisher, consumer := rabbit.NewPublisher(broker, d.Log), rabbit.NewConsumer(broker, cfg.Concurrency, d.Log)
			w := worker.New(cfg, reverse.New(job), publisher, d.Log)
			take := func(ctx context.Context, t *rabbit.Delivery) { w.Handle(ctx, t) }
			d.Ready, d.Alive = consumer.Ready, []func() error{consumer.Alive, publisher.Alive}
			d.Status, d.Reload = w.Status, broker.Reload
			return d.Run(ctx, func(ctx context.Context) error { return consumer.Run(ctx, take) }, publisher.Run)
		},
	}
}

// Set is what can be set about one program.
type Set struct {
	Program  string // as it is run, such as "revq setup"
	Role     string // in unit files and NixOS options, such as "setup"
	Settings []setting.Setting
}

// Sets returns what can be set about the daemons and revq setup, with the
// defaults.
func Sets() []Set {
	setup := rabbit.DefaultConfig("revq setup")
	return []Set{
		{"revq-api", "api", API().AllSettings()},
		{"revq-socket", "socket", Socket().AllSettings()},
		{"revq-worker", "worker", Worker().AllSettings()},
		{"revq setup", "setup", slices.Concat(setup.Settings(), setup.Topology.Settings())},
	}
}
