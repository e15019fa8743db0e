package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/urfave/cli/v3"
)

func TestRun(t *testing.T) {
	failure := errors.New("the disk is full")
	newCommand := func(stdout, stderr *bytes.Buffer, err error) *cli.Command {
		action := func(_ context.Context, cmd *cli.Command) error {
			fmt.Fprint(cmd.Root().Writer, "data")
			return err
		}
		return &cli.Command{
			Name: "prog", Writer: stdout, ErrWriter: stderr, Action: action, HideHelpCommand: true,
			Flags: []cli.Flag{&cli.IntFlag{Name: "number", Sources: cli.EnvVars("REVQ_TEST_NUMBER")}},
			Commands: []*cli.Command{{
				Name: "sub", Action: action,
				Flags: []cli.Flag{&cli.IntFlag{Name: "depth", Required: true}},
			}},
		}
	}
	for _, tt := range []struct {
		name   string
		args   []string
		env    string
		err    error // of the action
		status int
		stdout string
		stderr string
	}{
		{"success", nil, "", nil, StatusOK, "data", ""},
		{"success of a subcommand", []string{"sub", "--depth", "1"}, "", nil, StatusOK, "data", ""},
		{"failure", nil, "", failure, StatusFailed, "data", "prog: the disk is full\n"},
		{"failure of a subcommand", []string{"sub", "--depth", "1"}, "", failure, StatusFailed, "data", "prog: the disk is full\n"},
		{"wrong in a way that only the action sees", nil, "", Usagef("give %d more", 2), StatusUsage, "data", "prog: give 2 more (see prog --help)\n"},
		{"the same, wrapped", nil, "", fmt.Errorf("begin: %w", UsageError(failure)), StatusUsage, "data", "prog: begin: the disk is full (see prog --help)\n"},
		{"two lines become one", nil, "", UsageError(errors.Join(failure, failure)), StatusUsage, "data", "prog: the disk is full the disk is full (see prog --help)\n"},
		{"unknown flag", []string{"--nosuch"}, "", nil, StatusUsage, "", "prog: there is no flag --nosuch (see prog --help)\n"},
		{"unknown flag of a subcommand", []string{"sub", "--nosuch"}, "", nil, StatusUsage, "", "prog: there is no flag --nosuch (see prog sub --help)\n"},
		{"flag missing", []string{"sub"}, "", nil, StatusUsage, "", "prog: Required flag \"depth\" not set (see prog sub --help)\n"},
		{"variable", nil, "x", nil, StatusUsage, "", "prog: $REVQ_TEST_NUMBER: \"x\" is not a whole number (see prog --help)\n"},
		{"password in a wrong place", []string{"--number", "amqp://me:geheim@host"}, "", nil, StatusUsage, "",
			"prog: --number: \"amqp://…@host\" is not a whole number (see prog --help)\n"},
		{"password in a failure", nil, "", errors.New("dial amqp://me:geheim@host: refused"), StatusFailed, "data", "prog: dial amqp://…@host: refused\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("REVQ_TEST_NUMBER", tt.env)
			var stdout, stderr bytes.Buffer
			status := Run(t.Context(), newCommand(&stdout, &stderr, tt.err), append([]string{"prog"}, tt.args...))
			if status != tt.status || stdout.String() != tt.stdout || stderr.String() != tt.stderr {
				t.Errorf("Run() = %d, %q, %q\nwant    %d, %q, %q", status, stdout.String(), stderr.String(), tt.status, tt.stdout, tt.stderr)
			}
		})
	}
}

func TestRedact(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ message, want string }{
		{"no URL", "no URL"},
		{"see https://example.org/help", "see https://example.org/help"},
		{"amqp://me:geheim@host/", "amqp://…@host/"},
		{"amqp://me:geheim@a, amqps://me:geheim@b", "amqp://…@b"},
		{`"amqp://me:geheim@a" and "amqp://me:geheim@b"`, `"amqp://…@a" and "amqp://…@b"`},
		{`"amqp://me:ge/he@i m@host"`, `"amqp://…@host"`},
		{fmt.Sprintf("%q", `amqp://me:ge"he\im@host`), `"amqp://…@host"`},
		{"give amqp://USER:PASSWORD@HOST:PORT/VHOST, please", "give amqp://USER:PASSWORD@HOST:PORT/VHOST, please"},
	} {
		if got := redact(tt.message); got != tt.want {
			t.Errorf("redact(%s) = %s, want %s", tt.message, got, tt.want)
		}
	}
}

func TestNoArguments(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args []string
		want string
	}{
		{nil, ""},
		{[]string{"--"}, ""},
		{[]string{"one", "two"}, `unexpected argument "one"`},
	} {
		var got error
		cmd := &cli.Command{Name: "prog", HideHelpCommand: true, Action: func(_ context.Context, cmd *cli.Command) error {
			got = NoArguments(cmd)
			return nil
		}}
		if err := cmd.Run(t.Context(), append([]string{"prog"}, tt.args...)); err != nil {
			t.Fatal(err)
		}
		var wrong *usageError
		if message := fmt.Sprint(got); tt.want == "" && got != nil || tt.want != "" && (message != tt.want || !errors.As(got, &wrong)) {
			t.Errorf("NoArguments() with %q = %v, want %q", tt.args, got, tt.want)
		}
	}
}

func TestVersion(t *testing.T) {
	if Version() == "" {
		t.Error("there is no version")
	}
	for given, want := range map[string]string{
		"1.2.3":                              "1.2.3",
		"v0.0.0-20261126235951-0123456789ab": "v0.0.0-20261126235951-0123456789ab (commit 0123456789ab, 2026-11-26T23:59:51Z)",
		"v1.2.4-0.20261126235951-0123456789ab+dirty": "v1.2.4-0.20261126235951-0123456789ab+dirty (commit 0123456789ab with changes, 2026-11-26T23:59:51Z)",
		"v0.0.0-20261399235951-0123456789ab":         "v0.0.0-20261399235951-0123456789ab",
	} {
		revision, when, changed := commitOf(given)
		if got := described(given, revision, when, changed); got != want {
			t.Errorf("%s is described as %q, want %q", given, got, want)
		}
	}
	if got := described("v1.2.3", "0123456789abcdef", "2026-11-26T23:59:51Z", false); got != "v1.2.3 (commit 0123456789ab, 2026-11-26T23:59:51Z)" {
		t.Errorf("a tagged version is described as %q", got)
	}
	version = "1.2.3"
	t.Cleanup(func() { version = "" })
	var stdout bytes.Buffer
	status := Run(t.Context(), &cli.Command{Name: "prog", Writer: &stdout, ErrWriter: &stdout}, []string{"prog", "--version"})
	if status != StatusOK || !strings.HasPrefix(stdout.String(), "prog version 1.2.3") {
		t.Errorf("--version: %d, %q", status, stdout.String())
	}
}

// The second signal is seen in internal/daemon: it would end the tests.
func TestUntilSignal(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		ctx, stop := UntilSignal(t.Context())
		if err := ctx.Err(); err != nil {
			t.Fatalf("ended before the signal: %v", err)
		}
		if err := syscall.Kill(os.Getpid(), sig); err != nil {
			t.Fatal(err)
		}
		<-ctx.Done()
		stop()
		stop() // does no harm
	}
	parent, cancel := context.WithCancel(t.Context())
	ctx, stop := UntilSignal(parent)
	defer stop()
	cancel()
	<-ctx.Done()
}

// The library's messages may change with its version: none of its own words
// shall reach the user.
func TestMessages(t *testing.T) {
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
		{args: []string{"do", "--wait", "5"}, status: StatusUsage, want: "prog: --wait: \"5\" is not a time: give a number and a unit, such as 500ms, 10s or 5m (see prog do --help)\n"},
		{args: []string{"do", "--wait", "soon"}, status: StatusUsage, want: "prog: --wait: \"soon\" is not a time: give a number and a unit, such as 500ms, 10s or 5m (see prog do --help)\n"},
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
								return errors.New("must be 1 to 5")
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
