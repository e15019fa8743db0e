package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/command"
	"github.com/revq/revq/internal/daemon"
	"github.com/revq/revq/internal/program"
)

// The sections of the manual for commands and for daemons (man-pages(7)).
const (
	manCommands = 1
	manDaemons  = 8
)

// manual writes the manual pages. Installers call it.
func manual() *cli.Command {
	return &cli.Command{
		Name:      "man",
		Usage:     "write the manual pages of all programs to a directory",
		ArgsUsage: "DIRECTORY",
		Description: `The pages go to man1 and man8 below the directory.

EXAMPLES:
   revq man /usr/local/share/man
   revq man /tmp/man && man -M /tmp/man revq-send`,
		Action: func(_ context.Context, cmd *cli.Command) error {
			if cmd.NArg() != 1 {
				return command.Usagef("name one directory, such as /usr/local/share/man")
			}
			for path, page := range manPages(cmd.Root()) {
				path = filepath.Join(cmd.Args().First(), path)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					return fmt.Errorf("make a directory for the manual pages: %w", err)
				}
				if err := os.WriteFile(path, page, 0o644); err != nil {
					return fmt.Errorf("write a manual page: %w", err)
				}
			}
			return nil
		},
	}
}

// manPages returns the pages of all programs by their paths.
func manPages(root *cli.Command) map[string][]byte {
	pages := make(map[string][]byte)
	daemons := []daemon.Program{program.API(), program.Socket(), program.Worker()}
	var names []string
	for _, d := range daemons {
		names = append(names, fmt.Sprintf("%s(%d)", d.Name, manDaemons))
		pages[fmt.Sprintf("man%d/%s.%[1]d", manDaemons, d.Name)] = command.ManPage(d.Command(), manDaemons, nil, fmt.Sprintf("%s(%d)", root.Name, manCommands))
	}
	pages[fmt.Sprintf("man%d/%s.%[1]d", manCommands, root.Name)] = command.ManPage(root, manCommands, nil, names...)
	addManPages(pages, root, []string{root.Name})
	return pages
}

// addManPages adds the pages of the commands below parent, which is reached by
// path.
func addManPages(pages map[string][]byte, parent *cli.Command, path []string) {
	for _, sub := range parent.VisibleCommands() {
		whole := append(slices.Clip(path), sub.Name)
		pages[fmt.Sprintf("man%d/%s.%[1]d", manCommands, strings.Join(whole, "-"))] = command.ManPage(sub, manCommands, path)
		addManPages(pages, sub, whole)
	}
}
