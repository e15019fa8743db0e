package main

import (
	"cmp"
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
		Name:      "up",
		Usage:     "run everything on this machine, until Ctrl-C",
		ArgsUsage: "[-- PROGRAM ARG ...]",
		Description: `Runs a private RabbitMQ (or uses that of --amqp-url), the API on two sites, the
socket server on one, and the workers. They listen on this machine only. When
the command ends, it stops and removes all of them.

With --queue, there is also a queue of that name, and as many workers that have
PROGRAM handle its tasks.

The daemons take their settings from the environment. REVQ_PAUSE=0s, for
example, makes the workers not pause. revq settings lists all settings. Only the
command line says which program handles tasks: REVQ_QUEUE, REVQ_EXEC and
REVQ_HANDLER are ignored.

EXAMPLES:
   revq up
   REVQ_PAUSE=0s revq up --workers 4
   revq up --queue shout -- ./shout.sh
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
			&cli.StringFlag{
				Name:        "queue",
				Usage:       "also run workers for the `QUEUE` with this name, whose tasks PROGRAM handles",
				Destination: &cfg.Queue,
				Validator:   wire.CheckQueue,
			},
			&cli.BoolFlag{
				Name:        "persistent",
				Usage:       "PROGRAM is no filter, but speaks the handlers' protocol",
				Destination: &cfg.Persistent,
			},
		),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			cfg.Program = cmd.Args().Slice()
			switch {
			case cfg.Queue == "" && len(cfg.Program) > 0:
				return command.Usagef("the program %s needs a queue: add --queue NAME before --", cfg.Program[0])
			case cfg.Queue == wire.DefaultQueue:
				return command.Usagef("the queue %s has a handler already: choose another name", cfg.Queue)
			case cfg.Queue != "" && len(cfg.Program) == 0:
				return command.Usagef("the queue %s needs a program: write -- PROGRAM ARG ... at the end", cfg.Queue)
			}
			if len(broker.URLs) > 0 {
				if err := broker.Check(); err != nil {
					return command.UsageError(err)
				}
			}
			cfg.URLs = broker.URLs
			cfg.Output = cmd.Root().ErrWriter
			return stack.Run(ctx, cfg, func() { printNext(cmd, cfg.FirstPort, cmp.Or(cfg.Queue, wire.DefaultQueue)) })
		},
	}
}

// printNext prints the commands to try next.
func printNext(cmd *cli.Command, port int, queue string) {
	api, socket := fmt.Sprintf("http://localhost:%d", port), fmt.Sprintf("ws://localhost:%d%s", port+2, wire.ListenPath)
	sendFlags, listenFlags := "", ""
	if api != defaultAPI {
		sendFlags, listenFlags = " --url "+api, " --url "+socket
	}
	path := wire.QueuePath
	if queue != wire.DefaultQueue {
		sendFlags += " --queue " + queue
		path = wire.QueuePrefix + queue
	}
	fmt.Fprintf(cmd.Root().ErrWriter, `
revq is up. In other terminals, type:

    revq listen%s
    revq send%s --text abcdef

or, without revq send:

    curl -d text=abcdef http://localhost:%d%s

or open http://localhost:%d/ in a browser.

Ctrl-C stops everything.

`, listenFlags, sendFlags, port+1, path, port+2)
}
