package command

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/setting"
)

func TestFlags(t *testing.T) {
	type values struct {
		count int
		bytes int64
		pause time.Duration
		wait  time.Duration
	}
	defaults := values{7, 8, 9 * time.Second, 10 * time.Second}
	for _, tt := range []struct {
		name string
		args []string
		env  map[string]string
		want values // if nothing is said
		said string
	}{
		{name: "defaults", want: defaults},
		{name: "flags", args: []string{"--max-count", "1", "--bytes=2", "--pause", "3s", "--wait=4s"}, want: values{1, 2, 3 * time.Second, 4 * time.Second}},
		{name: "variables", env: map[string]string{"REVQ_MAX_COUNT": "10", "REVQ_BYTES": "3000000000", "REVQ_PAUSE": "1h", "REVQ_WAIT": "99h"},
			want: values{10, 3_000_000_000, time.Hour, 99 * time.Hour}},
		{name: "a flag wins", args: []string{"--max-count", "5"}, env: map[string]string{"REVQ_MAX_COUNT": "wrong"}, want: values{5, 8, 9 * time.Second, 10 * time.Second}},

		{name: "too few", args: []string{"--max-count", "0"}, said: "--max-count must be 1 to 10, not 0"},
		{name: "too many", args: []string{"--max-count=11"}, said: "--max-count must be 1 to 10, not 11"},
		{name: "negative", args: []string{"--bytes", "-1"}, said: "--bytes must be 2 to 3000000000, not -1"},
		{name: "too large", args: []string{"--bytes", "3000000001"}, said: "--bytes must be 2 to 3000000000, not 3000000001"},
		{name: "too short", args: []string{"--pause", "1ms"}, said: "--pause must be 100ms to 1h0m0s, not 1ms"},
		{name: "too long", args: []string{"--pause", "61m"}, said: "--pause must be 100ms to 1h0m0s, not 1h1m0s"},
		{name: "no upper bound", args: []string{"--wait", "0s"}, said: "--wait must be 1s or more, not 0s"},
		{name: "a variable", env: map[string]string{"REVQ_MAX_COUNT": "0"}, said: "$REVQ_MAX_COUNT must be 1 to 10, not 0"},
		{name: "a variable of a time", env: map[string]string{"REVQ_WAIT": "-1s"}, said: "$REVQ_WAIT must be 1s or more, not -1s"},
		{name: "no number", args: []string{"--max-count", "1e3"}, said: `--max-count: "1e3" is not a whole number`},
		{name: "no time", env: map[string]string{"REVQ_PAUSE": "10"}, said: `$REVQ_PAUSE: "10" is not a time: give a number and a unit, such as 500ms, 10s or 5m`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for name, value := range tt.env {
				t.Setenv(name, value)
			}
			got := defaults
			var stderr bytes.Buffer
			cmd := &cli.Command{
				Name: "prog", ErrWriter: &stderr,
				Flags: Flags([]setting.Setting{
					setting.Count("max-count", "items", "", &got.count, 1, 10),
					setting.Count("bytes", "bytes", "", &got.bytes, 2, 3_000_000_000),
					setting.Time("pause", "", &got.pause, 100*time.Millisecond, time.Hour),
					setting.Time("wait", "", &got.wait, time.Second, 0),
				}),
				Action: func(context.Context, *cli.Command) error { return nil },
			}
			status := Run(t.Context(), cmd, append([]string{"prog"}, tt.args...))
			if tt.said == "" {
				if status != StatusOK || got != tt.want {
					t.Errorf("status %d, %+v, want %+v; said %q", status, got, tt.want, &stderr)
				}
				return
			}
			if want := "prog: " + tt.said + " (see prog --help)\n"; status != StatusUsage || stderr.String() != want {
				t.Errorf("status %d and %q, want %d and %q", status, &stderr, StatusUsage, want)
			}
		})
	}
}
