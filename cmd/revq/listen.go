package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/client"
	"github.com/revq/revq/internal/command"
)

const defaultSocket = "ws://localhost:8083/listen_results"

func listen() *cli.Command {
	var (
		address string
		json    bool
		count   int
	)
	return &cli.Command{
		Name:  "listen",
		Usage: "print the greeting, and each result as it arrives",
		Description: `When the connection is lost, it is made again. Results that came in between
are missed; a line on standard error tells.`,
		Flags: []cli.Flag{
			&cli.StringFlag{
				Name:        "url",
				Usage:       "`URL` of the socket server",
				Sources:     cli.EnvVars("REVQ_SOCKET_URL"),
				Value:       defaultSocket,
				Destination: &address,
			},
			&cli.BoolFlag{
				Name:        "json",
				Usage:       "print each message as a JSON object, with offset, id and times",
				Destination: &json,
			},
			&cli.IntFlag{
				Name:        "count",
				Aliases:     []string{"n"},
				Usage:       "end after `N` results",
				HideDefault: true,
				Destination: &count,
				Validator: func(n int) error {
					if n < 1 {
						return fmt.Errorf("%d results cannot be waited for: give 1 or more", n)
					}
					return nil
				},
			},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := command.NoArguments(cmd); err != nil {
				return err
			}
			if json {
				address = jsonURL(address)
			}
			stdout, stderr := cmd.Root().Writer, cmd.Root().ErrWriter
			write := func(message []byte) error {
				_, err := fmt.Fprintf(stdout, "%s\n", message)
				return err
			}
			greeted, received := false, 0
			l := client.Listener{
				URL: address,
				Greeted: func(message []byte) error {
					if greeted {
						fmt.Fprintln(stderr, "revq: connected again")
						return nil
					}
					greeted = true
					return write(message)
				},
				Received: func(message []byte) error {
					if err := write(message); err != nil {
						return err
					}
					if received++; received == count {
						return errEnough
					}
					return nil
				},
				Lost: func(reason error, wait time.Duration) {
					what := "not connected to " + address
					if greeted {
						what = "connection lost, results may be missed"
					}
					fmt.Fprintf(stderr, "revq: %s: %v; trying again in %v\n", what, reason, wait.Round(time.Millisecond))
				},
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

var errEnough = errors.New("as many results as wanted")

// jsonURL adds to a socket server's URL that messages shall be JSON. An
// unusable URL is left for the client to report.
func jsonURL(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return address
	}
	query := u.Query()
	query.Set("format", "json")
	u.RawQuery = query.Encode()
	return u.String()
}
