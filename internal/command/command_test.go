package command

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/urfave/cli/v3"
)

// The library's messages may change with its version: none of its own words shall reach the user.
func TestRun(t *testing.T) {
	for _, tt := range []struct {
		args   []string
		env    string // of REVQ_TEST_NUM
		err    error  // of the action
		status int
		want   string
	}{
		{args: []string{"do"}, status: StatusOK},
		{args: []string{"do"}, err: errors.New("no luck"), status: StatusFailed, want: "prog: no luck\n"},
		{args: []string{"do"}, err: Usagef("two\nlines"), status: StatusUsage, want: "prog: two lines (see prog do --help)\n"},
		{args: []string{"--no"}, status: StatusUsage, want: "prog: there is no flag --no (see prog --help)\n"},
		{args: []string{"do", "-x"}, status: StatusUsage, want: "prog: there is no flag -x (see prog do --help)\n"},
		{args: []string{"do", "--n"}, status: StatusUsage, want: "prog: --n needs a value (see prog do --help)\n"},
		{args: []string{"do", "--num", "x y"}, status: StatusUsage, want: "prog: --num: \"x y\" is not a whole number (see prog do --help)\n"},
		{args: []string{"do", "--num", "99999999999999999999"}, status: StatusUsage, want: "prog: --num: \"99999999999999999999\" is too large (see prog do --help)\n"},
		{args: []string{"do", "--num", "7"}, status: StatusUsage, want: "prog: --num must be 1 to 5 (see prog do --help)\n"},
		{args: []string{"do", "--wait", "5"}, status: StatusUsage, want: "prog: --wait: \"5\" is no time: give a number and a unit, such as 500ms, 10s or 5m (see prog do --help)\n"},
		{args: []string{"do", "--wait", "soon"}, status: StatusUsage, want: "prog: --wait: \"soon\" is no time: give a number and a unit, such as 500ms, 10s or 5m (see prog do --help)\n"},
		{args: []string{"do"}, env: "x", status: StatusUsage, want: "prog: $REVQ_TEST_NUM: \"x\" is not a whole number (see prog --help)\n"},
	} {
		if tt.env != "" {
			t.Setenv("REVQ_TEST_NUM", tt.env)
		}
		var stderr bytes.Buffer
		num, wait := 1, time.Second
		cmd := &cli.Command{
			Name:      "prog",
			ErrWriter: &stderr,
			Commands: []*cli.Command{{
				Name: "do",
				Flags: []cli.Flag{
					&cli.IntFlag{Name: "num", Aliases: []string{"n"}, Sources: cli.EnvVars("REVQ_TEST_NUM"), Destination: &num,
						Validator: func(n int) error {
							if n > 5 {
								return errors.New("--num must be 1 to 5")
							}
							return nil
						}},
					&cli.DurationFlag{Name: "wait", Destination: &wait},
				},
				Action: func(context.Context, *cli.Command) error { return tt.err },
			}},
		}
		if status := Run(t.Context(), cmd, append([]string{"prog"}, tt.args...)); status != tt.status {
			t.Errorf("%q: status %d, want %d", tt.args, status, tt.status)
		}
		if got := stderr.String(); got != tt.want {
			t.Errorf("%q: stderr %q, want %q", tt.args, got, tt.want)
		}
	}
}
