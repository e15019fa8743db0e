// Revq-socket sends every result to everyone who listens.
package main

import (
	"context"
	"slices"

	"github.com/revq/revq/internal/daemon"
	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/socket"
)

func main() {
	broker, front, log := rabbit.DefaultConfig("revq-socket"), socket.DefaultConfig(), feed.DefaultConfig()
	daemon.Main(daemon.Program{
		Name:  "revq-socket",
		Usage: "send every result to everyone who listens",
		Flags: slices.Concat(broker.Flags(), front.Flags(), log.Flags()),
		Sites: &daemon.Sites{Default: []int{3}},
		Check: broker.Check,
		Run: func(ctx context.Context, d *daemon.Daemon) error {
			results := feed.New(log)
			reader := rabbit.NewReader(broker, log.Backlog, d.Log)
			server, err := socket.New(front, results, reader, d.Log)
			if err != nil {
				return err
			}
			d.Ready, d.Patience = reader.Current, daemon.ServePatience
			return d.Run(ctx, d.Serve(server), func(ctx context.Context) error { return reader.Run(ctx, results) })
		},
	})
}
