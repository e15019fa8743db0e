// Revq-socket sends every result to everyone who listens.
package main

import (
	"context"

	"github.com/revq/revq/internal/daemon"
	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/socket"
)

func main() {
	broker, front, log := rabbit.DefaultConfig("revq-socket"), socket.DefaultConfig(), feed.DefaultConfig()
	daemon.Main(daemon.Program{
		Name:   "revq-socket",
		Usage:  "send every result to everyone who listens",
		Flags:  daemon.Flags{broker.Flags(), front.Flags(), log.Flags()},
		Sites:  &daemon.Sites{Default: []int{3}},
		Checks: []func() error{broker.Check},
		Run: func(ctx context.Context, d *daemon.Daemon) error {
			results, reader := feed.New(log), rabbit.NewReader(broker, log.Backlog, d.Log)
			server := socket.New(front, results, reader, d.Log)
			d.Ready, d.Alive = reader.Current, []func() error{reader.Alive, server.Alive}
			d.Status, d.Reload = server.Status, broker.Reload
			return d.Run(ctx, d.Serve(server), func(ctx context.Context) error { return reader.Run(ctx, results) })
		},
	})
}
