package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/command"
	"github.com/revq/revq/internal/token"
)

func tokens() *cli.Command {
	return &cli.Command{
		Name:  "token",
		Usage: "make tokens for sending and listening",
		Description: `EXAMPLES:
   revq token new --scope send
   revq token new --scope listen --queue thumbnails`,
		Commands: []*cli.Command{newToken()},
		Action: func(_ context.Context, cmd *cli.Command) error {
			if cmd.Args().Present() {
				return command.Usagef("there is no command %q: use new", cmd.Args().First())
			}
			return cli.ShowSubcommandHelp(cmd)
		},
	}
}

func newToken() *cli.Command {
	var (
		scope  string
		queues []string
		until  time.Duration
	)
	return &cli.Command{
		Name:  "new",
		Usage: "print a new token, and the line that lets it in",
		Description: `The token is the first line on standard output: give it to the client, and keep
it nowhere else. The second line goes into the file of --tokens of revq-api and
revq-socket, which holds hashes only. Then reload these daemons.

EXAMPLES:
   revq token new --scope send --queue thumbnails
   revq token new --scope send,listen --valid 2160h`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "scope", Usage: "`SCOPE` of the token: send, listen, or send,listen", Required: true, Destination: &scope},
			&cli.StringSliceFlag{Name: "queue", Usage: "`QUEUE` that the token is for (repeatable; default: all)", Destination: &queues},
			&cli.DurationFlag{
				Name: "valid", Usage: "`TIME` for which the token is valid (default: for ever)", HideDefault: true, Destination: &until,
				Validator: command.Within(time.Minute, 0),
			},
		},
		Action: func(_ context.Context, cmd *cli.Command) error {
			var grant token.Grant
			err := command.NoArguments(cmd)
			if err == nil {
				if grant.Scope, err = token.ParseScope(scope); err != nil {
					err = command.Usagef("--scope: %v", err)
				}
			}
			if err == nil {
				if grant.Queues, err = token.ParseQueues(cmp.Or(strings.Join(queues, ","), token.AllQueues)); err != nil {
					err = command.Usagef("--queue: %v", err)
				}
			}
			if err != nil {
				return err
			}
			if until > 0 {
				grant.Expires = time.Now().Add(until)
			}
			secret, hash := token.New()
			_, err = fmt.Fprintf(cmd.Root().Writer, "%s\n%s\n", secret, grant.Line(hash))
			return err
		},
	}
}

// A secret is where a client's token comes from: a file or a variable, never
// the command line, which every user of the machine can read.
type secret struct{ file string }

// tokenVariable is the environment variable with a token.
const tokenVariable = "REVQ_TOKEN"

func (s *secret) flag() cli.Flag {
	return &cli.StringFlag{
		Name: "token-file", Usage: "send the token in `FILE` (default: the token in $" + tokenVariable + ", if it is set)", TakesFile: true, Destination: &s.file,
		Sources: command.Variable("token-file"),
	}
}

// read returns the token, "" if there is none.
func (s *secret) read() (string, error) {
	text := os.Getenv(tokenVariable)
	if s.file != "" {
		content, err := os.ReadFile(s.file)
		if err != nil {
			return "", command.UsageError(fmt.Errorf("--token-file: %w", err))
		}
		text = string(content)
	}
	// What revq token new prints has a second line.
	text, _, _ = strings.Cut(strings.TrimSpace(text), "\n")
	text = strings.TrimSpace(text)
	for _, c := range []byte(text) {
		if c <= ' ' || c > '~' {
			return "", command.Usagef("the token of --token-file or $%s has a character that no token has", tokenVariable)
		}
	}
	return text, nil
}
