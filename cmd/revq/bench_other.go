//go:build !linux

package main

import (
	"context"
	"errors"

	"github.com/urfave/cli/v3"
)

func benchmark() *cli.Command {
	return &cli.Command{
		Name:  "bench",
		Usage: "measure revq (on Linux)",
		Action: func(context.Context, *cli.Command) error {
			return errors.New("revq bench needs Linux: its load client is built on epoll")
		},
	}
}
