package daemon_test

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// ownNetwork returns attributes of a process in a network of its own, and skips
// the test where that is not allowed.
func ownNetwork(t *testing.T) *syscall.SysProcAttr {
	t.Helper()
	attr := func() *syscall.SysProcAttr {
		return &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		}
	}
	cmd := exec.Command("/bin/sh", "-c", ":")
	cmd.SysProcAttr = attr()
	if err := cmd.Run(); err != nil {
		t.Skipf("no network namespaces here: %v", err)
	}
	return attr()
}
