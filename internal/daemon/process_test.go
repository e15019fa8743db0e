//go:build linux

package daemon_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/revq/revq/internal/daemon/daemontest"
)

// noBroker is where nothing listens; secret is the password in it.
const (
	noBroker = "amqp://user:" + secret + "@127.0.0.1:1/"
	secret   = "geheim"
)

func TestServeSocketsFromSystemd(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		start func(*testing.T, daemontest.Config) *daemontest.Daemon
		want  string
	}{
		{"any daemon", func(t *testing.T, cfg daemontest.Config) *daemontest.Daemon { return startSmall(t, "serve", cfg) }, "served"},
		{"revq-api", startAPI, "ok"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			first, firstAddr := daemontest.Listen(t)
			second, secondAddr := daemontest.Listen(t)
			d := tt.start(t, daemontest.Config{
				// Settings for other hosts, which the unit's sockets win over.
				Args:    []string{"--sites", "9"},
				Sockets: []daemontest.Socket{first, second},
			})
			d.WaitReady(t)
			if tt.want == "served" { // the API has no broker here
				d.WaitState(t, "STATUS=ready")
			}
			for _, addr := range []string{firstAddr, secondAddr} {
				if status, body := get(t, "http://"+addr+"/healthz"); status != http.StatusOK || body != tt.want {
					t.Errorf("%s answers %d %q, want 200 %q", addr, status, body, tt.want)
				}
			}
			d.Terminate(t)
			if got := d.States(); !slices.Contains(got, "STOPPING=1") {
				t.Errorf("reported %q, want STOPPING=1 among it", got)
			}
		})
	}
}

// A unix socket serves as well as a port: a reverse proxy on the same host may
// like it better.
func TestServeUnixSocketFromSystemd(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "revq-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "socket")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	d := startAPI(t, daemontest.Config{Sockets: []daemontest.Socket{ln}})
	d.WaitReady(t)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	if line, err := bufio.NewReader(conn).ReadString('\n'); !strings.Contains(line, "200 OK") {
		t.Errorf("answer %q, %v; want 200 OK", line, err)
	}
	d.Terminate(t)
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the socket, which is systemd's, is gone: %v", err)
	}
}

func TestUnusableSocketsFromSystemd(t *testing.T) {
	t.Parallel()
	good, _ := daemontest.Listen(t)
	datagrams, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { datagrams.Close() })
	connection, err := net.Dial("tcp", good.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })

	// Reading a credential file takes a descriptor of the daemon's own, the
	// very one that is missing.
	credentials := t.TempDir()
	writeFile(t, filepath.Join(credentials, "amqp-url"), noBroker)

	for _, tt := range []struct {
		name    string
		sockets []daemontest.Socket
		env     []string
		want    string
	}{
		{"a datagram socket", []daemontest.Socket{datagrams}, nil, `the socket "revq-api" from systemd: it does not listen`},
		{"a connection, as by Accept=yes", []daemontest.Socket{connection.(*net.TCPConn)}, nil, "it does not listen"},
		{"one of two", []daemontest.Socket{good, datagrams}, nil, "it does not listen"},
		{"another daemon's", []daemontest.Socket{good}, []string{"LISTEN_FDNAMES=revq-socket"}, `handed over the socket "revq-socket", and not one for revq-api: give its .socket unit FileDescriptorName=revq-api`},
		{"one of two another's", []daemontest.Socket{good, good}, []string{"LISTEN_FDNAMES=revq-api:revq-api@1.socket"}, `handed over the socket "revq-api@1.socket"`},
		{"without a name", []daemontest.Socket{good}, []string{"LISTEN_FDNAMES="}, `the socket "LISTEN_FD_3", and not one for revq-api`},
		{"a file", []daemontest.Socket{file(os.DevNull)}, nil, "socket operation on non-socket"},
		{"none although announced", nil, []string{"LISTEN_FDS=1", "LISTEN_FDNAMES=revq-api"}, `the socket "revq-api" from systemd: `},
		{"none, and descriptors of our own", nil, []string{"LISTEN_FDS=2", "LISTEN_FDNAMES=revq-api:revq-api", "CREDENTIALS_DIRECTORY=" + credentials}, "from systemd"},
		{"one of two missing", []daemontest.Socket{good}, []string{"LISTEN_FDS=2", "LISTEN_FDNAMES=revq-api:revq-api"}, `the socket "revq-api" from systemd: `},
		{"no number", nil, []string{"LISTEN_FDS=many"}, `systemd announced "many" sockets but handed over none`},
		{"no socket at all", nil, []string{"LISTEN_FDS=0"}, `systemd announced "0" sockets but handed over none`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			// A free port keeps a daemon that opens ports instead from failing
			// for that reason.
			d := startAPI(t, daemontest.Config{Args: []string{"--listen", "127.0.0.1:0"}, Sockets: tt.sockets, Env: tt.env})
			if status := d.Wait(t); status != 2 {
				t.Errorf("status %d, want 2: another start does not help", status)
			}
			log := d.Log()
			if !strings.HasPrefix(log, "revq-api: ") || !strings.Contains(log, tt.want) || strings.Count(log, "\n") != 1 {
				t.Errorf("said %q, want one line with %q", log, tt.want)
			}
			want := []string{"STATUS=failed: " + strings.TrimSuffix(log, "\n"), fmt.Sprintf("ERRNO=%d", int(syscall.EINVAL))}
			if states := d.States(); !slices.Equal(states, want) {
				t.Errorf("reported %q, want %q", states, want)
			}
		})
	}
}

// file is a Socket that is none.
type file string

func (f file) File() (*os.File, error) { return os.Open(string(f)) }

// Sockets announced to another process, which has passed its environment on,
// are not taken for ours.
func TestSocketsOfAnotherProcess(t *testing.T) {
	t.Parallel()
	ln, theirs := daemontest.Listen(t)
	d := daemontest.Start(t, daemontest.Config{
		Path:    "/bin/sh",
		Args:    []string{"-c", `"$0" "$@" & trap 'kill $!' TERM; wait; wait`, daemontest.Binary(t, "revq-api"), "--listen", "127.0.0.1:0", "--amqp-url", noBroker},
		Sockets: []daemontest.Socket{ln},
	})
	d.WaitReady(t)
	d.WaitLog(t, "listening")
	if strings.Contains(d.Log(), "address="+theirs) {
		t.Error("the other process's socket is served")
	}
	d.Terminate(t)
}

func TestReadiness(t *testing.T) {
	t.Parallel()
	ready := filepath.Join(t.TempDir(), "ready")
	d := startSmall(t, "wait for a file", daemontest.Config{Args: []string{"--listen", "127.0.0.1:0"}, Env: []string{"READY=" + ready}})
	d.WaitState(t, "STATUS=")
	writeFile(t, ready, "")
	d.WaitReady(t)
	if err := os.Remove(ready); err != nil {
		t.Fatal(err)
	}
	d.WaitStates(t, 4)
	writeFile(t, ready, "")
	d.WaitStates(t, 5)
	d.Terminate(t)
	const waiting = "STATUS=waiting: there is no file; and this is another line"
	want := []string{waiting, "READY=1", "STATUS=ready", waiting, "STATUS=ready", "STOPPING=1", "EXTEND_TIMEOUT_USEC=5000000", "STATUS=stopping"}
	if got := d.States(); !slices.Equal(got, want) {
		t.Errorf("reported %q, want %q", got, want)
	}
}

func TestStopBeforeReady(t *testing.T) {
	t.Parallel()
	d := startSmall(t, "wait for a file", daemontest.Config{Args: []string{"--listen", "127.0.0.1:0"}, Env: []string{"READY=/nonexistent"}})
	d.WaitState(t, "STATUS=")
	d.Terminate(t)
	if got := d.States(); slices.Contains(got, "READY=1") || !slices.Contains(got, "STOPPING=1") {
		t.Errorf("reported %q, want STOPPING=1 and not READY=1", got)
	}
}

// A daemon whose work fails ends, also when it is still waiting to be ready.
func TestFailBeforeReady(t *testing.T) {
	t.Parallel()
	d := startSmall(t, "fail before it is ready", daemontest.Config{Args: []string{"--listen", "127.0.0.1:0"}})
	if status := d.Wait(t); status != 1 {
		t.Errorf("status %d, want 1", status)
	}
	if log := d.Log(); !strings.Contains(log, "small: some reason\nand another one\n") {
		t.Errorf("said %q, want the reason", log)
	}
}

// Without a service manager the daemon works the same, and a broken one does
// not stop it.
func TestNotifySocketGone(t *testing.T) {
	t.Parallel()
	d := startSmall(t, "serve", daemontest.Config{Args: []string{"--listen", "127.0.0.1:0"}, Env: []string{"NOTIFY_SOCKET=/nonexistent/notify"}})
	d.WaitLog(t, "the service manager does not take messages")
	d.Terminate(t)
	d = startSmall(t, "serve", daemontest.Config{Args: []string{"--listen", "127.0.0.1:0"}, Env: []string{"NOTIFY_SOCKET="}})
	d.WaitLog(t, "msg=ready")
	d.Terminate(t)
	if strings.Contains(d.Log(), "WARN") {
		t.Error("warns although there is no service manager to notify")
	}
}

// What is in the background, such as the publisher, is needed until the last
// work is done.
func TestStopInOrder(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			d := startSmall(t, "stop in order", daemontest.Config{Args: []string{"--listen", "127.0.0.1:0"}})
			d.WaitReady(t)
			d.Signal(t, sig)
			if status := d.Wait(t); status != 0 {
				t.Errorf("status %d, want 0", status)
			}
			work, background := strings.Index(d.Log(), "work ended"), strings.Index(d.Log(), "background ended")
			if work < 0 || background < work {
				t.Error("work and background did not end one after the other")
			}
		})
	}
}

func TestSecondSignal(t *testing.T) {
	t.Parallel()
	d := startSmall(t, "be busy", daemontest.Config{Args: []string{"--listen", "127.0.0.1:0"}})
	d.WaitReady(t)
	d.Signal(t, syscall.SIGTERM)
	d.WaitLog(t, "msg=busy")
	began := time.Now()
	d.Signal(t, syscall.SIGTERM)
	if status := d.Wait(t); status != -1 {
		t.Errorf("status %d, want the end by a signal", status)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("took %v to end after the second signal", took)
	}
}

// A stop that takes too long is given up, and told.
func TestStopTimeout(t *testing.T) {
	t.Parallel()
	d := startSmall(t, "be busy", daemontest.Config{Args: []string{"--listen", "127.0.0.1:0", "--stop-timeout", "1s"}})
	d.WaitReady(t)
	d.Signal(t, syscall.SIGTERM)
	if status := d.Wait(t); status != 1 {
		t.Errorf("status %d, want 1", status)
	}
	if log := d.Log(); !strings.Contains(log, "small: could not stop within 1s") {
		t.Errorf("said %q", log)
	}
}

// A running request is answered before the daemon ends.
func TestFinishRequestInFlight(t *testing.T) {
	t.Parallel()
	ln, addr := daemontest.Listen(t)
	d := startAPI(t, daemontest.Config{Sockets: []daemontest.Socket{ln}})
	d.WaitReady(t)
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	const head = "POST /queue_reverse_text HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\n"
	fmt.Fprint(conn, head+"abcdef")
	res, err := http.ReadResponse(answers, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(conn, head+"abc")
	d.Signal(t, syscall.SIGTERM)
	d.WaitState(t, "STOPPING=1")
	fmt.Fprint(conn, "def")
	if res, err = http.ReadResponse(answers, nil); err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusServiceUnavailable || !res.Close {
		t.Errorf("answer %d, close %v; want 503 and the end of the connection", res.StatusCode, res.Close)
	}
	if status := d.Wait(t); status != 0 {
		t.Errorf("status %d, want 0", status)
	}
}

func TestListen(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		cfg  daemontest.Config
		want int // sites
	}{
		{"flags", daemontest.Config{Args: []string{"--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0"}}, 2},
		{"variable", daemontest.Config{Env: []string{"REVQ_LISTEN=127.0.0.1:0,127.0.0.1:0,127.0.0.1:0"}}, 3},
		{"flag wins over variable", daemontest.Config{Args: []string{"--listen", "127.0.0.1:0"}, Env: []string{"REVQ_LISTEN=192.0.2.1:80"}}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := startAPI(t, tt.cfg)
			d.WaitReady(t)
			d.WaitLog(t, "msg=ready")
			var addrs []string
			for line := range strings.Lines(d.Log()) {
				if _, addr, ok := strings.Cut(strings.TrimSpace(line), "msg=listening address="); ok {
					addrs = append(addrs, addr)
				}
			}
			if len(addrs) != tt.want {
				t.Errorf("listens on %q, want %d addresses", addrs, tt.want)
			}
			for _, addr := range addrs {
				if status, _ := get(t, "http://"+addr+"/healthz"); status != http.StatusOK {
					t.Errorf("%s answers %d", addr, status)
				}
			}
			d.Terminate(t)
		})
	}
}

func TestPortInUse(t *testing.T) {
	t.Parallel()
	_, addr := daemontest.Listen(t)
	d := startAPI(t, daemontest.Config{Args: []string{"--listen", addr}})
	if status := d.Wait(t); status != 1 {
		t.Errorf("status %d, want 1", status)
	}
	want := "revq-api: open the site: listen tcp " + addr + ": bind: address already in use; use --listen for another address\n"
	if log := d.Log(); log != want {
		t.Errorf("said %q, want %q", log, want)
	}
}

// The sites are the ports that the documentation promises. In a network of
// their own they are free.
func TestSites(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		binary string
		cfg    daemontest.Config
		want   []string
	}{
		{"api by default", "revq-api", daemontest.Config{}, []string{":8081", ":8082"}},
		{"socket by default", "revq-socket", daemontest.Config{}, []string{":8083"}},
		{"three", "revq-api", daemontest.Config{Args: []string{"--sites", "3"}}, []string{":8081", ":8082", ":8083"}},
		{"by variable", "revq-socket", daemontest.Config{Env: []string{"REVQ_SITES=2"}}, []string{":8081", ":8082"}},
		{"flag wins over variable", "revq-api", daemontest.Config{Args: []string{"--sites", "1"}, Env: []string{"REVQ_SITES=2"}}, []string{":8081"}},
		{"all", "revq-api", daemontest.Config{Args: []string{"--sites=9"}},
			[]string{":8081", ":8082", ":8083", ":8084", ":8085", ":8086", ":8087", ":8088", ":8089"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.cfg.Path = daemontest.Binary(t, tt.binary)
			tt.cfg.Attr = ownNetwork(t)
			d := daemontest.Start(t, tt.cfg)
			d.WaitReady(t)
			d.WaitLog(t, "msg=ready")
			var got []string
			for line := range strings.Lines(d.Log()) {
				if _, addr, ok := strings.Cut(strings.TrimSpace(line), "msg=listening address="); ok {
					got = append(got, addr[strings.LastIndex(addr, ":"):])
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, tt.want) {
				t.Errorf("listens on %q, want %q", got, tt.want)
			}
			d.Terminate(t)
		})
	}
}

// The broker's URL comes from a flag, a variable or a credential file, in this
// order.
func TestBrokerURL(t *testing.T) {
	t.Parallel()
	credentials := t.TempDir()
	writeFile(t, filepath.Join(credentials, "amqp-url"), "amqp://user:"+secret+"@127.0.0.1:3/\n")
	url := func(port string) string { return "amqp://user:" + secret + "@127.0.0.1:" + port + "/" }
	for _, tt := range []struct {
		name string
		args []string
		env  []string
		want string
	}{
		{"flag", []string{"--amqp-url", url("1")}, []string{"REVQ_AMQP_URL=" + url("2"), "CREDENTIALS_DIRECTORY=" + credentials}, "broker=127.0.0.1:1 "},
		{"variable", nil, []string{"REVQ_AMQP_URL=" + url("2"), "CREDENTIALS_DIRECTORY=" + credentials}, "broker=127.0.0.1:2 "},
		{"credential file", nil, []string{"CREDENTIALS_DIRECTORY=" + credentials}, "broker=127.0.0.1:3 "},
		{"none", nil, []string{"CREDENTIALS_DIRECTORY=" + t.TempDir()}, "broker=localhost:5672 "},
		{"empty variable", nil, []string{"REVQ_AMQP_URL=", "CREDENTIALS_DIRECTORY=" + credentials}, "broker=127.0.0.1:3 "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := daemontest.Config{Path: daemontest.Binary(t, "revq-api"), Args: append(tt.args, "--listen", "127.0.0.1:0"), Env: tt.env}
			if tt.name == "none" {
				cfg.Attr = ownNetwork(t) // where there is no RabbitMQ for sure
			}
			d := daemontest.Start(t, cfg)
			d.WaitLog(t, "no session with the broker")
			d.Terminate(t)
			if log := d.Log(); !strings.Contains(log, tt.want) {
				t.Errorf("log does not contain %q", tt.want)
			} else if strings.Contains(log, secret) {
				t.Error("log shows the password")
			}
		})
	}
	t.Run("several", func(t *testing.T) {
		t.Parallel()
		d := startAPI(t, daemontest.Config{Args: []string{"--listen", "127.0.0.1:0", "--amqp-url", url("1") + "," + url("2")}})
		d.WaitLog(t, "broker=127.0.0.1:1 ")
		d.WaitLog(t, "broker=127.0.0.1:2 ")
		d.Terminate(t)
	})
}

func TestLog(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		args     []string
		env      []string
		want     []string // each in a line of its own
		unwanted string
	}{
		{"default", nil, nil, []string{"time=", "level=INFO msg=plain", "level=WARN msg=loud"}, "quiet"},
		{"debug", []string{"--log-level", "debug"}, nil, []string{"msg=quiet", "msg=plain"}, "{"},
		{"warn", []string{"--log-level", "warn"}, nil, []string{"msg=loud"}, "plain"},
		{"error", []string{"--log-level", "error"}, nil, nil, "loud"},
		{"capitals", []string{"--log-level", "WARN"}, nil, []string{"msg=loud"}, "plain"},
		{"json", []string{"--log-format", "json"}, nil, []string{`"level":"INFO","msg":"plain"`}, "quiet"},
		{"by variables", nil, []string{"REVQ_LOG_LEVEL=debug", "REVQ_LOG_FORMAT=json"}, []string{`"msg":"quiet"`}, "msg="},
		{"flags win", []string{"--log-level", "warn", "--log-format", "text"}, []string{"REVQ_LOG_LEVEL=debug", "REVQ_LOG_FORMAT=json"}, []string{"msg=loud"}, "plain"},
		{"somebody else's journal", nil, []string{"JOURNAL_STREAM=1:1"}, []string{"time="}, "quiet"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := startSmall(t, "log", daemontest.Config{Args: append(tt.args, "--listen", "127.0.0.1:0"), Env: tt.env})
			if status := d.Wait(t); status != 0 {
				t.Errorf("status %d, want 0", status)
			}
			log := d.Log()
			for _, want := range tt.want {
				if !strings.Contains(log, want) {
					t.Errorf("log does not contain %q", want)
				}
			}
			if strings.Contains(log, tt.unwanted) {
				t.Errorf("log contains %q", tt.unwanted)
			}
		})
	}
}

// The memory of a daemon has secrets of others: passwords, tokens, texts. So
// one that crashes writes no core, whatever the limit.
func TestNoCore(t *testing.T) {
	t.Parallel()
	end := func(script string) syscall.WaitStatus {
		t.Helper()
		cmd := exec.Command("/bin/sh", "-c", "ulimit -c unlimited; "+script, os.Args[0])
		cmd.Env, cmd.Dir = daemontest.Environment(asDaemon+"=crash"), t.TempDir()
		var exit *exec.ExitError
		if out, err := cmd.CombinedOutput(); !errors.As(err, &exit) {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
		status, _ := exit.Sys().(syscall.WaitStatus)
		if status.Signal() != syscall.SIGABRT { // -1 if it was no signal
			t.Fatalf("%s ended with %v", script, exit)
		}
		return status
	}
	if !end("kill -ABRT $$").CoreDump() {
		t.Skip("this machine writes no cores")
	}
	if end(`exec "$0"`).CoreDump() {
		t.Error("it wrote a core")
	}
}
