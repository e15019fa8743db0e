package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/revq/revq/internal/bench/report"
	"github.com/revq/revq/internal/proc"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/rabbit/node"
	"github.com/revq/revq/internal/stack"
	"github.com/revq/revq/internal/wire"
)

// A Rig is a private broker with which daemons can be run.
type Rig struct {
	node  *node.Node
	group *proc.Group
	log   *tail
}

// rigStart is the time limit for the start of the broker.
const rigStart = 2 * time.Minute

// NewRig starts a broker. It ends when this program ends, if not before.
func NewRig(ctx context.Context) (_ *Rig, err error) {
	server, err := node.Find()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "revq-bench-")
	if err != nil {
		return nil, fmt.Errorf("create a directory for the broker: %w", err)
	}
	group, err := proc.NewGroup(dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	ctx, cancel := context.WithTimeout(ctx, rigStart)
	defer cancel()
	n, err := node.Start(ctx, group, node.Config{Server: server, Dir: filepath.Join(dir, "rabbitmq")})
	if err != nil {
		return nil, errors.Join(err, group.Close())
	}
	return &Rig{node: n, group: group, log: new(tail)}, nil
}

// Close kills the broker, whose data nobody needs, and removes its files.
func (r *Rig) Close() error {
	r.node.Kill()
	return r.group.Close()
}

// AMQP returns the URL of the broker.
func (r *Rig) AMQP() string { return r.node.URL() }

// Broker is the broker's process.
func (r *Rig) Broker() Processes { return Processes{r.node.Pid()} }

// A Layout is what a Rig runs.
type Layout struct {
	APISites    int
	SocketSites int
	Workers     int
	Env         []string // variables of the daemons, such as REVQ_CONCURRENCY=100
	Keep        bool     // keeps what is in the queues
	Hold        bool     // stops each daemon with SIGSTOP once it is ready, until Resume
}

// A System is what a Rig runs. Its workers do not pause.
type System struct {
	API    []string // URLs of the API's sites
	Socket []string // URLs to listen at

	stop   context.CancelFunc
	done   chan struct{}
	err    error // of stack.Run; set before done is closed
	mu     sync.Mutex
	starts []Start
	held   []int // ids of processes that are held
}

// A Start is one start of a daemon.
type Start struct {
	Daemon string              `json:"daemon"`
	Took   report.Milliseconds `json:"ready_after_ms"` // from its fork to READY
	pid    int
}

// Start starts daemons, with empty queues unless layout.Keep is set. The caller
// stops them.
func (r *Rig) Start(ctx context.Context, layout Layout) (*System, error) {
	if !layout.Keep {
		if err := r.recreateQueues(ctx); err != nil {
			return nil, err
		}
	}
	port, err := stack.FreePorts(layout.APISites + layout.SocketSites)
	if err != nil {
		return nil, err
	}
	s := &System{done: make(chan struct{})}
	for i := range layout.SocketSites {
		s.Socket = append(s.Socket, fmt.Sprintf("ws://127.0.0.1:%d%s", port+layout.APISites+i, wire.ListenPath))
	}
	for i := range layout.APISites {
		s.API = append(s.API, fmt.Sprintf("http://127.0.0.1:%d", port+i))
	}
	cfg := stack.DefaultConfig(r.log)
	cfg.URLs, cfg.FirstPort = []string{r.AMQP()}, port
	cfg.APISites, cfg.SocketSites, cfg.Workers = layout.APISites, layout.SocketSites, layout.Workers
	cfg.Env = append([]string{"REVQ_PAUSE=0s"}, layout.Env...)
	running, stop := context.WithCancel(ctx)
	s.stop = stop
	cfg.Ready = func(name string, pid int, took time.Duration) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.starts = append(s.starts, Start{name, report.Millis(took), pid})
		if layout.Hold && running.Err() == nil && syscall.Kill(pid, syscall.SIGSTOP) == nil {
			s.held = append(s.held, pid)
		}
	}
	context.AfterFunc(running, s.Resume) // a process that is held cannot end
	up := make(chan struct{})
	go func() {
		s.err = stack.Run(running, cfg, func() { close(up) })
		close(s.done)
	}()
	select {
	case <-up:
		return s, nil
	case <-s.done:
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w\n%s", s.err, r.log)
	}
}

// Resume lets the daemons that are held run.
func (s *System) Resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, pid := range s.held {
		_ = syscall.Kill(pid, syscall.SIGCONT) // fails if it has ended
	}
	s.held = nil
}

// Stop ends the daemons.
func (s *System) Stop() error {
	s.stop()
	<-s.done
	return s.err
}

// Starts returns the starts of all daemons.
func (s *System) Starts() []Start {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Start(nil), s.starts...)
}

// Processes returns the processes of a daemon: api, socket or worker.
func (s *System) Processes(daemon string) (found Processes) {
	for _, start := range s.Starts() {
		if name, _, _ := strings.Cut(start.Daemon, "-"); name == daemon {
			found = append(found, start.pid)
		}
	}
	return found
}

// maxTasks is the limit of the queue: a million tasks, and as many again that
// are posted while they are in it.
const maxTasks = 2_000_000

// recreateQueues removes revq's queues, with what earlier measurements have
// left in them, and declares them again.
func (r *Rig) recreateQueues(ctx context.Context) error {
	broker, err := dialBroker(ctx, r.AMQP(), "bench")
	if err != nil {
		return err
	}
	defer broker.close()
	for _, queue := range []string{rabbit.TasksQueue, rabbit.DeadQueue, rabbit.ResultsQueue} {
		if _, err := broker.ch.QueueDelete(queue, false, false, false); err != nil {
			return fmt.Errorf("remove the queue %s: %w", queue, err)
		}
	}
	cfg := rabbit.DefaultConfig("bench")
	cfg.URLs, cfg.Topology.MaxTasks = []string{r.AMQP()}, maxTasks
	ctx, cancel := context.WithTimeout(ctx, brokerTimeout)
	defer cancel()
	_, err = rabbit.Setup(ctx, cfg)
	return err
}

// A tail keeps the end of what is written to it: the daemons' logs, which are
// shown when one fails.
type tail struct {
	mu      sync.Mutex
	content []byte
}

// maxTail is how many bytes a tail keeps; it has up to twice as many between two
// writes.
const maxTail = 8 << 10

var _ io.Writer = (*tail)(nil)

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.content = append(t.content, p...)
	if len(t.content) > 2*maxTail {
		t.content = bytes.Clone(t.content[len(t.content)-maxTail:])
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.content)
}
