package main

import (
	"bytes"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/command"
)

// The help of each command ends with examples of it.
func TestHelpEndsWithExamples(t *testing.T) {
	t.Parallel()
	var check func(cmd *cli.Command, path []string)
	check = func(cmd *cli.Command, path []string) {
		var out bytes.Buffer
		whole := root(strings.NewReader(""), &out, io.Discard)
		if status := command.Run(t.Context(), whole, append(slices.Clone(path), "--help")); status != 0 {
			t.Errorf("%q: status %d", path, status)
		}
		example := regexp.MustCompile(`\n\nEXAMPLES:\n(   \S.*\n)*   .*\b` + strings.Join(path, `\b.*\b`) + `\b.*\n(   \S.*\n)*$`)
		if !example.Match(out.Bytes()) {
			t.Errorf("%q: the help does not end with an example:\n%s", path, &out)
		}
		if n := strings.Count(out.String(), "EXAMPLES"); n > 1 {
			t.Errorf("%q: examples are shown %d times", path, n)
		}
		for _, sub := range cmd.VisibleCommands() {
			check(sub, append(slices.Clone(path), sub.Name))
		}
	}
	check(root(strings.NewReader(""), io.Discard, io.Discard), []string{"revq"})
}
