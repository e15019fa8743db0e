package main

import (
	"context"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"
	"golang.org/x/term"

	"github.com/revq/revq/internal/command"
)

// root returns the command revq. It reads data from stdin, writes data to
// stdout, and everything else to stderr.
func root(stdin io.Reader, stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:  "revq",
		Usage: "a task queue whose results are pushed to listeners",
		Description: `EXAMPLES:
   revq up
   revq listen
   revq send abcdef`,
		EnableShellCompletion: true,
		HideHelpCommand:       true,
		Reader:                stdin,
		Writer:                stdout,
		ErrWriter:             stderr,
		Commands:              []*cli.Command{up(), send(), listen(), dead(), statusCommand(), metrics(), setup(), handle(), tokens(), settings(), benchmark(), manual(), help()},
		Action: func(_ context.Context, cmd *cli.Command) error {
			if cmd.Args().Present() {
				return command.Usagef("there is no command %q: use up, send, listen, dead, status, metrics, setup, handle, token, settings, bench or man", cmd.Args().First())
			}
			return cli.ShowRootCommandHelp(cmd)
		},
	}
}

// help prints what --help prints, since many users try it first.
func help() *cli.Command {
	return &cli.Command{
		Name:      "help",
		Usage:     "show the help of revq, or of a command",
		ArgsUsage: "[COMMAND ...]",
		Description: `EXAMPLES:
   revq help
   revq help dead requeue`,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			shown := cmd.Root()
			for _, name := range cmd.Args().Slice() {
				if shown = shown.Command(name); shown == nil {
					return command.Usagef("there is no command %q", strings.Join(cmd.Args().Slice(), " "))
				}
			}
			again := root(cmd.Root().Reader, cmd.Root().Writer, cmd.Root().ErrWriter)
			return again.Run(ctx, slices.Concat([]string{again.Name}, cmd.Args().Slice(), []string{"--help"}))
		},
	}
}

// isTerminal reports whether f, a stream of the program, is a terminal.
func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
