// Revq-api takes texts over HTTP and queues them.
package main

import (
	"github.com/revq/revq/internal/daemon"
	"github.com/revq/revq/internal/program"
)

func main() { daemon.Main(program.API()) }
