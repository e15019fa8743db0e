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

	"github.com/revq/revq/internal/proc"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/rabbit/node"
	"github.com/revq/revq/internal/stack"
)

// A Rig is a private broker, on which daemons can be run.
type Rig struct {
	node  *node.Node
	group *proc.Group
	log   *tail
}

// rigStart bounds the start of the broker.
const rigStart = 2 * time.Minute

// NewRig starts a broker. It ends with the program at the latest.
func NewRig(ctx context.Context) (_ *Rig, err error) {
	server, err := node.Find()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "revq-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for the broker: %w", err)
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

// Close ends the broker and removes all that it has left. What is in it is not needed any more, so it is killed.
func (r *Rig) Close() error {
	r.node.Kill()
	return r.group.Close()
}

// AMQP returns the URL of the broker.
func (r *Rig) AMQP() string { return r.node.URL() }

// Broker is the broker's process.
func (r *Rig) Broker() Processes { return Processes{r.node.Pid()} }

// A Layout is what is run on a Rig.
type Layout struct {
	APISites    int
	SocketSites int
	Workers     int
	Env         []string // variables of the daemons, as REVQ_CONCURRENCY=100
	Keep        bool     // what is in the queues
	Hold        bool     // each daemon once it is ready, until Resume
}

// A System is what runs on a Rig. Its daemons do not pause.
type System struct {
	API    []string // URLs of the API's sites
	Socket []string // URLs to listen at

	stop   context.CancelFunc
	done   chan struct{}
	err    error // of stack.Run; once done is closed
	mu     sync.Mutex
	starts []Start
	held   []int // ids of processes that are stopped
}

// A Start is one of a daemon.
type Start struct {
	Daemon string       `json:"daemon"`
	Took   Milliseconds `json:"ready_after_ms"` // from its fork to READY
	pid    int
}

// Start runs daemons, on queues that are empty unless it is to keep what is in them. The caller stops them.
func (r *Rig) Start(ctx context.Context, layout Layout) (*System, error) {
	if !layout.Keep {
		if err := r.renew(ctx); err != nil {
			return nil, err
		}
	}
	port, err := stack.FreePorts(layout.APISites + layout.SocketSites)
	if err != nil {
		return nil, err
	}
	s := &System{done: make(chan struct{})}
	for i := range layout.SocketSites {
		s.Socket = append(s.Socket, fmt.Sprintf("ws://127.0.0.1:%d/listen_results", port+layout.APISites+i))
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
		s.starts = append(s.starts, Start{name, milliseconds(took), pid})
		if layout.Hold && running.Err() == nil && syscall.Kill(pid, syscall.SIGSTOP) == nil {
			s.held = append(s.held, pid)
		}
	}
	context.AfterFunc(running, s.Resume) // or they could not end
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

// Resume lets daemons go on that are held.
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

// Starts returns how long the daemons took.
func (s *System) Starts() []Start {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Start(nil), s.starts...)
}

// Processes are those of a daemon: api, socket or worker.
func (s *System) Processes(daemon string) (found Processes) {
	for _, start := range s.Starts() {
		if name, _, _ := strings.Cut(start.Daemon, "-"); name == daemon {
			found = append(found, start.pid)
		}
	}
	return found
}

// maxTasks is room for a queue of a million tasks, and for those that are posted to it.
const maxTasks = 2_000_000

// renew removes revq's queues, with what earlier measurements have left in them, and declares new ones.
func (r *Rig) renew(ctx context.Context) error {
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

// A tail keeps the end of what is written to it: the daemons' logs, for when one fails.
type tail struct {
	mu      sync.Mutex
	content []byte
}

// maxTail is how much a tail keeps, in bytes.
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
