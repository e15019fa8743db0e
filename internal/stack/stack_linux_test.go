package stack_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/revq/revq/internal/client"
	"github.com/revq/revq/internal/rabbit/node"
	"github.com/revq/revq/internal/stack"
	"github.com/revq/revq/internal/stack/stacktest"
	"github.com/revq/revq/internal/task"
)

// portVariable makes the test binary a program that runs a stack from this port
// on.
const portVariable = "REVQ_STACK_TEST_PORT"

func TestMain(m *testing.M) {
	if port, err := strconv.Atoi(os.Getenv(portVariable)); err == nil {
		os.Exit(runProgram(port))
	}
	os.Exit(stacktest.Main(m))
}

func runProgram(port int) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	cfg := stack.DefaultConfig(os.Stderr)
	cfg.FirstPort = port
	if err := stack.Run(ctx, cfg, func() { fmt.Fprintln(os.Stderr, "all is up") }); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// A program is a process of its own that runs a stack with a private RabbitMQ.
type program struct {
	t      *testing.T
	cmd    *exec.Cmd
	tmp    string // its TMPDIR
	port   int
	output *stacktest.Buffer
}

func startProgram(t *testing.T) *program {
	t.Helper()
	if testing.Short() {
		t.Skip("starts RabbitMQ")
	}
	if _, err := node.Find(); err != nil && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	stacktest.Programs(t)
	// t.TempDir may be too long for a Unix socket's path.
	tmp, err := os.MkdirTemp("", "revq-stack-")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &program{t: t, cmd: exec.Command(self), tmp: tmp, port: stacktest.Ports(t, 3), output: stacktest.NewBuffer()}
	p.cmd.Env = append(os.Environ(), portVariable+"="+strconv.Itoa(p.port), "TMPDIR="+tmp)
	p.cmd.Stderr = p.output
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		p.cmd.Wait() // failed tests only: the others have done so
		os.RemoveAll(tmp)
		if t.Failed() {
			t.Logf("output of the stack:\n%s", p.output)
		}
	})
	return p
}

// site returns the address of site i.
func (p *program) site(i int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port+i-1)) }

// kill kills the processes of one name with SIGKILL. How many there are must be
// right.
func (p *program) kill(name string, count int) {
	p.t.Helper()
	for pid, comm := range descendants(p.t, p.cmd.Process.Pid) {
		if comm == name {
			count--
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				p.t.Fatalf("kill %s: %v", name, err)
			}
		}
	}
	if count != 0 {
		p.t.Fatalf("%d processes called %s are missing (or too many)", count, name)
	}
}

// awaitProcess waits until a process of that name is there.
func (p *program) awaitProcess(name string) {
	p.t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	timeout := time.After(time.Minute)
	for {
		for _, comm := range descendants(p.t, p.cmd.Process.Pid) {
			if comm == name {
				return
			}
		}
		select {
		case <-ticker.C:
		case <-timeout:
			p.t.Fatalf("no %s is started", name)
		}
	}
}

// end has the program end by sig, and waits for the end of it and of all that
// it started. It fails the test if that takes longer than limit, or if a
// process, a file or an open port is left.
func (p *program) end(sig syscall.Signal, limit time.Duration) error {
	p.t.Helper()
	var left []process
	for pid, name := range descendants(p.t, p.cmd.Process.Pid) {
		left = append(left, watch(p.t, pid, name))
	}
	began := time.Now()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
	// The last of its processes, the guard, holds the program's stderr, for the
	// end of which Wait waits.
	err := p.cmd.Wait()
	for _, process := range left {
		process.await(p.t, 10*time.Second)
	}
	if took := time.Since(began); took > limit {
		p.t.Errorf("the end took %v, want at most %v", took, limit)
	} else {
		p.t.Logf("%d processes ended within %v", len(left)+1, took.Round(time.Millisecond))
	}
	entries, e := os.ReadDir(p.tmp)
	if e != nil {
		p.t.Error(e)
	}
	for _, entry := range entries {
		p.t.Errorf("%s is left", filepath.Join(p.tmp, entry.Name()))
	}
	for i := 1; i <= 3; i++ {
		ln, e := net.Listen("tcp", p.site(i))
		if e != nil {
			p.t.Errorf("the port of site %d is not free: %v", i, e)
			continue
		}
		ln.Close()
	}
	return err
}

// roundTrip sends a text through API site i and waits for its result.
func (p *program) roundTrip(i int, text, want string, received <-chan string) {
	p.t.Helper()
	s := &client.Sender{URL: "http://" + p.site(i), Timeout: 30 * time.Second}
	answers, err := s.Send(p.t.Context(), []task.Task{{ID: task.NewID(), Text: text}})
	if err := errors.Join(append(answers, err)...); err != nil {
		p.t.Fatalf("send %q: %v", text, err)
	}
	select {
	case got := <-received:
		if got != want {
			p.t.Fatalf("received %q, want %q", got, want)
		}
	case <-time.After(30 * time.Second):
		p.t.Fatalf("no result of %q", text)
	}
}

// listen listens until the test ends. It returns once that has begun.
func (p *program) listen() <-chan string {
	p.t.Helper()
	received, greeted := make(chan string, 100), make(chan struct{}, 100)
	l := &client.Listener{
		URLs:     []string{"ws://" + p.site(3)},
		Greeted:  func(client.Message) error { greeted <- struct{}{}; return nil },
		Received: func(m client.Message) error { received <- m.Text; return nil },
	}
	ended := make(chan error, 1)
	go func() { ended <- l.Run(p.t.Context()) }()
	select {
	case <-greeted:
	case err := <-ended:
		p.t.Fatal("listen:", err)
	}
	return received
}

// All of revq works together; what is killed comes back, and works again; an
// orderly end takes seconds and leaves nothing.
func TestStack(t *testing.T) {
	t.Parallel()
	p := startProgram(t)
	p.output.Await(t, "all is up", 1)
	received := p.listen()
	p.roundTrip(1, "abcdef", "fedcba", received)
	p.roundTrip(2, "second site", "etis dnoces", received)
	for _, host := range loopbacks(t) {
		for i := range 3 {
			awaitPort(t, net.JoinHostPort(host, strconv.Itoa(p.port+i)))
		}
	}

	p.kill("revq-worker", 2)
	p.output.Await(t, "worker-1 ended (signal: killed); starting it again", 1)
	p.output.Await(t, "worker-2 ended (signal: killed); starting it again", 1)
	p.roundTrip(1, "without workers for a while", "elihw a rof srekrow tuohtiw", received)

	p.kill("revq-api", 1)
	p.output.Await(t, "api ended (signal: killed); starting it again", 1)
	awaitPort(t, p.site(1))
	p.roundTrip(1, "after the API", "IPA eht retfa", received)

	p.kill("beam.smp", 1)
	p.output.Await(t, "RabbitMQ ended; starting it again", 1)
	p.roundTrip(2, "after the broker", "rekorb eht retfa", received)

	if err := p.end(syscall.SIGTERM, 15*time.Second); err != nil {
		t.Errorf("ended with %v", err)
	}
	if out := p.output.String(); strings.Contains(out, "DATA RACE") {
		t.Error("a daemon has a data race")
	}
}

// The daemons report all the time; they stop promptly also after more reports
// than a socket's queue holds.
func TestStopAfterManyReports(t *testing.T) {
	t.Parallel()
	p := startProgram(t)
	p.output.Await(t, "all is up", 1)
	sockets, err := filepath.Glob(filepath.Join(p.tmp, "*", "*.notify"))
	if err != nil || len(sockets) != 4 {
		t.Fatalf("notification sockets: %q, %v; want 4", sockets, err)
	}
	for _, path := range sockets {
		conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
		for i := range 1000 {
			if _, err := fmt.Fprintf(conn, "STATUS=ready; report %d\nREADY=1", i); err != nil {
				t.Errorf("report %d to %s: %v", i, filepath.Base(path), err)
				break
			}
		}
	}
	if err := p.end(syscall.SIGTERM, 15*time.Second); err != nil {
		t.Errorf("ended with %v", err)
	}
}

// Killed itself, the program leaves nothing: no process, no file, no port in
// use.
func TestKilled(t *testing.T) {
	t.Parallel()
	p := startProgram(t)
	p.output.Await(t, "all is up", 1)
	if n := len(descendants(t, p.cmd.Process.Pid)); n < 7 { // 4 daemons, the guard, epmd, RabbitMQ
		t.Errorf("only %d processes are running", n)
	}
	p.end(syscall.SIGKILL, 15*time.Second)
}

// The same while it starts, when RabbitMQ is not ready for anything.
func TestEndWhileStarting(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			p := startProgram(t)
			p.awaitProcess("beam.smp")
			err := p.end(sig, 15*time.Second)
			if sig == syscall.SIGTERM && err != nil {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

// What is missing or in the way is told at once, before anything is started.
func TestCannotStart(t *testing.T) {
	stacktest.Programs(t)
	neverUp := func() { t.Error("up") }

	t.Run("no RabbitMQ", func(t *testing.T) {
		cfg := stack.DefaultConfig(t.Output())
		cfg.FirstPort = stacktest.Ports(t, 3)
		cfg.FindServer = func() (string, error) { return "", node.ErrNotFound }
		err := stack.Run(t.Context(), cfg, neverUp)
		if !errors.Is(err, node.ErrNotFound) || !strings.Contains(err.Error(), "--amqp-url") {
			t.Errorf("got %v, want ErrNotFound and what to use instead", err)
		}
	})

	t.Run("a port in use", func(t *testing.T) {
		cfg := stack.DefaultConfig(t.Output())
		for _, host := range loopbacks(t) {
			for i := range 3 {
				cfg.FirstPort = stacktest.Ports(t, 3)
				ln, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(cfg.FirstPort+i)))
				if err != nil {
					t.Fatal(err)
				}
				err = stack.Run(t.Context(), cfg, neverUp)
				ln.Close()
				want := fmt.Sprintf("port %d is in use: stop what uses it, or give --first-port PORT with 3 free ports", cfg.FirstPort+i)
				if err == nil || err.Error() != want {
					t.Errorf("%s: got %v, want %s", host, err, want)
				}
			}
		}
	})

	t.Run("no broker where it should be", func(t *testing.T) {
		cfg := stack.DefaultConfig(t.Output())
		cfg.FirstPort = stacktest.Ports(t, 3)
		cfg.URLs = []string{"amqp://u:secret@127.0.0.1:1"}
		err := stack.Run(t.Context(), cfg, neverUp)
		if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") || strings.Contains(err.Error(), "secret") {
			t.Errorf("got %v, want the address without the password", err)
		}
	})

	t.Run("no programs", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		err := stack.Run(t.Context(), stack.DefaultConfig(t.Output()), neverUp)
		if err == nil || !strings.Contains(err.Error(), "revq-api is neither beside this program nor in PATH") {
			t.Errorf("got %v, want what is missing", err)
		}
	})
}

// loopbacks returns the addresses at which all sites are served: ::1, too, if
// the host has it.
func loopbacks(t *testing.T) []string {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, a := range addresses {
		if network, ok := a.(*net.IPNet); ok && network.IP.IsLoopback() {
			found = append(found, network.IP.String())
		}
	}
	return found
}

// awaitPort waits until something accepts connections.
func awaitPort(t *testing.T, address string) {
	t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	timeout := time.After(time.Minute)
	for {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-ticker.C:
		case <-timeout:
			t.Fatal(err)
		}
	}
}
