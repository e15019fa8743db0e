// Package proc runs child processes that cannot outlive the program.
//
// Each child leads a process group of its own, so that a terminal's ^C reaches
// only the program, which then stops its children in its own order. A guard, a
// small shell script in a session of its own, learns of each group over a pipe.
// When that pipe ends, however the program ended (also by kill -9), the guard
// kills every group that is still registered and removes the working directory.
//
// Not covered are a grandchild that starts a session or a process group of its
// own, and a guard that is itself killed before the program.
package proc

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrKilled is returned by [Process.Stop] for a process that did not end in
// time and was killed.
var ErrKilled = errors.New("did not stop in time and was killed")

// ErrClosed is returned by [Group.Start] after [Group.Close].
var ErrClosed = errors.New("process group is closed")

// outputDelay is the time limit for the last output of a process that has
// ended. Only a grandchild that left the process group can hold the output open
// for longer.
const outputDelay = 2 * time.Second

// guardScript reads "+ pgid" and "- pgid" lines until the end of its input.
// Then it kills the groups that are left and removes the directory when they
// are gone, or after five seconds: a killed process stays visible until its new
// parent, usually init, has reaped it, and in a container that may be never.
const guardScript = `
trap '' INT TERM HUP QUIT PIPE
groups=' '
while read -r op pgid; do
	case $op in
	+) groups="$groups$pgid " ;;
	-) case $groups in *" $pgid "*) groups="${groups%%" $pgid "*} ${groups#*" $pgid "}" ;; esac ;;
	esac
done
try=0
while [ -n "${groups% }" ] && [ $try -lt 50 ]; do
	left=
	for pgid in $groups; do
		if kill -KILL -"$pgid" 2>/dev/null; then left="$left$pgid "; fi
	done
	groups=$left try=$((try + 1))
	if [ -n "$groups" ]; then sleep 0.1; fi
done
[ -z "$1" ] || rm -rf -- "$1"
`

// childScript is what every child runs first: it registers itself with the
// guard, whose pipe is its standard input, then becomes the real program. If
// the program registered its children, it could die between starting a child
// and registering it.
const childScript = `echo "+ $$" >&0 && exec "$@" </dev/null`

// A Group is a set of child processes that cannot outlive the program.
// Its methods may be called from several goroutines.
type Group struct {
	dir   string
	guard *exec.Cmd
	pipe  *os.File // to the guard; only childScript may inherit it

	mu     sync.Mutex
	procs  map[*Process]struct{}
	closed bool

	closeOnce sync.Once
	closeErr  error
}

// NewGroup starts the guard of an empty group. The directory dir and its
// content are removed when the group is closed or the program ends; "" is for
// none.
func NewGroup(dir string) (*Group, error) {
	if dir != "" {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return nil, fmt.Errorf("guard of child processes: %w", err)
		}
		dir = abs
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("guard of child processes: %w", err)
	}
	defer r.Close()
	guard := exec.Command("/bin/sh", "-c", guardScript, "revq-guard", dir)
	guard.Dir = "/"
	guard.Stdin = r
	guard.Stderr = os.Stderr // who reads this program's stderr to its end thus knows that the guard has finished
	guard.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := guard.Start(); err != nil {
		w.Close()
		return nil, fmt.Errorf("start guard of child processes: %w", err)
	}
	return &Group{dir: dir, guard: guard, pipe: w, procs: make(map[*Process]struct{})}, nil
}

// Start starts cmd at the head of a process group of its own. Its standard
// input is empty (cmd.Stdin must be nil); its other settings are kept. The
// program is looked up as by [exec.Command]. If it is found but cannot be
// executed, the process ends with status 126 or 127.
func (g *Group) Start(cmd *exec.Cmd) (*Process, error) {
	if cmd.Err != nil {
		return nil, fmt.Errorf("start: %w", cmd.Err)
	}
	if cmd.Stdin != nil {
		return nil, fmt.Errorf("start %s: standard input is not available to children", cmd.Path)
	}
	if filepath.IsAbs(cmd.Path) {
		if _, err := exec.LookPath(cmd.Path); err != nil {
			return nil, fmt.Errorf("start: %w", err)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, ErrClosed)
	}
	args := append([]string{"sh", "-c", childScript, "sh", cmd.Path}, cmd.Args[1:]...)
	cmd.Path, cmd.Args = "/bin/sh", args
	cmd.Stdin = g.pipe
	cmd.WaitDelay = outputDelay
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Setpgid = true
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start: %w", err)
	}
	p := &Process{group: g, cmd: cmd, done: make(chan struct{})}
	g.procs[p] = struct{}{}
	go p.wait()
	return p, nil
}

// Start starts cmd at the head of a process group of its own, outside of any
// Group. Unlike a process of a Group, it may have a standard input and costs no
// shell. If the program is killed, the system kills the process, but not what
// the process has started.
func Start(cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Setpgid = true
	// The system kills the child when the thread that starts it ends. Go's threads
	// live as long as the program, except those that goroutines lock and leave
	// locked, and this program has none.
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.WaitDelay = outputDelay
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	go p.wait()
	return p, nil
}

// Close kills every process that is left, ends the guard and removes the
// directory. Stop processes that should end in an orderly way before. Further
// calls return the result of the first.
func (g *Group) Close() error {
	g.closeOnce.Do(func() {
		g.mu.Lock()
		g.closed = true
		left := make([]*Process, 0, len(g.procs))
		for p := range g.procs {
			left = append(left, p)
		}
		g.mu.Unlock()
		for _, p := range left {
			p.Kill()
		}
		for _, p := range left {
			<-p.done
		}
		g.pipe.Close()
		if err := g.guard.Wait(); err != nil {
			g.closeErr = fmt.Errorf("guard of child processes: %w", err)
		}
		if g.dir != "" {
			// The guard has removed it, unless someone killed the guard.
			g.closeErr = errors.Join(g.closeErr, os.RemoveAll(g.dir))
		}
	})
	return g.closeErr
}

// A Process is a child and the process group that it leads.
type Process struct {
	group *Group // nil if it is in none
	cmd   *exec.Cmd
	done  chan struct{}
	err   error // of cmd.Wait; written before done is closed

	mu    sync.Mutex
	ended bool // the leader has ended: the group has been killed and its id may be reused
}

// wait waits for the end of the process, kills what is left of its group and
// removes the group from the guard's list. It does so before it reaps the
// leader, because the system does not reuse the id until then.
func (p *Process) wait() {
	awaitExit(p.Pid())
	p.mu.Lock()
	p.ended = true
	syscall.Kill(-p.Pid(), syscall.SIGKILL)
	if p.group != nil {
		fmt.Fprintf(p.group.pipe, "- %d\n", p.Pid())
	}
	p.mu.Unlock()
	p.err = p.cmd.Wait()
	if p.group != nil {
		p.group.mu.Lock()
		delete(p.group.procs, p)
		p.group.mu.Unlock()
	}
	close(p.done)
}

// awaitExit returns when the child pid has ended. The child remains a zombie.
func awaitExit(pid int) {
	for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
}

// Pid returns the process id, which is also the process group's.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended, its group is gone and its output
// is complete.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns nil until Done is closed, and then the result of [exec.Cmd.Wait].
func (p *Process) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// State waits until Done is closed, and returns how the process ended.
func (p *Process) State() *os.ProcessState {
	<-p.done
	return p.cmd.ProcessState
}

// Signal sends a signal to the process, not to its group. It returns
// [os.ErrProcessDone] after the process has ended.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Kill kills the process and its group. It does not wait for their end.
func (p *Process) Kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended {
		syscall.Kill(-p.Pid(), syscall.SIGKILL)
	}
}

// Stop asks the process to end with SIGTERM and waits for it. After grace it
// kills the group and returns [ErrKilled]. If the process stopped in time, Err
// returns how it ended.
func (p *Process) Stop(grace time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop process %d: %w", p.Pid(), err)
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
	}
	p.Kill()
	<-p.done
	return fmt.Errorf("process %d: %w", p.Pid(), ErrKilled)
}
