//go:build linux

package e2e

import (
	"context"
	"flag"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/daemon/daemontest"
	"github.com/revq/revq/internal/rabbit/rabbittest"
)

var (
	upgradeFrom = flag.String("upgrade.from", "ec0a786", "commit of the version that TestUpgrade begins with and returns to")
	upgradeAll  = flag.Bool("upgrade.all", false, "TestUpgrade also in other orders than the documented one")
)

// Hosts are upgraded and rolled back under load, one kind of daemon after the
// other, with `revq setup` between the socket servers and the rest.
func TestUpgrade(t *testing.T) {
	if testing.Short() {
		t.Skip("builds another version")
	}
	t.Parallel()
	older := buildVersion(t, *upgradeFrom)
	daemontest.Binary(t, "revq") // builds the new ones
	orders := map[string][]string{"in the documented order": {"revq-socket", "setup", "revq-worker", "revq-api"}}
	if *upgradeAll {
		orders["workers first"] = []string{"setup", "revq-worker", "revq-api", "revq-socket"}
		orders["APIs first"] = []string{"setup", "revq-api", "revq-worker", "revq-socket"}
	}
	for name, order := range orders {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testUpgrade(t, older, order)
		})
	}
}

func testUpgrade(t *testing.T, older func(testing.TB, string) string, order []string) {
	s := prepare(t, rabbittest.StartNode(t))
	r := newTrial(t, s, uint64(time.Now().UnixNano()))
	r.binary = older
	r.setUp()
	r.startClients(3)
	for _, version := range []struct {
		name   string
		binary func(testing.TB, string) string
	}{{"the new one", daemontest.Binary}, {"the older one", older}} {
		for _, what := range order {
			r.moment(500*time.Millisecond, time.Second)
			r.note("%s: %s", version.name, what)
			r.binary = version.binary
			if what == "setup" {
				r.setUp()
				continue
			}
			for _, u := range r.units() {
				if u.name == what {
					u.terminate()
					u.daemon.WaitReady(t)
				}
			}
		}
	}
	r.moment(500*time.Millisecond, time.Second)
	r.posters.stop()
	r.settle()
	r.judge()
	t.Log(r.summary(0, time.Since(r.began)))
}

// setUp declares the objects of the version that runs now.
func (r *trial) setUp() {
	r.t.Helper()
	cmd := exec.CommandContext(await.Context(r.t), r.binary(r.t, "revq"), "setup", "--amqp-url", r.vhostURL())
	if out, err := cmd.CombinedOutput(); err != nil {
		r.t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
}

// buildVersion builds the programs of a commit of this repository, and returns
// where they are.
func buildVersion(t *testing.T, commit string) func(testing.TB, string) string {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	run := func(in, name string, args ...string) {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Dir = in
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd, err, out)
		}
	}
	if err := exec.CommandContext(t.Context(), "git", "cat-file", "-e", commit).Run(); err != nil {
		t.Skipf("this is no clone with the commit %s: %v", commit, err)
	}
	archive := filepath.Join(dir, "source.tar")
	run("../..", "git", "archive", "--output", archive, commit)
	run(dir, "tar", "-xf", archive)
	run(dir, "go", "build", "-o", "bin/", "./cmd/...")
	return func(_ testing.TB, name string) string { return filepath.Join(dir, "bin", name) }
}
