//go:build linux

// Package foreign runs programs that are no part of revq, for tests: Chromium,
// proxies, Prometheus. What a test starts ends with the test.
package foreign

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"testing"

	"github.com/revq/revq/internal/proc"
)

// Program returns the path of a program. If there is none, the test is skipped,
// but fails if the variable CI is set.
func Program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) {
		path, err = exec.LookPath("/usr/sbin/" + name) // Debian has servers there, and not every user has it in the PATH
	}
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist) && os.Getenv("CI") == "":
		t.Skipf("install %s to see what it does: %v", name, err)
	default:
		t.Fatal(err)
	}
	return path
}

// Group returns a group for programs, which end with the test, and a directory
// for them.
func Group(t *testing.T) (*proc.Group, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "revq-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	group, err := proc.NewGroup(dir)
	if err != nil {
		t.Fatal(errors.Join(err, os.RemoveAll(dir)))
	}
	t.Cleanup(func() {
		if err := group.Close(); err != nil {
			t.Error(err)
		}
	})
	return group, dir
}
