// Revq is revq's command line: it runs everything on one machine, sends texts
// and listens to results.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/revq/revq/internal/command"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	return command.Run(ctx, root(os.Stdin, os.Stdout, os.Stderr), os.Args)
}
