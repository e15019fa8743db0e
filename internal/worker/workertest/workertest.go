// Package workertest has a worker for tests in which tasks have to fail.
package workertest

import (
	"context"
	"errors"
	"slices"

	"github.com/revq/revq/internal/daemon"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/worker"
)

// FailingWorker is the main function of a daemon like revq-worker, but for
// its job: no attempt succeeds. Test binaries run themselves as it.
func FailingWorker() {
	broker, cfg := rabbit.DefaultConfig("failing-worker"), worker.DefaultConfig()
	cfg.Retries = 0
	daemon.Main(daemon.Program{
		Name:     "failing-worker",
		Usage:    "take tasks from the queue, and fail",
		Settings: slices.Concat(broker.Settings(), broker.PublishSettings(), cfg.Settings()),
		Checks:   []func() error{broker.Check},
		Run: func(ctx context.Context, d *daemon.Daemon) error {
			publisher := rabbit.NewPublisher(broker, d.Log)
			consumer := rabbit.NewConsumer(broker, cfg.Concurrency, d.Log)
			w := worker.New(cfg, failing{}, publisher, d.Log)
			d.Ready = consumer.Ready
			take := func(ctx context.Context, t *rabbit.Delivery) { w.Handle(ctx, t) }
			return d.Run(ctx, func(ctx context.Context) error { consumer.Run(ctx, take); return nil }, publisher.Run)
		},
	})
}

type failing struct{}

func (failing) Handle(context.Context, task.Task) (string, error) {
	return "", errors.New("the cause is not fixed yet")
}
