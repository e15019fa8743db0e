package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/admin"
	"github.com/revq/revq/internal/command"
	"github.com/revq/revq/internal/daemon"
	"github.com/revq/revq/internal/front"
)

// metrics shows the metrics of all daemons of the host at one address. It runs
// as revq-metrics.service.
func metrics() *cli.Command {
	listen := "127.0.0.1:8090"
	var (
		sockets []string
		pages   front.Pages
	)
	return &cli.Command{
		Name:  "metrics",
		Usage: "show the metrics of all daemons of this host to Prometheus, until Ctrl-C",
		Description: `GET /metrics answers with the metrics of all daemons whose admin sockets are in
/run/revq, and of those of revq up. Each metric has a label daemon, such as
api@1, and revq_up says which daemons have answered. It looks for the sockets at
each request, so that it knows new daemons by itself. Sockets that systemd passes
with the name revq-metrics win over --listen. Programs may use any name of this
host, and browsers those that the API and the socket server would let them use.

EXAMPLES:
   revq metrics
   revq metrics --listen 192.0.2.17:8090
   revq metrics --listen 192.0.2.17:8090 --allow-host queue.example.org
   revq metrics --admin '/srv/queue/*.admin'`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "listen", Usage: "serve `HOST:PORT`", Value: listen, Destination: &listen},
			&cli.StringSliceFlag{Name: "admin", Usage: "gather from the admin sockets that fit `PATTERN` instead (repeatable)", Destination: &sockets},
		}, command.Flags(pages.Settings())...),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := command.NoArguments(cmd); err != nil {
				return err
			}
			if len(sockets) == 0 {
				sockets = admin.DefaultSockets()
			}
			if _, err := admin.Find(sockets); err != nil {
				return command.UsageError(err)
			}
			listeners, err := daemon.Inherited("revq-metrics")
			if err != nil {
				return err
			}
			if len(listeners) == 0 {
				ln, err := net.Listen("tcp", listen)
				if err != nil {
					return fmt.Errorf("serve metrics: %w; use --listen for another address", err)
				}
				listeners = append(listeners, ln)
			}
			server := admin.NewGatherer(slog.New(slog.NewTextHandler(cmd.Root().ErrWriter, nil)), sockets, front.NewGate(pages).Wrap)
			ended := make(chan error, len(listeners))
			for _, ln := range listeners {
				note(cmd.Root().ErrWriter, "metrics at http://%s%s", ln.Addr(), admin.MetricsPath)
				go func() { ended <- server.Serve(ctx, ln) }()
			}
			return <-ended
		},
	}
}
