// Revq-worker takes tasks from the queue, handles them, and publishes the results.
package main

import (
	"github.com/revq/revq/internal/daemon"
	"github.com/revq/revq/internal/program"
)

func main() { daemon.Main(program.Worker()) }
