package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/proc"
)

// TestLife is the life of one node: configured, killed, restarted, stopped.
func TestLife(t *testing.T) {
	t.Parallel()
	ctx, n := start(t, Config{})

	t.Run("has no user guest", func(t *testing.T) {
		conn, err := amqp.Dial(fmt.Sprintf("amqp://guest:guest@127.0.0.1:%d/", n.cfg.Port))
		if !errors.Is(err, amqp.ErrCredentials) {
			t.Errorf("the login of guest: %v, want that it is refused", err)
		}
		if err == nil {
			conn.Close()
		}
	})
	t.Run("listens on the loopback interface only", func(t *testing.T) {
		addrs, err := net.InterfaceAddrs()
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			ip := a.(*net.IPNet).IP
			if ip.IsLoopback() || ip.To4() == nil {
				continue
			}
			for _, port := range []int{n.cfg.Port, n.epmdPort, n.distPort} {
				conn, err := net.Dial("tcp", net.JoinHostPort(ip.String(), fmt.Sprint(port)))
				if err == nil {
					conn.Close()
					t.Errorf("port %d answers on %s", port, ip)
				}
			}
		}
	})
	t.Run("keeps its secrets", func(t *testing.T) {
		for name, want := range map[string]os.FileMode{
			"": 0o700, "password": 0o600, "rabbitmq.conf": 0o600, "home/.erlang.cookie": 0o400,
		} {
			info, err := os.Stat(n.path(name))
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm() != want {
				t.Errorf("mode of %q = %v, want %v", name, info.Mode().Perm(), want)
			}
		}
		cookie, err := os.ReadFile(n.path("home/.erlang.cookie"))
		if err != nil {
			t.Fatal(err)
		}
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", n.Pid()))
		if err != nil {
			t.Skip(err)
		}
		if !strings.Contains(string(cmdline), "beam") {
			t.Errorf("Pid() is that of %q", cmdline)
		}
		for _, secret := range []string{n.password, string(cookie)} {
			if strings.Contains(string(cmdline), secret) {
				t.Error("a secret is on the command line")
			}
		}
	})
	t.Run("reports an end that was not asked for", func(t *testing.T) {
		if err := n.Err(); err != nil {
			t.Errorf("Err() of a running node = %v", err)
		}
		if err := syscall.Kill(n.Pid(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-n.Done()
		if err := n.Err(); err == nil || !strings.Contains(err.Error(), "signal: killed") {
			t.Errorf("Err() = %v, want how it ended", err)
		}
	})
	t.Run("stops in an orderly way, even when suspended", func(t *testing.T) {
		if err := n.Restart(ctx); err != nil {
			t.Fatal(err)
		}
		publish(t, n)
		if err := syscall.Kill(n.Pid(), syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		if err := n.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		<-n.Done()
		if err := n.server.Err(); err != nil {
			t.Errorf("the server ended with %v, want a clean exit", err)
		}
		if err := n.Stop(ctx); err != nil {
			t.Errorf("second Stop() = %v", err)
		}
	})
	t.Run("keeps data and password in its directory", func(t *testing.T) {
		// Another group, as in another run of the program.
		_, again := start(t, Config{Dir: n.cfg.Dir})
		if again.password != n.password {
			t.Error("the password has changed")
		}
		if !kept(t, again) {
			t.Error("the message is lost")
		}
	})
}

func TestStartErrors(t *testing.T) {
	t.Parallel()
	server, err := Find()
	if err != nil {
		t.Skip(err)
	}
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	tests := []struct {
		name string
		cfg  Config
		want string
	}{
		{"no directory", Config{Server: server}, "no directory"},
		{"no such server", Config{Server: "/no/such/rabbitmq-server", Dir: t.TempDir()}, "/no/such/rabbitmq-server"},
		{"wrong configuration", Config{Dir: t.TempDir(), Extra: []string{"no_such_setting = 1"}}, "no_such_setting"},
		{"port in use", Config{Dir: t.TempDir(), Port: busy.Addr().(*net.TCPAddr).Port}, "in use by another"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, group := setup(t)
			n, err := Start(ctx, group, tt.cfg)
			if err == nil {
				t.Fatalf("Start() = %s, want an error with %q", n.URL(), tt.want)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Start() = %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestFind(t *testing.T) {
	script := func(path string) string {
		path = filepath.Join(t.TempDir(), path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	debian, versioned, inPath := script("bin/rabbitmq-server"), script("lib/rabbitmq_server-4.2.0/sbin/rabbitmq-server"), script("rabbitmq-server")
	pattern := filepath.Join(filepath.Dir(filepath.Dir(filepath.Dir(versioned))), "*/sbin/rabbitmq-server")
	tests := []struct {
		name     string
		patterns []string
		path     string
		want     string
	}{
		{"the first known place", []string{debian, pattern}, filepath.Dir(inPath), debian},
		{"a place with a version", []string{"/no/such", pattern}, filepath.Dir(inPath), versioned},
		{"PATH", []string{"/no/such"}, filepath.Dir(inPath), inPath},
		{"nowhere", []string{"/no/such"}, t.TempDir(), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("PATH", tt.path)
			got, err := find(tt.patterns)
			if got != tt.want || errors.Is(err, ErrNotFound) != (tt.want == "") {
				t.Errorf("find() = %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

func TestURL(t *testing.T) {
	n := &Node{cfg: Config{Port: 5672}, password: "p@ss/wörd %"}
	uri, err := amqp.ParseURI(n.URL())
	if err != nil || uri.Host != "127.0.0.1" || uri.Port != 5672 || uri.Username != user || uri.Password != n.password || uri.Vhost != "/" {
		t.Errorf("ParseURI(%s) = %+v, %v", n.URL(), uri, err)
	}
}

func TestExcerpt(t *testing.T) {
	tests := []struct{ name, log, want string }{
		{"nothing", "", ""},
		{"lines without text", "a\n\n2026-11-23 [error] <0.1.0> \nb\n", "\n  a\n  b"},
		{"the last lines", "1\n2\n3\n4\n5\n6\n", "\n  3\n  4\n  5\n  6"},
		{"an early error", "[error] why\n1\n2\n3\n4\n5\n", "\n  [error] why\n  ...\n  2\n  3\n  4\n  5"},
		{"the first errors", strings.Repeat("[error] x\n", 20), strings.Repeat("\n  [error] x", 8) + "\n  ..." + strings.Repeat("\n  [error] x", 4)},
		{"a long line", strings.Repeat("x", 1000) + "\n", "\n  " + strings.Repeat("x", excerptWidth)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, size := range []int{1, 7, len(tt.log) + 1} {
				var e excerpt
				for chunk := range slices.Chunk([]byte(tt.log), size) {
					e.Write(chunk)
				}
				if got := e.String(); got != tt.want {
					t.Errorf("written in pieces of %d: %q, want %q", size, got, tt.want)
				}
			}
		})
	}
}

// setup returns a group of processes that ends with the test, and a context
// that ends well before.
func setup(t *testing.T) (context.Context, *proc.Group) {
	t.Helper()
	group, err := proc.NewGroup("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := group.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx, group
}

// start starts a node that ends with the test. Package rabbittest does the
// same, but imports this one.
func start(t *testing.T, cfg Config) (context.Context, *Node) {
	t.Helper()
	if _, err := Find(); errors.Is(err, ErrNotFound) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if cfg.Dir == "" {
		cfg.Dir = filepath.Join(t.TempDir(), "node")
	}
	ctx, group := setup(t)
	n, err := Start(ctx, group, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return ctx, n
}

func channel(t *testing.T, n *Node) *amqp.Channel {
	t.Helper()
	conn, err := amqp.Dial(n.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

// publish puts one confirmed message into a quorum queue.
func publish(t *testing.T, n *Node) {
	t.Helper()
	ch := channel(t, n)
	if _, err := ch.QueueDeclare("q", true, false, false, false, amqp.Table{"x-queue-type": "quorum"}); err != nil {
		t.Fatal(err)
	}
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	confirm, err := ch.PublishWithDeferredConfirm("", "q", true, false, amqp.Publishing{DeliveryMode: amqp.Persistent})
	if err != nil || !confirm.Wait() {
		t.Fatalf("publish: %v", err)
	}
}

// kept reports whether the queue still holds its one message. It gets the
// message, because the count of a quorum queue is wrong for seconds after a
// restart.
func kept(t *testing.T, n *Node) bool {
	t.Helper()
	ch := channel(t, n)
	// A quorum queue seems empty until it has requeued what was unacknowledged
	// when its node ended.
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(10 * time.Second); ; {
		_, ok, err := ch.Get("q", false)
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			return true
		}
		select {
		case <-tick.C:
		case <-deadline:
			return false
		}
	}
}
