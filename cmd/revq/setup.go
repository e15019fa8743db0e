package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/command"
	"github.com/revq/revq/internal/rabbit"
)

func setup() *cli.Command {
	broker := rabbit.DefaultConfig("revq setup")
	return &cli.Command{
		Name:  "setup",
		Usage: "declare the exchange and the queues at the broker",
		Description: `The daemons do this by themselves if their users may. Where each has a user
with narrow permissions, run this first, as a user who may configure, write and
read what is called revq or begins with revq. followed by a name.`,
		Flags: broker.Flags(),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := command.NoArguments(cmd); err != nil {
				return err
			}
			if err := broker.Check(); err != nil {
				return command.UsageError(err)
			}
			if err := rabbit.Setup(ctx, broker); err != nil {
				return err
			}
			fmt.Fprintln(cmd.Root().ErrWriter, "revq: the broker has all that revq needs")
			return nil
		},
	}
}
