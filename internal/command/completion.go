package command

import (
	"bytes"
	"context"
	"errors"
	"strings"

	"github.com/urfave/cli/v3"
)

// The library's script for Bash needs the package bash-completion, which most
// containers lack. The replacement uses what Bash itself has.
const (
	needsPackage = "  else\n    _get_comp_words_by_ref "
	mayUse       = "  elif declare -F _get_comp_words_by_ref >/dev/null 2>&1; then\n    _get_comp_words_by_ref "
)

// repairCompletion makes the script for Bash work without bash-completion.
func repairCompletion(completion *cli.Command) {
	for _, shell := range completion.Commands {
		if shell.Name != "bash" {
			continue
		}
		render := shell.Action
		shell.Action = func(ctx context.Context, cmd *cli.Command) error {
			root := cmd.Root()
			out := root.Writer
			var script bytes.Buffer
			root.Writer = &script
			err := render(ctx, cmd)
			root.Writer = out
			if err != nil {
				return err
			}
			if !strings.Contains(script.String(), needsPackage) {
				return errors.New("the script for Bash is not what is known to work")
			}
			_, err = out.Write([]byte(strings.Replace(script.String(), needsPackage, mayUse, 1)))
			return err
		}
	}
}
