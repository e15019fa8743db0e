// Revq-api takes texts over HTTP and queues them.
package main

import (
	"context"

	"github.com/revq/revq/internal/api"
	"github.com/revq/revq/internal/daemon"
	"github.com/revq/revq/internal/rabbit"
)

func main() {
	broker, front := rabbit.DefaultConfig("revq-api"), api.DefaultConfig()
	daemon.Main(daemon.Program{
		Name:   "revq-api",
		Usage:  "take texts over HTTP and queue them",
		Flags:  daemon.Flags{broker.Flags(), broker.PublishFlags(), front.Flags()},
		Sites:  &daemon.Sites{Default: []int{1, 2}},
		Checks: []func() error{broker.Check},
		Run: func(ctx context.Context, d *daemon.Daemon) error {
			publisher := rabbit.NewPublisher(broker, d.Log)
			server := api.New(front, publisher, d.Log)
			d.Ready, d.Alive = publisher.Ready, []func() error{publisher.Alive}
			d.Status, d.Reload = server.Status, broker.Reload
			return d.Run(ctx, d.Serve(server), publisher.Run)
		},
	})
}
