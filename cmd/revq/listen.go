package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/client"
	"github.com/revq/revq/internal/command"
	"github.com/revq/revq/internal/wire"
)

const defaultSocket = "ws://localhost:8083" + wire.ListenPath

func listen() *cli.Command {
	var (
		l     client.Listener
		after string
		ca    trust
		json  bool
		count int
		how   printing
	)
	return &cli.Command{
		Name:  "listen",
		Usage: "print the greeting, and each result as it arrives",
		Description: `When the connection is lost, revq reconnects, to the next site if several are
given, and resumes after the last result received. If results are missing
because they are no longer kept, a line on standard error says so.

EXAMPLES:
   revq listen
   revq listen --json --after -1
   revq listen --count 3 --url ws://a:8083 --url ws://b:8083`,
		Flags: append([]cli.Flag{
			&cli.StringSliceFlag{
				Name:        "url",
				Usage:       "`URL` of a socket site; if one is away, the next one is tried (repeatable)",
				Sources:     cli.EnvVars("REVQ_SOCKET_URL"),
				Value:       []string{defaultSocket},
				Destination: &l.URLs,
			},
			ca.flag(),
			&cli.BoolFlag{
				Name:        "json",
				Usage:       "print each message as a JSON object, with offset, id and times",
				Destination: &json,
			},
			&cli.StringFlag{
				Name:        "after",
				Usage:       "resume after the result at `OFFSET`, or at OFFSET/ID, which also checks that it is the same result; -1 for all results that are kept",
				Destination: &after,
			},
			&cli.IntFlag{
				Name:        "count",
				Aliases:     []string{"n"},
				Usage:       "end after `N` results",
				HideDefault: true,
				Destination: &count,
				Validator:   command.Within(1, 0),
			},
		}, how.flags()...),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			err := cmp.Or(command.NoArguments(cmd), how.check())
			if err != nil {
				return err
			}
			if l.TLS, err = ca.config(); err != nil {
				return err
			}
			if after != "" {
				mark, err := wire.ParseMark(after)
				if err != nil {
					return command.UsageError(fmt.Errorf("--after: %w", err))
				}
				l.After = &mark
			}
			stdout, stderr := cmd.Root().Writer, cmd.Root().ErrWriter
			write := func(m client.Message) error {
				line := how.text(stdout, m.Text)
				if json {
					line = how.json(stdout, m.Raw)
				}
				_, err := fmt.Fprintln(stdout, line)
				return err
			}
			greeted, received := false, 0
			l.Greeted = func(m client.Message) error {
				if greeted {
					note(stderr, "reconnected")
					return nil
				}
				greeted = true
				return write(m)
			}
			l.Received = func(m client.Message) error {
				switch m.Type {
				case wire.TypeGap:
					note(stderr, "results are missing here: %s", m.Text)
				case wire.TypeLost:
					note(stderr, "the result of %q cannot be sent: %s", m.ID, m.Text)
				}
				if m.Type != wire.TypeResult && !json {
					return nil
				}
				if err := write(m); err != nil {
					return err
				}
				if m.Type == wire.TypeResult {
					received++
				}
				if received == count && count > 0 {
					return errEnough
				}
				return nil
			}
			l.Lost = func(reason error, wait time.Duration) {
				what := "connection lost"
				switch {
				case !greeted:
					what = "not connected to " + l.URL()
				case l.After == nil:
					what = "connection lost, results may be missed"
				}
				note(stderr, "%s: %v; retrying in %v", what, reason, wait.Round(time.Millisecond))
			}
			ctx, cancel := untilHangUp(ctx, stdout)
			defer cancel()
			switch err := l.Run(ctx); {
			case errors.Is(err, errEnough) || ctx.Err() != nil:
				return nil
			case errors.Is(err, client.ErrBadURL):
				return command.UsageError(err)
			default:
				return err
			}
		},
	}
}

var errEnough = errors.New("received --count results")
