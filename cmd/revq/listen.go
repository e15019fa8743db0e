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
		token secret
		json  bool
		count int
		how   printing
	)
	return &cli.Command{
		Name:  "listen",
		Usage: "print the greeting, and each result as it arrives",
		Description: `When the connection is lost, revq reconnects, to the next site if several are
given, and resumes after the last result received. If results are missing
because they are no longer kept, a line on standard error says so, and so does
one for each task that is given up. With --id, revq ends after the task's result;
if there is none, it says why, and the exit status is 1.

EXAMPLES:
   revq listen
   revq listen --json --after -1
   revq listen --queue thumbnails --queue reports
   revq listen --id order-1
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
			token.flag(),
			&cli.BoolFlag{
				Name:        "json",
				Usage:       "print each message, of any type, as a JSON object with offset, id and times",
				Destination: &json,
			},
			&cli.StringFlag{
				Name:        "after",
				Usage:       "resume after the result at `OFFSET`, or at OFFSET/ID, which also checks that it is the same result; -1 for all results that are kept",
				Destination: &after,
			},
			&cli.StringSliceFlag{
				Name:        "queue",
				Usage:       "print only results of the queue `NAME` (repeatable)",
				Destination: &l.Queues,
				Validator:   checkQueues,
			},
			&cli.StringFlag{
				Name:        "id",
				Usage:       "print only the result of the task `ID`, and end",
				Destination: &l.ID,
				Validator:   wire.CheckID,
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
			if l.Token, err = token.read(); err != nil {
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
			var without error // why the only task has no result
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
				case wire.TypeLost, wire.TypeFailed:
					reason := noResult(m)
					if l.ID != "" && m.ID == l.ID {
						without = reason
					} else {
						note(stderr, "%v", reason)
					}
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
			case err == nil:
				return without
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

// noResult returns why a task has no result, as a message of the type lost or
// failed says.
func noResult(m client.Message) error {
	if m.Type == wire.TypeLost {
		return fmt.Errorf("the result of %q cannot be sent: %s", m.ID, m.Text)
	}
	return fmt.Errorf("the task %q was given up: %s", m.ID, m.Text)
}

func checkQueues(names []string) error {
	for _, name := range names {
		if err := wire.CheckQueue(name); err != nil {
			return err
		}
	}
	return nil
}

var errEnough = errors.New("received --count results")
