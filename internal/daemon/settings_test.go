//go:build linux

package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/daemon/daemontest"
)

const everyDaemon = "revq-api revq-socket revq-worker"

// wrongSettings are settings that a daemon cannot work with, and what it has to
// say about them: at least the name of what is wrong.
var wrongSettings = []struct {
	daemons string
	args    string // separated by blanks
	env     string
	want    []string
}{
	// The command line itself.
	{everyDaemon, "--nosuch", "", []string{"-nosuch"}},
	{everyDaemon, "--amqp-urll=" + noBroker, "", []string{"-amqp-urll"}},
	{everyDaemon, "argument", "", []string{`unexpected argument "argument"`}},
	{everyDaemon, "help", "", []string{`unexpected argument "help"`}},
	{"revq-api revq-socket", "-- --log-level", "", []string{"unexpected argument"}},
	{everyDaemon, noBroker, "", []string{"unexpected argument"}}, // --amqp-url forgotten
	{everyDaemon, "--log-level", "", []string{"needs a value", "--log-level"}},
	{"revq-worker", "--sites 2", "", []string{"-sites"}},
	{"revq-worker", "--listen :8081", "", []string{"-listen"}},
	{"revq-socket", "--confirm-timeout 1s", "", []string{"-confirm-timeout"}},

	// The broker.
	{everyDaemon, "--amqp-url amqp://user:" + secret + "@host:port/", "", []string{"URL 1", "amqp://USER:PASSWORD@HOST:PORT/VHOST"}},
	{everyDaemon, "--amqp-url http://user:" + secret + "@host/", "", []string{"URL 1", "amqp://"}},
	{everyDaemon, "--amqp-url=amqp://user:%" + secret + "@host/", "", []string{"percent-encode"}},
	{everyDaemon, "--amqp-url=", "", []string{"amqp://USER"}},
	{everyDaemon, "--amqp-url " + noBroker + " --amqp-url nonsense", "", []string{"URL 2"}},
	{everyDaemon, "--amqp-url " + noBroker + ",amqp://user:" + secret + "@host:port/", "", []string{"URL 2"}},
	{everyDaemon, "", "REVQ_AMQP_URL=amqp://user:" + secret + "/2@host/", []string{"URL 1"}},
	{everyDaemon, "", "CREDENTIALS_DIRECTORY=testdata/wrong-credentials", []string{"URL 1"}},
	{"revq-api revq-socket", "--tls-cert x", "", []string{"give both --tls-cert and --tls-key"}},
	{"revq-api revq-socket", "--tls-cert no-such --tls-key no-such", "", []string{"load the certificate of --tls-cert and --tls-key: open no-such"}},

	// Addresses.
	{everyDaemon, "--admin :9100", "", []string{"-admin", "an admin socket is never a port"}},
	{everyDaemon, "", "REVQ_ADMIN=admin", []string{"REVQ_ADMIN", "/run/revq/"}},
	{everyDaemon, "--admin /" + strings.Repeat("a", 107), "", []string{"-admin", "a shorter one"}},
	{"revq-api revq-socket", "--sites 0", "", []string{"-sites", "1 to 9"}},
	{"revq-api revq-socket", "--sites 10", "", []string{"-sites", "1 to 9"}},
	{"revq-api revq-socket", "--sites two", "", []string{"-sites", `"two"`}},
	{"revq-api revq-socket", "", "REVQ_SITES=two", []string{"REVQ_SITES", `"two"`}},
	{"revq-api revq-socket", "--sites=" + noBroker, "", []string{"-sites"}},
	{"revq-api revq-socket", "", "REVQ_SITES=" + noBroker, []string{"REVQ_SITES"}},
	{"revq-api revq-socket", "--sites 2 --listen 127.0.0.1:0", "", []string{"--sites", "--listen"}},
	{"revq-api revq-socket", "--listen 127.0.0.1:0", "REVQ_SITES=2", []string{"--sites", "--listen"}},
	{"revq-api revq-socket", "--listen localhost", "", []string{"-listen", `"localhost"`, "HOST:PORT"}},
	{"revq-api revq-socket", "--listen localhost:", "", []string{"-listen", "HOST:PORT"}},
	{"revq-api revq-socket", "--listen localhost:nosuch", "", []string{"-listen", "HOST:PORT"}},
	{"revq-api revq-socket", "--listen localhost:65536", "", []string{"-listen", "HOST:PORT"}},
	{"revq-api revq-socket", "--listen ::1:8081", "", []string{"-listen", "HOST:PORT"}},
	{"revq-api revq-socket", "", "REVQ_LISTEN=127.0.0.1:0,8081", []string{"REVQ_LISTEN", `"8081"`}},
	{"revq-api revq-socket", "--listen " + noBroker, "", []string{"-listen"}},

	{"revq-api revq-socket", "--tokens /no/such/file", "", []string{"--tokens", "no such file"}},
	{"revq-api revq-socket", "", "REVQ_TOKENS=/dev/null", []string{"--tokens", "/dev/null", "revq token new"}},

	// What the daemons share.
	{everyDaemon, "--log-level loud", "", []string{"-log-level", "debug, info, warn or error"}},
	{everyDaemon, "--log-format xml", "", []string{"-log-format", "text or json"}},
	{everyDaemon, "", "REVQ_LOG_LEVEL=loud", []string{"REVQ_LOG_LEVEL", "debug, info, warn or error"}},
	{everyDaemon, "", "REVQ_LOG_FORMAT=xml", []string{"REVQ_LOG_FORMAT", "text or json"}},
	{everyDaemon, "--stop-timeout soon", "", []string{"-stop-timeout", `"soon"`}},
	{everyDaemon, "--stop-timeout -1s", "", []string{"-stop-timeout", "1s or more"}},
	{everyDaemon, "", "REVQ_STOP_TIMEOUT=0s", []string{"REVQ_STOP_TIMEOUT", "1s or more"}},

	// What is a daemon's own.
	{"revq-api revq-worker", "--confirm-timeout 1ms", "", []string{"-confirm-timeout", "100ms or more"}},
	{"revq-api", "--max-text 0", "", []string{"--max-text", "1 to"}},
	{"revq-api", "", "REVQ_MAX_BATCH=1e6", []string{"REVQ_MAX_BATCH"}},
	{"revq-api", "--read-timeout 10", "", []string{"-read-timeout"}},
	{"revq-socket", "--max-listeners 0", "", []string{"-max-listeners", "1 or more"}},
	{"revq-socket", "--ping-interval 1ms", "", []string{"-ping-interval", "1s or more"}},
	{"revq-api revq-socket", "--allow-origin example.org", "", []string{"-allow-origin", "scheme://host"}},
	{"revq-api revq-socket", "--allow-origin https://example.org/queue", "", []string{"-allow-origin", "has a path", "scheme://host"}},
	{"revq-api revq-socket", "", "REVQ_ALLOW_ORIGIN=https://example.org,null", []string{"REVQ_ALLOW_ORIGIN", `"null"`, "scheme://host"}},
	{"revq-api revq-socket", "--allow-host https://example.org", "", []string{"-allow-host", "without scheme and port"}},
	{"revq-api revq-socket", "", "REVQ_ALLOW_HOST=example.org:443", []string{"REVQ_ALLOW_HOST", "without scheme and port"}},
	{"revq-socket", "--keep-bytes 1", "", []string{"-keep-bytes"}},
	{"revq-worker", "--handler shell", "", []string{"-handler", "filter, persistent or unix:PATH"}},
	{"revq-worker", "--handler persistent", "", []string{"needs a program", "--exec"}},
	{"revq-worker", "--handler unix:/run/x -- cat", "", []string{"needs no program"}},
	{"revq-worker", "-- cat", "REVQ_EXEC=cat", []string{"two programs"}},
	{"revq-worker", "--task-timeout 16m -- cat", "", []string{"--task-timeout", "15m"}},
	{"revq-worker", "--max-output 0", "", []string{"-max-output", "1 to"}},
	{"revq-worker", "cat", "", []string{"unexpected argument"}}, // -- forgotten
	{"revq-worker", "--concurrency 0", "", []string{"-concurrency", "1 to"}},
	{"revq-worker", "--pause -1s", "", []string{"-pause", "0s or more"}},
	{"revq-worker", "--pause 100", "", []string{"-pause", `"100"`}},
	{"revq-worker", "", "REVQ_MAX_PAUSE=-1s", []string{"REVQ_MAX_PAUSE"}},
	{"revq-worker", "--max-pause 16m", "", []string{"consumer timeout of 30m", "--max-pause to 15m"}},
	{"revq-worker", "", "REVQ_MAX_PAUSE=1h", []string{"--max-pause to 15m"}},
	{"revq-worker", "--consumer-timeout 1m", "", []string{"--max-pause to 30s", "--consumer-timeout"}},
	{"revq-worker", "--max-pause 20m --consumer-timeout 39m", "", []string{"--max-pause to 19m30s"}},
}

func TestWrongSettings(t *testing.T) {
	t.Parallel()
	for _, tt := range wrongSettings {
		for name := range strings.FieldsSeq(tt.daemons) {
			t.Run(strings.Join([]string{tt.env, name, tt.args}, " "), func(t *testing.T) {
				t.Parallel()
				status, stdout, stderr := run(t, name, strings.Fields(tt.args), tt.env)
				if status != 2 {
					t.Errorf("status %d, want 2", status)
				}
				if stdout != "" {
					t.Errorf("standard output %q, want none", stdout)
				}
				if strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, name+": ") || !strings.HasSuffix(stderr, " (see "+name+" --help)\n") {
					t.Errorf("said %q, want one line from %s that refers to its help", stderr, name)
				}
				for _, want := range tt.want {
					if !strings.Contains(stderr, want) {
						t.Errorf("said %q, want %q in it", stderr, want)
					}
				}
				if strings.Contains(stderr, secret) {
					t.Errorf("said %q, which shows the password", stderr)
				}
			})
		}
	}
}

// Settings at the edge of what is wrong are right.
func TestRightSettings(t *testing.T) {
	t.Parallel()
	for _, args := range []string{
		"--max-pause 15m",
		"--max-pause 2h --consumer-timeout 4h",
		"--pause 0s --max-pause 2h", // nothing ever pauses
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			d := daemontest.Start(t, daemontest.Config{
				Path: daemontest.Binary(t, "revq-worker"), Args: strings.Fields(args), Env: []string{"REVQ_AMQP_URL=" + noBroker},
			})
			d.WaitState(t, "STATUS=waiting: the broker is not connected")
			d.Terminate(t)
		})
	}
}

// A variable that is not of use, because a flag wins, is not looked at.
func TestFlagHidesWrongVariable(t *testing.T) {
	t.Parallel()
	d := startAPI(t, daemontest.Config{
		Args: []string{"--stop-timeout", "2s", "--amqp-url", noBroker, "--listen", "127.0.0.1:0"},
		Env:  []string{"REVQ_STOP_TIMEOUT=nonsense", "REVQ_AMQP_URL=nonsense", "REVQ_LISTEN=nonsense"},
	})
	d.WaitReady(t)
	d.Terminate(t)
}

func TestHelp(t *testing.T) {
	t.Parallel()
	for name := range strings.FieldsSeq(everyDaemon) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			status, stdout, stderr := run(t, name, []string{"--help"}, "REVQ_LOG_LEVEL=nonsense")
			if status != 0 || stderr != "" {
				t.Errorf("status %d and %q on standard error, want 0 and nothing", status, stderr)
			}
			for _, want := range []string{name, "--amqp-url", "REVQ_AMQP_URL", "--stop-timeout", "REVQ_STOP_TIMEOUT", "--log-level"} {
				if !strings.Contains(stdout, want) {
					t.Errorf("help does not mention %q", want)
				}
			}
			if sites := name != "revq-worker"; strings.Contains(stdout, "--sites") != sites {
				t.Errorf("mentions --sites: %v, want %v", !sites, sites)
			}
			status, stdout, stderr = run(t, name, []string{"--version"}, "")
			if status != 0 || stderr != "" || !strings.HasPrefix(stdout, name+" version ") {
				t.Errorf("--version: status %d, %q, and %q on standard error", status, stdout, stderr)
			}
		})
	}
}

// run runs a daemon that is to end by itself.
func run(t *testing.T, name string, args []string, env string) (status int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, daemontest.Binary(t, name), args...)
	cmd.Env = daemontest.Environment(env)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if ctx.Err() != nil {
		t.Fatalf("runs instead of ending: %s", errs.String())
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}
