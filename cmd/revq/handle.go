package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/command"
	"github.com/revq/revq/internal/handler"
	"github.com/revq/revq/internal/visible"
)

// handle serves the handlers' protocol with a program, or checks that a program
// follows the protocol.
func handle() *cli.Command {
	cfg := handler.DefaultConfig()
	var check bool
	flags := []cli.Flag{
		&cli.BoolFlag{Name: "check", Usage: "let PROGRAM handle some texts, and print how it breaks the protocol", Destination: &check},
	}
	for _, s := range cfg.Settings() {
		switch s.Name {
		case "handler":
			s.Usage = "`MODE` of the program: filter, persistent, or, with --check, unix:PATH for a service at a socket"
		case "exec", "recycle":
			continue
		}
		flags = append(flags, command.Flags(append(cfg.Settings()[:0:0], s))...)
	}
	return &cli.Command{
		Name:      "handle",
		Usage:     "run a program for the tasks that a worker sends over standard input",
		ArgsUsage: "-- PROGRAM ARG ...",
		Description: `A service with its own user and sandbox runs this command for each connection
to its socket (Accept=yes). Workers use it with --handler unix:PATH.

A filter gets each text on its standard input and writes the result to its
standard output. A persistent program speaks with the worker itself; revq ends
it when the worker has closed the connection. Both get the variables of the
service.

With --check, revq tests whether the program does what workers expect of a
handler, by default of a persistent one.

EXAMPLES:
   revq handle -- /usr/local/bin/thumbnail
   revq handle --handler persistent -- ./classify.py
   revq handle --check -- ./classify.py
   revq handle --check --handler filter -- tr a-z A-Z`,
		Flags: flags,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			cfg.Program = cmd.Args().Slice()
			if len(cfg.Program) == 0 && (!check || !cfg.Enabled()) { // unix:PATH needs no program
				return command.Usagef("name the program: write -- PROGRAM ARG ...")
			}
			if check && !cmd.IsSet("handler") {
				cfg.Mode = "persistent"
			}
			if err := cfg.Check(); err != nil {
				return command.UsageError(err)
			}
			root := cmd.Root()
			log := slog.New(slog.NewTextHandler(root.ErrWriter, nil))
			ctx, stop := command.UntilSignal(ctx)
			defer stop()
			if !check && cfg.Mode == "persistent" {
				return handler.Attend(ctx, cfg, os.Stdin, os.Stdout, os.Stderr)
			}
			if !check {
				return handler.Serve(ctx, cfg, root.Reader, root.Writer, log)
			}
			return handler.Check(ctx, cfg, log, func(what string, wrong error) {
				if wrong != nil {
					fmt.Fprintf(root.Writer, "FAIL  %s: %s\n", what, visible.Line(wrong.Error()))
					return
				}
				fmt.Fprintf(root.Writer, "ok    %s\n", what)
			})
		},
	}
}
