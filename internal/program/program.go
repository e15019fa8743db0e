// Package program puts the daemons together: only it knows which parts talk to
// each other. Each cmd/revq-*/main.go runs one of its programs, and `revq
// settings` lists their settings.
package program

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/revq/revq/internal/admin"
	"github.com/revq/revq/internal/api"
	"github.com/revq/revq/internal/daemon"
	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/handler"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/reverse"
	"github.com/revq/revq/internal/setting"
	"github.com/revq/revq/internal/socket"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
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
		Checks:   []func() error{broker.Check, cfg.Tokens.Load},
		Run: func(ctx context.Context, d *daemon.Daemon) error {
			publisher := rabbit.NewPublisher(broker, d.Log)
			cfg.MaxConnections = front.Connections(d.Log, "max-connections", cfg.MaxConnections, d.Addresses(), 0)
			server := api.New(cfg, publisher, d.Log)
			d.Ready, d.Alive = publisher.Ready, []func() error{publisher.Alive}
			d.Status, d.Reload = server.Status, reload(d, cfg.Tokens, broker.Reload)
			d.Metrics, d.Describe = apiMetrics(server, publisher, d.Addresses()), describeAPI(server, publisher, d.Addresses())
			d.Known = func(id string) admin.Known { return admin.Known{Accepted: server.Accepted(id)} }
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
		Checks:   []func() error{broker.Check, cfg.Tokens.Load},
		Run: func(ctx context.Context, d *daemon.Daemon) error {
			broker.MaxResult = min(log.LongestResult(), task.MaxText)
			results, reader := feed.New(log), rabbit.NewReader(broker, log.Backlog, d.Log)
			// Each listener that catches up has a connection to the broker.
			cfg.MaxListeners = front.Connections(d.Log, "max-listeners", cfg.MaxListeners, 1, cfg.MaxResuming)
			server := socket.New(cfg, results, reader, d.Log)
			d.Ready, d.Alive = reader.Current, []func() error{reader.Alive, server.Alive}
			d.Status, d.Reload = server.Status, reload(d, cfg.Tokens, broker.Reload)
			d.Metrics, d.Describe = socketMetrics(server, results, reader), describeSocket(server, reader)
			d.Known = func(id string) admin.Known { return knownOf(results.Outcome(id)) }
			return d.Run(ctx, d.Serve(server), func(ctx context.Context) { reader.Run(ctx, results) })
		},
	}
}

// Worker returns revq-worker, which takes tasks from the queue, handles them,
// and publishes the results.
func Worker() daemon.Program {
	broker, cfg, job := rabbit.DefaultConfig("revq-worker").Patient(), worker.DefaultConfig(), reverse.DefaultConfig()
	programs := handler.DefaultConfig()
	check := func() error {
		if !programs.Enabled() {
			if queue := broker.Topology.Queue; queue != wire.DefaultQueue {
				return fmt.Errorf("nothing handles tasks of the queue %s: name a program (-- PROGRAM ARG …, or --exec) or a socket (--handler unix:PATH)", queue)
			}
			return errors.Join(programs.Check(), cfg.Check(job.Longest(), "--max-pause"))
		}
		return errors.Join(programs.Check(), cfg.Check(programs.Longest(), "--task-timeout"))
	}
	return daemon.Program{
		Name:  "revq-worker",
		Usage: "take tasks from the queue, handle them, and publish the results",
		Description: `Without a program, a worker reverses texts. A program gets each text on its standard input and writes the result to
its standard output. Its exit status says what came of it: 0 done, 75 try later, 65 give up, any other a failed attempt.

EXAMPLES:
   revq-worker
   revq-worker --task-timeout 10s -- tr a-z A-Z
   revq-worker --handler persistent --concurrency 2 -- /usr/local/bin/classify.py --model small
   revq-worker --handler unix:/run/classify.sock`,
		Settings: slices.Concat(broker.Settings(), broker.PublishSettings(), cfg.Settings(), job.Settings(), programs.Settings(),
			setting.In("handler",
				broker.Topology.QueueSetting("name of the `QUEUE` to take tasks from").
					With("A queue other than reverse_text needs a program or a handler's socket."))),
		Program: &programs.Program,
		Checks:  []func() error{broker.Check, check},
		Run: func(ctx context.Context, d *daemon.Daemon) error {
			broker.ResultsInFlight, programs.Concurrency = cfg.Concurrency, cfg.Concurrency
			cfg.DrainTimeout, programs.Queue = d.StopTimeout(), broker.Topology.Queue
			publisher, consumer := rabbit.NewPublisher(broker, d.Log), rabbit.NewConsumer(broker, cfg.Concurrency, d.Log)
			var handle worker.Handler = reverse.New(job)
			cfg.Limit = job.Limit
			if programs.Enabled() {
				cfg.Limit = func(string) time.Duration { return programs.Timeout }
				if err := programs.Missing(); err != nil {
					d.Log.Warn("the handler cannot be started at present; tasks will wait until it can", "error", err)
				}
				h := handler.New(programs, d.Log)
				defer h.Close()
				handle = h
			}
			w := worker.New(cfg, handle, publisher, d.Log)
			consumer.TookBack = w.TookBack
			take := func(ctx context.Context, t *rabbit.Delivery) { w.Handle(ctx, t) }
			d.Ready = func() error { return cmp.Or(consumer.Ready(), w.Ready()) }
			d.Alive = []func() error{consumer.Alive, publisher.Alive}
			d.Status, d.Reload = w.Status, broker.Reload
			d.Metrics, d.Describe = workerMetrics(w, publisher, consumer, broker.Topology.Queue), describeWorker(w, publisher, consumer, broker.Topology.Queue)
			return d.Run(ctx, func(ctx context.Context) error { consumer.Run(ctx, take); return nil }, publisher.Run)
		},
	}
}

// A Set is the settings of one program.
type Set struct {
	Program  string // the command line, such as "revq setup"
	Role     string // in unit files and NixOS options, such as "setup"
	Settings []setting.Setting
}

// Sets returns the settings of the daemons and of revq setup, with the
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
