//go:build linux

package e2e

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/daemon/daemontest"
	"github.com/revq/revq/internal/rabbit/rabbittest"
)

// An island is a network of its own, which has nothing but a loopback device.
// Sockets that are made on it stay there, whichever process uses them. When its
// link is down, no packet arrives, and nobody is told.
type island struct{ work chan func() }

// newIsland makes an island. It ends with the test. Without the rights for that
// the test is skipped, but fails if the variable CI is set.
func newIsland(t *testing.T) *island {
	t.Helper()
	n := &island{make(chan func())}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		made <- unix.Unshare(unix.CLONE_NEWNET)
		for f := range n.work {
			f()
		}
	}()
	t.Cleanup(func() { close(n.work) })
	switch err := <-made; {
	case errors.Is(err, unix.EPERM) && os.Getenv("CI") == "":
		t.Skip("run as root to see what becomes of clients whose machines vanish")
	case err != nil:
		t.Fatal(err)
	}
	n.link(t, true)
	return n
}

// on runs a function on the island.
func (n *island) on(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error)
	n.work <- func() { done <- f() }
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// link switches the link on or off.
func (n *island) link(t *testing.T, up bool) {
	t.Helper()
	n.on(t, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		lo, err := unix.NewIfreq("lo")
		if err != nil {
			return err
		}
		if up {
			lo.SetUint16(unix.IFF_UP)
		}
		return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
	})
}

func (n *island) listen(t *testing.T) (ln daemontest.Socket, addr string) {
	t.Helper()
	n.on(t, func() error {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		ln, addr = l.(*net.TCPListener), l.Addr().String()
		return nil
	})
	return ln, addr
}

// Of clients whose machines vanish, the daemons keep nothing for longer than
// their settings say.
func TestVanishedClients(t *testing.T) {
	t.Parallel()
	n := newIsland(t)
	s := prepare(t, rabbittest.Shared(t))
	apiSocket, apiSite := n.listen(t)
	socketSocket, socketSite := n.listen(t)
	apiLimits, socketLimits := []string{"--read-timeout=1s", "--idle-timeout=1s"}, []string{"--ping-interval=1s", "--write-timeout=1s"}
	if *attackLong {
		apiLimits, socketLimits = nil, nil
	}
	s.api = s.startDaemon(t, "revq-api", []daemontest.Socket{apiSocket}, apiLimits...)
	s.socket = s.startDaemon(t, "revq-socket", []daemontest.Socket{socketSocket}, socketLimits...)
	s.api.WaitReady(t)
	s.socket.WaitReady(t)

	const clients = 300
	for _, kind := range []struct {
		name, site, send string
		status           int // of the answer to send; 0 for none
		from             *daemontest.Daemon
		long             bool // the kernel takes half a minute at least
	}{
		{"listeners by websocket", socketSite, upgrade, http.StatusSwitchingProtocols, s.socket, false},
		{"event streams", socketSite, eventStream, http.StatusOK, s.socket, true},
		{"connections between two requests", apiSite, healthProbe, http.StatusOK, s.api, false},
		{"heads that do not end", apiSite, slowHead, 0, s.api, false},
		{"bodies that do not end", apiSite, slowBody, 0, s.api, false},
	} {
		if kind.long && !*attackLong {
			continue
		}
		files, memory := openFiles(t, kind.from), residentBytes(t, kind.from)
		var conns []net.Conn
		for range clients { // one by one: a server gives each only so long for its first request
			var conn net.Conn
			n.on(t, func() (err error) {
				conn, err = net.Dial("tcp", kind.site)
				return err
			})
			conns = append(conns, conn)
			if err := conn.SetDeadline(time.Now().Add(await.Patience)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(conn, kind.send); err != nil {
				t.Fatal(err)
			}
			if kind.status == 0 {
				continue
			}
			if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != kind.status {
				t.Fatalf("%s: %v, %v", kind.name, res, err)
			}
		}
		n.link(t, false)
		vanished := time.Now()
		highest := residentBytes(t, kind.from)
		for _, conn := range conns {
			conn.Close() // which the server is not told
		}
		late := vanished.Add(4 * await.Patience)
		for openFiles(t, kind.from) > files+5 {
			if time.Now().After(late) {
				t.Fatalf("%s: %d descriptors after %v, before %d", kind.name, openFiles(t, kind.from), time.Since(vanished), files)
			}
			highest = max(highest, residentBytes(t, kind.from))
			<-time.After(await.Every) // nothing tells of it
		}
		t.Logf("%d %s vanished: all were closed after %v; memory %d → %d → %d MB", clients, kind.name,
			time.Since(vanished).Round(100*time.Millisecond), memory/1e6, highest/1e6, residentBytes(t, kind.from)/1e6)
		n.link(t, true)
	}
}
