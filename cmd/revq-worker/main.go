// Revq-worker takes tasks from the queue, handles them, and publishes the results.
package main

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/revq/revq/internal/daemon"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/reverse"
	"github.com/revq/revq/internal/worker"
)

func main() {
	broker, cfg, job := rabbit.DefaultConfig("revq-worker"), worker.DefaultConfig(), reverse.DefaultConfig()
	broker.ConfirmTimeout = 10 * time.Second // nobody waits, and trying again makes a second result
	daemon.Main(daemon.Program{
		Name:  "revq-worker",
		Usage: "take tasks from the queue, handle them, and publish the results",
		Flags: slices.Concat(broker.Flags(), broker.PublishFlags(), cfg.Flags(), job.Flags()),
		Check: func() error { return cmp.Or(broker.Check(), cfg.Check(job.Longest())) },
		Run: func(ctx context.Context, d *daemon.Daemon) error {
			publisher := rabbit.NewPublisher(broker, d.Log)
			consumer := rabbit.NewConsumer(broker, cfg.Concurrency, d.Log)
			w := worker.New(reverse.New(job), publisher, d.Log)
			d.Ready = consumer.Ready
			take := func(ctx context.Context, t *rabbit.Delivery) { w.Handle(ctx, t) }
			return d.Run(ctx, func(ctx context.Context) error { return consumer.Run(ctx, take) }, publisher.Run)
		},
	})
}
