package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/command"
	"github.com/revq/revq/internal/visible"
)

// A printing says how to print texts that others sent: as they are, or quoted,
// so that each is one line and a terminal obeys nothing in it.
type printing struct{ raw, quote bool }

func (p *printing) flags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "raw", Usage: "print texts as they are, even to a terminal, which obeys escape sequences in them", Destination: &p.raw},
		&cli.BoolFlag{Name: "quote", Usage: "quote texts with line breaks or invisible characters, even if standard output is not a terminal", Destination: &p.quote},
	}
}

func (p *printing) check() error {
	if p.raw && p.quote {
		return command.Usagef("--raw and --quote exclude each other")
	}
	return nil
}

// text returns s as it is to be printed to stdout.
func (p *printing) text(stdout io.Writer, s string) string {
	if p.quotes(stdout) {
		return visible.Text(s)
	}
	return s
}

// json does the same for a JSON value.
func (p *printing) json(stdout io.Writer, value []byte) string {
	if p.quotes(stdout) {
		return string(visible.JSON(value))
	}
	return string(value)
}

func (p *printing) quotes(stdout io.Writer) bool {
	return p.quote || !p.raw && isTerminal(stdout)
}

// note writes a line to w, which is standard error.
func note(w io.Writer, format string, args ...any) {
	fmt.Fprintln(w, "revq: "+command.Clean(fmt.Sprintf(format, args...)))
}
