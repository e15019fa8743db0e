package main

import (
	"context"
	"io"
	"os"

	"github.com/urfave/cli/v3"
	"golang.org/x/term"

	"github.com/revq/revq/internal/command"
)

// root returns the program's commands. Data is read from stdin and written to
// stdout, everything else goes to stderr.
func root(stdin io.Reader, stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:                  "revq",
		Usage:                 "a task queue whose results are pushed to listeners",
		EnableShellCompletion: true,
		HideHelpCommand:       true,
		Reader:                stdin,
		Writer:                stdout,
		ErrWriter:             stderr,
		Commands:              []*cli.Command{up(), send(), listen(), dead(), setup(), handle(), settings(), benchmark(), manual()},
		Action: func(_ context.Context, cmd *cli.Command) error {
			if cmd.Args().Present() {
				return command.Usagef("there is no command %q: use up, send, listen, dead, setup, handle, settings, bench or man", cmd.Args().First())
			}
			return cli.ShowRootCommandHelp(cmd)
		},
	}
}

// isTerminal reports whether f, a stream of the program, is a terminal.
func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
