//go:build linux

package boot

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/revq/revq/internal/await"
)

// startLAN boots hosts that can reach each other, at addresses such as
// 192.0.2.1/24. Each has the name that belongs to its address.
func startLAN(t testing.TB, root string, names, addresses []string) []*Host {
	t.Helper()
	require(t, []string{"systemd-nspawn", "nsenter", "unshare", "ip"}, nil)
	// The network is that of a process, and ends with it.
	wire := exec.Command("unshare", "--net", "sh", "-euc", "ip link add name lan type bridge; ip link set lan up; echo; exec cat")
	wire.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	alive, err := wire.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := wire.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	wire.Stderr = os.Stderr
	if err := wire.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		alive.Close()
		if err := wire.Wait(); err != nil {
			t.Errorf("take the network away: %v", err)
		}
	})
	if _, err := bufio.NewReader(out).ReadByte(); err != nil {
		t.Fatalf("make a network: %v", err)
	}
	hosts := make([]*Host, len(names))
	for i, name := range names {
		hosts[i] = start(t, root, []string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", wire.Process.Pid), "/bin/sh"}, name, addresses[i])
	}
	return hosts
}

// powerOff cuts the power: the host says nothing to anybody, and what it has
// written so far stays.
func (h *Host) powerOff(t testing.TB) {
	t.Helper()
	unix.Close(h.network)
	if _, err := io.WriteString(h.launcher, "off\n"); err != nil {
		t.Fatal(err)
	}
	await.True(t, h.name+" is off", func() bool {
		// Its process may stay for a while as one that nobody has waited for.
		_, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", h.leader))
		return err != nil
	})
	h.leader = 0
}

// newDisk has a host that is off begin as a fresh one, with the same name and
// address.
func (h *Host) newDisk(t testing.TB) {
	t.Helper()
	if _, err := io.WriteString(h.launcher, "new\n"); err != nil {
		t.Fatal(err)
	}
}

// powerOn boots hosts that are off, all at once.
func powerOn(t testing.TB, hosts ...*Host) {
	t.Helper()
	sockets := make([]*net.UnixConn, len(hosts))
	for i, h := range hosts {
		if err := os.Remove(h.notify); err != nil {
			t.Fatal(err)
		}
		var err error
		if sockets[i], err = h.listen(); err != nil {
			t.Fatal(err)
		}
		defer sockets[i].Close()
		if _, err := io.WriteString(h.launcher, "on\n"); err != nil {
			t.Fatal(err)
		}
	}
	for i, h := range hosts {
		h.awaitRunning(t, sockets[i])
	}
}
