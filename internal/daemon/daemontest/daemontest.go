// Package daemontest runs daemons in tests the way systemd does: with sockets
// from descriptor 3 on, and a NOTIFY_SOCKET that they report to. Whatever a
// test starts ends with the test, and shows its log if the test fails.
package daemontest

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/revq/revq/internal/proc"
)

// patience bounds the wait for something that must happen. It is for machines
// that are busy with other tests: a test measures by itself what must be quick.
const patience = 30 * time.Second

// module is the path below which the programs are.
const module = "github.com/revq/revq/cmd/"

var built struct {
	once  sync.Once
	dir   string
	err   error
	guard *proc.Group // removes dir when the test run ends, however it does
}

// Binary returns the path of one of revq's programs. The first call builds all
// of them, with the race detector if the test has it. They are removed when the
// test run ends.
func Binary(t testing.TB, name string) string {
	t.Helper()
	built.once.Do(func() { built.dir, built.err = build() })
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, name)
}

// Race reports whether the test and the programs have the race detector, which
// takes several times the memory of what it watches.
func Race() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

func build() (string, error) {
	dir, err := os.MkdirTemp("", "revq-bin-")
	if err != nil {
		return "", err
	}
	if built.guard, err = proc.NewGroup(dir); err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, Build(dir)
}

// programs are all of revq's.
var programs = []string{"revq", "revq-api", "revq-socket", "revq-worker"}

// Build puts all of revq's programs into a directory, with the race detector if
// the test has it.
func Build(dir string) error {
	// Unlike go build, go run keeps what it has linked in the build cache. Then
	// the tests of the next package need not link it again.
	args := []string{"run", "-exec", "cp -t '" + dir + "'"}
	if Race() {
		args = append(args, "-race")
	}
	failed := make([]error, len(programs))
	var building sync.WaitGroup
	for i, name := range programs {
		building.Go(func() {
			if out, err := exec.Command("go", slices.Concat(args, []string{module + name})...).CombinedOutput(); err != nil {
				failed[i] = fmt.Errorf("build %s: %w\n%s", name, err, out)
			}
		})
	}
	building.Wait()
	return errors.Join(failed...)
}

// Environment returns a small environment with some variables added: what is
// set where the tests run must not change what the daemons do.
func Environment(add ...string) []string {
	// The race detector makes each process sleep for a second at its end.
	env := []string{"GORACE=atexit_sleep_ms=0"}
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "GOCOVERDIR"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return append(env, add...)
}

// A Config says what to start.
type Config struct {
	// Path is the program's, and Args what follows its name.
	Path string
	Args []string

	// Env is added to Environment.
	Env []string

	// Sockets are handed over from descriptor 3 on, with the program's name
	// unless Env has other LISTEN_FDNAMES. The test keeps its own copies.
	Sockets []Socket

	// Watchdog is the interval in which the daemon must give signs of life; 0
	// for never.
	Watchdog time.Duration

	// OpenFiles is the limit of open files (ulimit -n); 0: that of the test.
	OpenFiles int

	// Attr are attributes of the process, if it needs any.
	Attr *syscall.SysProcAttr
}

// A Socket is something with a descriptor, as a [net.TCPListener] or
// [net.UDPConn].
type Socket interface{ File() (*os.File, error) }

// Listen returns a socket on a free port of 127.0.0.1, and its address.
func Listen(t testing.TB) (*net.TCPListener, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.(*net.TCPListener), ln.Addr().String()
}

// Certify writes a certificate for 127.0.0.1 and its key to files of a directory,
// with the names under which systemd passes them as credentials.
func Certify(t testing.TB, dir string) {
	t.Helper()
	certified := httptest.NewTLSServer(nil) // which has one
	defer certified.Close()
	key, err := x509.MarshalPKCS8PrivateKey(certified.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"tls-cert": {Type: "CERTIFICATE", Bytes: certified.Certificate().Raw},
		"tls-key":  {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A Daemon is a running program.
type Daemon struct {
	name    string
	notify  *net.UnixAddr
	process *proc.Process
	ended   chan struct{} // closed when the program has ended, and all it said is known

	mu      sync.Mutex
	changed chan struct{} // closed, and replaced, when one of the following changes
	log     bytes.Buffer
	states  []string
}

// Start starts a program. It is killed when the test ends, unless it has ended
// by then.
func Start(t testing.TB, cfg Config) *Daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "revq-daemon-") // t.TempDir() may be too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	group, err := proc.NewGroup(dir)
	if err != nil {
		t.Fatal(errors.Join(err, os.RemoveAll(dir)))
	}
	d := &Daemon{name: filepath.Base(cfg.Path), ended: make(chan struct{}), changed: make(chan struct{})}
	t.Cleanup(func() {
		if err := group.Close(); err != nil {
			t.Error(err)
		}
		if d.process != nil {
			<-d.ended
		}
		if strings.Contains(d.Log(), "DATA RACE") {
			t.Errorf("%s has a data race", d.name)
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s", d.name, d.Log())
		}
	})
	notify := listenNotify(t, filepath.Join(dir, "notify"))
	d.notify = notify.LocalAddr().(*net.UnixAddr)

	limit := ""
	if cfg.OpenFiles > 0 {
		limit = fmt.Sprintf("ulimit -n %d; ", cfg.OpenFiles)
	}
	// The shell becomes the program, so that its process id is the one announced.
	cmd := exec.Command("/bin/sh", append([]string{"-c", limit + `export LISTEN_PID=$$ WATCHDOG_PID=${WATCHDOG_PID-$$}; exec "$0" "$@"`, cfg.Path}, cfg.Args...)...)
	cmd.Env = Environment("NOTIFY_SOCKET=" + notify.LocalAddr().String())
	if len(cfg.Sockets) > 0 {
		names := slices.Repeat([]string{d.name}, len(cfg.Sockets))
		cmd.Env = append(cmd.Env, "LISTEN_FDS="+strconv.Itoa(len(cfg.Sockets)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	if cfg.Watchdog > 0 {
		cmd.Env = append(cmd.Env, "WATCHDOG_USEC="+strconv.FormatInt(cfg.Watchdog.Microseconds(), 10))
	}
	cmd.Env = append(cmd.Env, cfg.Env...)
	cmd.Stdout, cmd.Stderr = d, d
	cmd.SysProcAttr = cfg.Attr
	for _, s := range cfg.Sockets {
		f, err := s.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	if d.process, err = group.Start(cmd); err != nil {
		t.Fatal(err)
	}
	go d.receive(notify)
	return d
}

func listenNotify(t testing.TB, path string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// receive reads the daemon's reports until it has ended. They arrive before the
// end mark, since datagrams keep their order.
func (d *Daemon) receive(notify *net.UnixConn) {
	const endMark = "end"
	defer close(d.ended)
	defer notify.Close()
	go func() {
		<-d.process.Done()
		conn, err := net.DialUnix("unixgram", nil, notify.LocalAddr().(*net.UnixAddr))
		if err != nil {
			notify.Close()
			return
		}
		defer conn.Close()
		if _, err := conn.Write([]byte(endMark)); err != nil {
			notify.Close()
		}
	}()
	message := make([]byte, 4<<10)
	for {
		n, err := notify.Read(message)
		if err != nil || string(message[:n]) == endMark {
			<-d.process.Done()
			return
		}
		d.mu.Lock()
		d.states = append(d.states, strings.Split(string(message[:n]), "\n")...)
		d.hasChanged()
		d.mu.Unlock()
	}
}

// Write takes in the daemon's output.
func (d *Daemon) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hasChanged()
	return d.log.Write(b)
}

func (d *Daemon) hasChanged() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// Log returns what the daemon has written to standard output and standard
// error.
func (d *Daemon) Log() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.String()
}

// States returns what the daemon has reported to its NOTIFY_SOCKET, such as
// READY=1.
func (d *Daemon) States() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.states)
}

// Notify reports a state in place of the daemon. What the daemon has sent by
// then comes before it.
func (d *Daemon) Notify(t testing.TB, state string) {
	t.Helper()
	conn, err := net.DialUnix("unixgram", nil, d.notify)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(state)); err != nil {
		t.Fatal(err)
	}
}

// Pid returns the process id.
func (d *Daemon) Pid() int { return d.process.Pid() }

// WaitReady waits until the daemon has reported that it is ready.
func (d *Daemon) WaitReady(t testing.TB) {
	t.Helper()
	d.WaitState(t, "READY=1")
}

// WaitState waits until the daemon has reported a state that begins with
// prefix.
func (d *Daemon) WaitState(t testing.TB, prefix string) {
	t.Helper()
	d.wait(t, "reported "+prefix, func() bool {
		return slices.ContainsFunc(d.states, func(s string) bool { return strings.HasPrefix(s, prefix) })
	})
}

// WaitStates waits until the daemon has reported n states.
func (d *Daemon) WaitStates(t testing.TB, n int) {
	t.Helper()
	d.wait(t, fmt.Sprintf("reported %d states", n), func() bool { return len(d.states) >= n })
}

// WaitAgain waits until the daemon has reported, after the first n states, one
// that begins with prefix. It returns how many it had reported then, with that
// one.
func (d *Daemon) WaitAgain(t testing.TB, n int, prefix string) int {
	t.Helper()
	d.wait(t, "again reported "+prefix, func() bool {
		for ; n < len(d.states); n++ {
			if strings.HasPrefix(d.states[n], prefix) {
				return true
			}
		}
		return false
	})
	return n + 1
}

// WaitLog waits until the daemon's log contains text.
func (d *Daemon) WaitLog(t testing.TB, text string) {
	t.Helper()
	d.wait(t, "logged "+text, func() bool { return bytes.Contains(d.log.Bytes(), []byte(text)) })
}

// wait waits until reached is true, which is called under the lock.
func (d *Daemon) wait(t testing.TB, what string, reached func() bool) {
	t.Helper()
	late := time.NewTimer(patience)
	defer late.Stop()
	for over := false; ; {
		d.mu.Lock()
		ok, changed := reached(), d.changed
		d.mu.Unlock()
		if ok {
			return
		}
		if over {
			t.Fatalf("%s has ended (%v) and not %s", d.name, d.process.Err(), what)
		}
		select {
		case <-changed:
		case <-d.ended:
			over = true // check a last time
		case <-late.C:
			t.Fatalf("%s has not %s within %v", d.name, what, patience)
		}
	}
}

// Signal sends a signal to the daemon.
func (d *Daemon) Signal(t testing.TB, sig os.Signal) {
	t.Helper()
	if err := d.process.Signal(sig); err != nil {
		t.Fatalf("%v to %s: %v", sig, d.name, err)
	}
}

// Done is closed when the daemon has ended and all that it said is known.
func (d *Daemon) Done() <-chan struct{} { return d.ended }

// Wait waits for the daemon's end and returns its exit status, -1 if a signal
// ended it.
func (d *Daemon) Wait(t testing.TB) int {
	t.Helper()
	select {
	case <-d.ended:
	case <-time.After(patience):
		t.Fatalf("%s has not ended within %v", d.name, patience)
	}
	var exit *exec.ExitError
	if err := d.process.Err(); errors.As(err, &exit) {
		return exit.ExitCode()
	} else if err != nil {
		t.Fatalf("%s: %v", d.name, err)
	}
	return 0
}

// Terminate sends SIGTERM, expects exit status 0, and returns how long it took.
func (d *Daemon) Terminate(t testing.TB) time.Duration {
	t.Helper()
	began := time.Now()
	d.Signal(t, syscall.SIGTERM)
	if status := d.Wait(t); status != 0 {
		t.Errorf("%s ended with status %d after SIGTERM, want 0", d.name, status)
	}
	return time.Since(began)
}
