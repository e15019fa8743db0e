//go:build linux

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/daemon/daemontest"
	"github.com/revq/revq/internal/rabbit/rabbittest"
)

// failingWorker in the environment makes the test binary a worker that fails.
const failingWorker = "FAILING_WORKER"

// A task whose handling always fails becomes a dead letter at the limit, and
// says why. Requeued after the cause is fixed, it is done under its id.
func TestDeadLetter(t *testing.T) {
	t.Parallel()
	s := start(t)
	l := s.listen(t, "json")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	failing := daemontest.Start(t, daemontest.Config{Path: self, Args: []string{"--retries", "1"}, Env: []string{failingWorker + "=1", "REVQ_AMQP_URL=" + s.url}})
	failing.WaitReady(t)
	send(t, s.apiSites[0], "sick", "abcdef")
	await.True(t, "the task is given up", func() bool { return rabbittest.QueueLength(t, s.node, s.url, "revq.dead") == 1 })
	l.failed(t, "sick")
	if n := strings.Count(failing.Log(), "an attempt did not succeed"); n != 1 {
		t.Errorf("%d attempts were followed by another one, want 1", n)
	}

	out, _ := s.revq(t, "dead", "ls", "--json")
	var letter struct{ ID, Error, Queue, Text string }
	if err := json.Unmarshal([]byte(out), &letter); err != nil {
		t.Fatalf("revq dead ls: %q: %v", out, err)
	}
	if letter.ID != "sick" || letter.Error != "attempt 2 of 2 failed: the cause is not fixed yet" || letter.Queue != "reverse_text" || letter.Text != "abcdef" {
		t.Errorf("dead letter %s", out)
	}
	if out, _ := s.revq(t, "dead", "ls"); !strings.Contains(out, "given up: \"attempt 2 of 2 failed") {
		t.Errorf("revq dead ls: %q, want the reason", out)
	}

	failing.Terminate(t)
	s.startWorker(t, "--pause", "0s")
	if _, said := s.revq(t, "dead", "requeue", "sick"); said != "revq: 1 requeued\n" {
		t.Errorf("revq dead requeue: %q", said)
	}
	if m := l.collect(t, []string{"sick"})[0]; m.Text != "fedcba" || m.Accepted.IsZero() {
		t.Errorf("result %+v, want the text reversed, and when it was accepted", m)
	}
	l.drainWith(t, s, "the-end")
	if out, said := s.revq(t, "dead", "ls"); out != "" || said != "revq: there are no dead letters\n" {
		t.Errorf("revq dead ls: %q, %q, want none", out, said)
	}
}

// revq runs a command that must succeed, and returns its standard output and
// error.
func (s *system) revq(t *testing.T, args ...string) (stdout, stderr string) {
	t.Helper()
	ctx := await.Context(t)
	var out, said strings.Builder
	cmd := exec.CommandContext(ctx, daemontest.Binary(t, "revq"), args...)
	cmd.Env = daemontest.Environment("REVQ_AMQP_URL=" + s.url)
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("revq %s: %v: %s", strings.Join(args, " "), err, said.String())
	}
	return out.String(), said.String()
}
