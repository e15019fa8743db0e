// Revq-socket sends every result to everyone who listens.
package main

import (
	"github.com/revq/revq/internal/daemon"
	"github.com/revq/revq/internal/program"
)

func main() { daemon.Main(program.Socket()) }
