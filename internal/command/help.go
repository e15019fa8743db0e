package command

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v3"
)

// examples is the heading of a Description's last part.
const examples = "EXAMPLES:\n"

func init() { cli.HelpPrinter = printHelp } // the library has no other place for it

// printHelp prints help as the library does, but puts the examples at the end,
// so that they are still on the screen when the rest has scrolled away.
func printHelp(w io.Writer, template string, data any) {
	cmd, ok := data.(*cli.Command)
	if !ok {
		cli.DefaultPrintHelp(w, template, data)
		return
	}
	whole := cmd.Description
	text, shown, found := strings.Cut(whole, examples)
	cmd.Description = strings.TrimSpace(text)
	cli.DefaultPrintHelp(w, template, cmd)
	cmd.Description = whole
	if found {
		fmt.Fprintf(w, "\n%s%s\n", examples, strings.TrimRight(shown, "\n"))
	}
}
