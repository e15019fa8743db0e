//go:build linux

package boot

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/revq/revq/internal/daemon/daemontest"
)

// The services and the other units of a host, with an instance of each
// template.
var (
	daemons  = []string{"revq-api@1.service", "revq-socket@3.service", "revq-worker@1.service"}
	services = append([]string{"revq-setup.service", "revq-metrics.service"}, daemons...)
	others   = []string{"revq.target", "revq.slice", "revq-api@1.socket", "revq-socket@3.socket",
		"revq-admin-api@1.socket", "revq-admin-socket@3.socket", "revq-admin-worker@1.socket", "revq-metrics.socket"}
)

// maxExposure is the highest exposure level that a service may have, of 10.
const maxExposure = 1.0

// The units of this directory, checked by this machine's systemd, which need
// not run. TestBoot has the same checks for installed units.
func TestUnits(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%v: apt-get install systemd", err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../../systemd")); err != nil {
		t.Fatal(err)
	}
	programs := filepath.Dir(daemontest.Binary(t, "revq-api")) + "/"
	for _, unit := range []string{"revq-api@.service", "revq-socket@.service", "revq-worker@.service", "revq-setup.service", "revq-metrics.service"} {
		file := filepath.Join(dir, unit)
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(text), "/usr/local/bin/", programs)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	analyze := func(args ...string) (string, error) {
		cmd := exec.Command("systemd-analyze", args...)
		cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":") // before systemd's own directories
		out, err := cmd.CombinedOutput()
		return string(out), err
	}

	out, err := analyze(append([]string{"verify", "--man=no"}, append(others, services...)...)...)
	checkVerified(t, out, err)
	for _, unit := range services {
		out, err := analyze("security", "--offline=true", "--no-pager", unit)
		if err != nil {
			t.Fatalf("systemd-analyze security %s: %v\n%s", unit, err, out)
		}
		checkExposure(t, unit, out)
	}
}

// checkVerified expects that `systemd-analyze verify` has printed nothing about
// revq. It may complain about other units, which revq's need.
func checkVerified(t *testing.T, out string, err error) {
	t.Helper()
	for line := range strings.Lines(out) {
		if strings.Contains(line, "revq") {
			t.Error(line)
		}
	}
	if err != nil && out == "" {
		t.Error(err)
	}
}

// checkExposure checks the output of `systemd-analyze security`.
func checkExposure(t *testing.T, unit, out string) {
	t.Helper()
	found := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`).FindStringSubmatch(out)
	if found == nil {
		t.Fatalf("no exposure level of %s in:\n%s", unit, out)
	}
	t.Logf("%s: %s", unit, found[1])
	if level, err := strconv.ParseFloat(found[1], 64); err != nil || level > maxExposure {
		t.Errorf("%s has an exposure of %s, want %.1f at most:\n%s", unit, found[1], maxExposure, out)
	}
}
