//go:build linux

package daemon_test

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/revq/revq/internal/admin"
	"github.com/revq/revq/internal/daemon/daemontest"
)

// socketDir returns a directory whose name is short enough for a socket in it.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "revq-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func listenUnix(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func readStatus(t *testing.T, path string) admin.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := admin.Read(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Every daemon has an admin socket, from systemd or by itself, and answers there
// before it is ready: that is when one wants to know why it is not.
func TestAdminSocket(t *testing.T) {
	t.Parallel()
	for name := range strings.FieldsSeq(everyDaemon) {
		for _, from := range []string{"systemd", "--admin"} {
			t.Run(name+" "+from, func(t *testing.T) {
				t.Parallel()
				path := filepath.Join(socketDir(t), "admin")
				cfg := daemontest.Config{Args: []string{"--admin", path}}
				if from == "systemd" {
					// The path of a setting for other hosts, which the unit's socket wins over.
					cfg.Args[1] = path + ".other"
					cfg.Sockets = []daemontest.Socket{listenUnix(t, path)}
					cfg.Env = []string{"LISTEN_FDNAMES=admin"}
				}
				if name != "revq-worker" {
					cfg.Args = append(cfg.Args, "--listen", "127.0.0.1:0")
				}
				d := startDaemon(t, name, cfg)
				d.WaitState(t, "STATUS=waiting: ")
				s := readStatus(t, path)
				if s.Daemon != name || s.Pid != d.Pid() || s.State != admin.Waiting || !strings.Contains(s.Why, "the broker is not connected") || s.Load == "" {
					t.Errorf("status %+v", s)
				}
				d.Terminate(t)
				switch _, err := os.Stat(path); {
				case from == "systemd" && err != nil:
					t.Errorf("the socket, which is systemd's, is gone: %v", err)
				case from == "--admin" && err == nil:
					t.Error("the daemon's socket is still there")
				}
			})
		}
	}
}

// Metrics and profiles can be read at the socket by those who may open it, and
// nowhere else.
func TestAdminPages(t *testing.T) {
	t.Parallel()
	path := filepath.Join(socketDir(t), "admin")
	ln, addr := daemontest.Listen(t)
	d := startAPI(t, daemontest.Config{Args: []string{"--admin", path}, Sockets: []daemontest.Socket{ln}})
	d.WaitReady(t)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("socket %v, %v; want the mode 0660", info.Mode(), err)
	}
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) },
	}}
	for page, want := range map[string]int{
		admin.StatusPath: 200, admin.MetricsPath: 200, admin.ProfilesPath: 200, admin.ProfilesPath + "heap": 200,
		admin.ProfilesPath + "cmdline": 404, "/": 404, // not the command line, which may hold a password
	} {
		answer, err := client.Get("http://admin" + page)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != want {
			t.Errorf("%s: status %d, want %d", page, answer.StatusCode, want)
		}
		if status, _ := get(t, "http://"+addr+page); status != 404 {
			t.Errorf("the port answers %s with %d", page, status)
		}
	}
	client.CloseIdleConnections()
	d.Terminate(t)
}

// A daemon that was killed leaves its socket. The next one replaces it, but not
// one that somebody serves, nor anything else.
func TestAdminSocketInTheWay(t *testing.T) {
	t.Parallel()
	dir := socketDir(t)
	path := filepath.Join(dir, "admin")
	args := []string{"--admin", path, "--listen", "127.0.0.1:0"}
	d := startAPI(t, daemontest.Config{Args: args})
	d.WaitReady(t)
	second := startAPI(t, daemontest.Config{Args: args})
	if status := second.Wait(t); status != 1 || !strings.Contains(second.Log(), "is the socket of another process: stop that, or use another path") {
		t.Errorf("beside another: status %d, said %q", status, second.Log())
	}
	d.Signal(t, syscall.SIGKILL)
	<-d.Done()
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("the killed daemon left no socket, so there is nothing to test: %v", err)
	}
	third := startAPI(t, daemontest.Config{Args: args})
	third.WaitReady(t)
	if s := readStatus(t, path); s.Pid != third.Pid() {
		t.Errorf("the status is that of process %d, want %d", s.Pid, third.Pid())
	}
	third.Terminate(t)

	writeFile(t, path, "important")
	fourth := startAPI(t, daemontest.Config{Args: args})
	if status := fourth.Wait(t); status != 1 || !strings.Contains(fourth.Log(), "exists and is not a socket") {
		t.Errorf("beside a file: status %d, said %q", status, fourth.Log())
	}
	if b, err := os.ReadFile(path); string(b) != "important" {
		t.Errorf("the file has %q, %v", b, err)
	}
}

// An admin socket is never reachable over a network.
func TestUnusableAdminSockets(t *testing.T) {
	t.Parallel()
	port, _ := daemontest.Listen(t)
	dir := socketDir(t)
	one, two := listenUnix(t, filepath.Join(dir, "1")), listenUnix(t, filepath.Join(dir, "2"))
	for _, tt := range []struct {
		name    string
		sockets []daemontest.Socket
		names   string
		want    string
	}{
		{"a port", []daemontest.Socket{port}, "admin", "an admin socket must be a Unix socket"},
		{"two", []daemontest.Socket{one, two}, "admin:admin", "two admin sockets"},
		{"a file", []daemontest.Socket{file(os.DevNull)}, "admin", "socket operation on non-socket"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := startDaemon(t, "revq-worker", daemontest.Config{Sockets: tt.sockets, Env: []string{"LISTEN_FDNAMES=" + tt.names}})
			if status := d.Wait(t); status != 2 || !strings.Contains(d.Log(), tt.want) {
				t.Errorf("status %d, said %q, want 2 and %q", status, d.Log(), tt.want)
			}
		})
	}
}
