//go:build linux

package boot

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// bootTimeout is the time limit for the start of a host with its broker.
	// Measured: 3 to 5 s, and two minutes for a node of a cluster that has to be
	// started twice.
	bootTimeout = 5 * time.Minute

	// commandTimeout is the time limit of a command in a host, and of the host's end.
	// The slowest is a restart of RabbitMQ. Measured: 10 s, and more than a
	// minute on a machine that is busy with other tests.
	commandTimeout = 3 * time.Minute
)

//go:embed launch.sh
var launch string

// A Host is a booted system with its own network, which has only a loopback
// interface, unless the host is in a lan.
type Host struct {
	name     string
	leader   int // process id of its systemd, on this machine
	network  int // descriptor of its network namespace
	console  *console
	root     string // the files that it was booted from
	upper    string // where its changes are, on this machine
	launcher io.WriteCloser
	notify   string // the name of the socket that is told when the host is up
}

// Start boots what is below the directory root, and waits until everything that
// is enabled there runs: RabbitMQ. The test is skipped where mounting is not
// permitted. If packages are missing, the test is skipped too, but fails if the
// variable CI is set.
func Start(t testing.TB, root string) *Host {
	t.Helper()
	return start(t, root, []string{"/bin/sh"}, "host")
}

// start starts launch.sh with a shell, the name of the host, and what it may be
// told besides.
func start(t testing.TB, root string, shell []string, args ...string) *Host {
	t.Helper()
	require(t, []string{"systemd-nspawn", "nsenter"},
		[]string{filepath.Join(root, "lib/systemd/systemd"), filepath.Join(root, "lib/systemd/system/rabbitmq-server.service")})

	dir, err := os.MkdirTemp("", "revq-boot-")
	if err != nil {
		t.Fatal(err)
	}
	h := &Host{name: filepath.Base(dir), console: new(console), root: root, notify: filepath.Join(dir, "notify")}
	notify, err := h.listen()
	if err != nil {
		t.Fatal(errors.Join(err, os.RemoveAll(dir)))
	}
	defer notify.Close()
	command := slices.Concat(shell, []string{"-c", launch, "revq-boot", root, h.name, dir}, args)
	launcher := exec.Command(command[0], command[1:]...)
	launcher.Stdout, launcher.Stderr = h.console, h.console
	launcher.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Setsid: true}
	launcher.WaitDelay = commandTimeout
	if h.launcher, err = launcher.StdinPipe(); err != nil {
		t.Fatal(errors.Join(err, os.RemoveAll(dir)))
	}
	if err := launcher.Start(); err != nil {
		t.Fatal(errors.Join(err, os.RemoveAll(dir)))
	}
	h.upper = fmt.Sprintf("/proc/%d/root%s/memory/upper", launcher.Process.Pid, dir)
	t.Cleanup(func() {
		h.launcher.Close()
		if err := launcher.Wait(); err != nil {
			t.Errorf("take the container away: %v", err)
		}
		if t.Failed() {
			t.Logf("console of the host:\n%s", h.console)
		}
	})

	h.awaitRunning(t, notify)
	t.Cleanup(func() { unix.Close(h.network) })
	return h
}

// listen opens the socket that is told when the host is up.
func (h *Host) listen() (*net.UnixConn, error) {
	return net.ListenUnixgram("unixgram", &net.UnixAddr{Name: h.notify, Net: "unixgram"})
}

// awaitRunning waits until everything that is enabled runs.
func (h *Host) awaitRunning(t testing.TB, notify *net.UnixConn) {
	t.Helper()
	if err := h.awaitBoot(notify); err != nil {
		t.Fatalf("boot %s: %v", h.root, err)
	}
	var err error
	if h.network, err = unix.Open(fmt.Sprintf("/proc/%d/ns/net", h.leader), unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	// systemd 257 sends READY=1 before everything runs, 252 afterwards.
	if state, _ := h.Try(t, "systemctl", "is-system-running", "--wait"); state != "running" && state != "degraded" {
		t.Fatalf("boot %s: the system is %q, want running", h.root, state)
	}
}

// permitted tries the mounts that a container needs, in a mount namespace that
// ends with them.
const permitted = `
mount -t tmpfs tmpfs /mnt
mkdir /mnt/lower /mnt/upper /mnt/work /mnt/root
mount -t overlay -o lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root
[ -e /sys/fs/cgroup/cgroup.controllers ] || mount -t cgroup2 cgroup2 /sys/fs/cgroup
group=$(mktemp -d /sys/fs/cgroup/revq-boot-XXXXXX)
rmdir "$group"`

// require skips the test where containers are not permitted. If only packages
// are missing, the test fails if the variable CI is set, and is skipped
// otherwise.
func require(t testing.TB, tools, files []string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to boot a container")
	}
	try := exec.Command("sh", "-euc", permitted)
	try.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := try.CombinedOutput(); err != nil {
		t.Skipf("cannot mount here what a container needs: %v\n%s", err, out)
	}
	var missing []string
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			missing = append(missing, tool)
		}
	}
	for _, file := range files {
		if _, err := os.Stat(file); err != nil {
			missing = append(missing, file)
		}
	}
	if len(missing) == 0 {
		return
	}
	reason := fmt.Sprintf("there is no %s: apt-get install %s systemd-container debootstrap", strings.Join(missing, ", "), strings.Join(packages, " "))
	if os.Getenv("CI") == "" {
		t.Skip(reason)
	}
	t.Fatal(reason)
}

// packages are the Debian packages that a host needs.
var packages = []string{"systemd", "dbus", "rabbitmq-server", "iproute2", "procps"}

// debootstrapTimeout is the time limit for downloading and installing a Debian.
// Measured: 1 to 2 minutes.
const debootstrapTimeout = 8 * time.Minute

// Debian returns a directory with a release of Debian, such as trixie, and the
// packages that a host needs. The first test that asks for it creates it in the
// user's cache, where it remains.
func Debian(t testing.TB, release string) string {
	t.Helper()
	require(t, []string{"debootstrap"}, nil)
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "revq", "debian-"+release)
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	unfinished, err := os.MkdirTemp(filepath.Dir(dir), "unfinished-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(unfinished)
	ctx, cancel := context.WithTimeout(t.Context(), debootstrapTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "debootstrap", "--variant=minbase", "--include="+strings.Join(packages, ","), release, unfinished)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS} // its mounts end with it
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("debootstrap %s: %v\n%s", release, err, out)
	}
	if err := errors.Join(os.Chmod(unfinished, 0o755), os.Rename(unfinished, dir)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// awaitBoot reads what nspawn prints until systemd is up.
func (h *Host) awaitBoot(notify *net.UnixConn) error {
	if err := notify.SetReadDeadline(time.Now().Add(bootTimeout)); err != nil {
		return err
	}
	message := make([]byte, 4096)
	for {
		n, err := notify.Read(message)
		if err != nil {
			return fmt.Errorf("it did not come up within %v: %w", bootTimeout, err)
		}
		for line := range strings.Lines(string(message[:n])) {
			fmt.Sscanf(line, "X_NSPAWN_LEADER_PID=%d", &h.leader)
			if strings.TrimSpace(line) == "READY=1" && h.leader != 0 {
				return nil
			}
		}
	}
}

// PID returns the id, on this machine, of the process that has the id inner in
// the host.
func (h *Host) PID(t testing.TB, inner string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		t.Fatal(err)
	}
	namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", h.leader))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		status, _ := os.ReadFile(file) // empty for a process that has just ended
		outer := filepath.Base(filepath.Dir(file))
		if !strings.Contains(string(status), fmt.Sprintf("\nNSpid:\t%s\t%s\n", outer, inner)) {
			continue
		}
		if in, _ := os.Readlink(filepath.Join("/proc", outer, "ns/pid")); in == namespace {
			pid, err := strconv.Atoi(outer)
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatalf("the host has no process %s", inner)
	return 0
}

// Path returns where a file of the host is on this machine.
func (h *Host) Path(name string) string { return fmt.Sprintf("/proc/%d/root%s", h.leader, name) }

// Written returns the names of the files that the host has created, changed or
// removed, and of the directories that it has created. Changes to the files
// that it was booted from are not among them.
func (h *Host) Written(t testing.TB) []string {
	t.Helper()
	var names []string
	err := fs.WalkDir(os.DirFS(h.upper), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // the host still runs, and removes files
			return err
		}
		if entry != nil && entry.IsDir() {
			if _, err := os.Lstat(filepath.Join(h.root, name)); err == nil {
				return nil
			}
		}
		names = append(names, "/"+name)
		return nil
	})
	if err != nil {
		t.Fatalf("list what the host has written: %v", err)
	}
	return names
}

// Write writes a file of the host, and creates its directory.
func (h *Host) Write(t testing.TB, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(h.Path(name)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.Path(name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Command returns a command that will run in the host, as root.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--all", "--target", fmt.Sprint(h.leader), "--", name}, args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}
	cmd.WaitDelay = time.Second // a command that is abandoned ends only with the host
	return cmd
}

// Try runs a command in the host and returns all that it printed.
func (h *Host) Try(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout) // also in cleanups
	defer cancel()
	out, err := h.Command(ctx, name, args...).CombinedOutput()
	if ctx.Err() != nil {
		err = fmt.Errorf("not within %v: %w", commandTimeout, err)
	}
	return strings.TrimSpace(string(out)), err
}

// Run is Try for a command that must succeed.
func (h *Host) Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := h.Try(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// Shell runs a script in the host, as a user would type it.
func (h *Host) Shell(t testing.TB, script string) string {
	t.Helper()
	return h.Run(t, "bash", "-euc", script)
}

// Property returns a property of a unit, as `systemctl show` prints it.
func (h *Host) Property(t testing.TB, unit, name string) string {
	t.Helper()
	return h.Run(t, "systemctl", "show", "--value", "--property="+name, unit)
}

// Lines starts a command in the host, and calls line with each line of its
// standard output. The command ends with the host.
func (h *Host) Lines(t testing.TB, line func(string), name string, args ...string) {
	t.Helper()
	cmd := h.Command(context.Background(), name, args...)
	cmd.Stderr = h.console
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			line(lines.Text())
		}
		_ = cmd.Wait() // it was killed
	}()
}

// Dial connects to an address, which has to be numeric, in the host's network.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	dialled := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, in that network
		if err := unix.Setns(h.network, unix.CLONE_NEWNET); err != nil {
			dialled <- result{nil, fmt.Errorf("enter the network of the host: %w", err)}
			return
		}
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		dialled <- result{conn, err}
	}()
	r := <-dialled
	return r.conn, r.err
}

// A console keeps the last lines that a host prints.
type console struct {
	mu   sync.Mutex
	last []byte
}

const consoleLimit = 64 << 10

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = append(c.last, p...)
	if over := len(c.last) - consoleLimit; over > 0 {
		c.last = append([]byte(nil), c.last[over:]...)
	}
	return len(p), nil
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.last)
}
