// Revq-worker takes tasks from the queue, handles them, and publishes the results.
package main

import (
	"context"

	"github.com/revq/revq/internal/daemon"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/reverse"
	"github.com/revq/revq/internal/worker"
)

func main() {
	broker, cfg, job := rabbit.DefaultConfig("revq-worker").Patient(), worker.DefaultConfig(), reverse.DefaultConfig()
	daemon.Main(daemon.Program{
		Name:   "revq-worker",
		Usage:  "take tasks from the queue, handle them, and publish the results",
		Flags:  daemon.Flags{broker.Flags(), broker.PublishFlags(), cfg.Flags(), job.Flags()},
		Checks: []func() error{broker.Check, func() error { return cfg.Check(job.Longest()) }},
		Run: func(ctx context.Context, d *daemon.Daemon) error {
			broker.InHand = cfg.Concurrency
			publisher, consumer := rabbit.NewPublisher(broker, d.Log), rabbit.NewConsumer(broker, cfg.Concurrency, d.Log)
			w := worker.New(cfg, reverse.New(job), publisher, d.Log)
			take := func(ctx context.Context, t *rabbit.Delivery) { w.Handle(ctx, t) }
			d.Ready, d.Alive = consumer.Ready, []func() error{consumer.Alive, publisher.Alive}
			d.Status, d.Reload = w.Status, broker.Reload
			return d.Run(ctx, func(ctx context.Context) error { return consumer.Run(ctx, take) }, publisher.Run)
		},
	})
}
