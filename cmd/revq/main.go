// Revq is revq's command line: it runs everything on one machine, sends texts
// and listens to results.
package main

import (
	"context"
	"os"

	"github.com/revq/revq/internal/command"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := command.UntilSignal(context.Background())
	defer stop()
	return command.Run(ctx, root(os.Stdin, os.Stdout, os.Stderr), os.Args)
}
