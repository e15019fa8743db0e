package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
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
			p := &listening{l: &l, how: how, json: json, count: count, stdout: cmd.Root().Writer, stderr: cmd.Root().ErrWriter}
			l.Greeted, l.Received, l.Lost = p.greet, p.receive, p.lost
			ctx, cancel := untilHangUp(ctx, p.stdout)
			defer cancel()
			switch err := l.Run(ctx); {
			case err == nil:
				return p.without
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

// A listening prints what a listener receives.
type listening struct {
	l              *client.Listener
	how            printing
	json           bool
	count          int // of results after which it ends; 0 for no end
	stdout, stderr io.Writer

	greeted  bool
	received int   // results
	without  error // why the only task has no result
}

func (p *listening) write(m client.Message) error {
	line := p.how.text(p.stdout, m.Text)
	if p.json {
		line = p.how.json(p.stdout, m.Raw)
	}
	_, err := fmt.Fprintln(p.stdout, line)
	return err
}

func (p *listening) greet(m client.Message) error {
	if p.greeted {
		note(p.stderr, "reconnected")
		return nil
	}
	p.greeted = true
	return p.write(m)
}

func (p *listening) receive(m client.Message) error {
	switch m.Type {
	case wire.TypeGap:
		note(p.stderr, "results are missing here: %s", m.Text)
	case wire.TypeLost, wire.TypeFailed:
		reason := noResult(m)
		if p.l.ID != "" && m.ID == p.l.ID {
			p.without = reason
		} else {
			note(p.stderr, "%v", reason)
		}
	}
	if m.Type != wire.TypeResult && !p.json {
		return nil
	}
	if err := p.write(m); err != nil {
		return err
	}
	if m.Type == wire.TypeResult {
		p.received++
	}
	if p.received == p.count && p.count > 0 {
		return errEnough
	}
	return nil
}

func (p *listening) lost(reason error, wait time.Duration) {
	what := "connection lost"
	switch {
	case !p.greeted:
		what = "not connected to " + p.l.URL()
	case p.l.After == nil:
		what = "connection lost, results may be missed"
	}
	note(p.stderr, "%s: %v; retrying in %v", what, reason, wait.Round(time.Millisecond))
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
