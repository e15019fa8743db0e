package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/command"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/rabbit/node"
	"github.com/revq/revq/internal/stack"
	"github.com/revq/revq/internal/wire"
)

// findServer looks for RabbitMQ. Tests have it find none.
var findServer = node.Find

func up() *cli.Command {
	var (
		cfg    = stack.DefaultConfig(nil)
		broker rabbit.Config
	)
	cfg.FindServer = findServer
	return &cli.Command{
		Name:  "up",
		Usage: "run everything on this machine, until Ctrl-C",
		Description: `Runs a private RabbitMQ (or uses that of --amqp-url), the API on two sites, the
socket server on one, and the workers. They listen on this machine only. When
the command ends, it stops and removes all of them.

The daemons take their settings from the environment. REVQ_PAUSE=0s, for
example, makes the workers not pause. revq settings lists all settings.

EXAMPLES:
   revq up
   REVQ_PAUSE=0s revq up --workers 4
   revq up --first-port 9081 --amqp-url amqp://USER:PASSWORD@HOST:5672/VHOST`,
		Flags: append(command.Flags(broker.Settings()),
			&cli.IntFlag{
				Name:        "workers",
				Usage:       "run `N` workers",
				Value:       cfg.Workers,
				Destination: &cfg.Workers,
				Validator:   command.Within(1, 64),
			},
			&cli.IntFlag{
				Name:        "first-port",
				Usage:       "listen on `PORT` and the two that follow",
				Value:       cfg.FirstPort,
				Destination: &cfg.FirstPort,
				Validator:   command.Within(1, 65533),
			},
		),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := command.NoArguments(cmd); err != nil {
				return err
			}
			if len(broker.URLs) > 0 {
				if err := broker.Check(); err != nil {
					return command.UsageError(err)
				}
			}
			cfg.URLs = broker.URLs
			cfg.Output = cmd.Root().ErrWriter
			return stack.Run(ctx, cfg, func() { printNext(cmd, cfg.FirstPort) })
		},
	}
}

// printNext prints the commands to try next.
func printNext(cmd *cli.Command, port int) {
	api, socket := fmt.Sprintf("http://localhost:%d", port), fmt.Sprintf("ws://localhost:%d%s", port+2, wire.ListenPath)
	sendFlags, listenFlags := "", ""
	if api != defaultAPI {
		sendFlags, listenFlags = " --url "+api, " --url "+socket
	}
	fmt.Fprintf(cmd.Root().ErrWriter, `
revq is up. In other terminals, type:

    revq listen%s
    revq send%s --text abcdef

or, without revq send:

    curl -d text=abcdef http://localhost:%d%s

or open http://localhost:%d/ in a browser.

Ctrl-C stops everything.

`, listenFlags, sendFlags, port+1, wire.QueuePath, port+2)
}
