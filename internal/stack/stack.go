// Package stack runs all of revq on one machine, for `revq up`: a private
// RabbitMQ node, the API, the socket server and the workers, each as a process.
//
// However the program ends, its processes end with it.
package stack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/revq/revq/internal/command"
	"github.com/revq/revq/internal/page"
	"github.com/revq/revq/internal/proc"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/rabbit/node"
)

// Config says what to run. DefaultConfig gives a usable one.
type Config struct {
	// URLs are those of the broker to use; empty for a private one.
	URLs []string

	// FirstPort is the port of API site 1; the other sites of the API and the
	// socket site follow. Default 8081.
	FirstPort int

	// APISites and SocketSites are the numbers of sites of the API and of the
	// socket server. A server without a site does not run. Default 2 and 1.
	APISites, SocketSites int

	// Workers is the number of workers. Default 2.
	Workers int

	// Queue is a named queue, which is declared and has as many workers of its
	// own; "" for none. Program, with its arguments, handles its tasks: as a
	// filter, or Persistent.
	Queue      string
	Program    []string
	Persistent bool

	// Env are variables for the daemons, as NAME=VALUE. They override those of
	// this program, of which some are not passed on: see environment.
	Env []string

	// Ready, if it is not nil, is called each time that a daemon becomes ready,
	// with its process id and how long its start took. Calls may be concurrent.
	Ready func(name string, pid int, took time.Duration)

	// FindServer returns the path of the rabbitmq-server script for a broker
	// for a private broker. Default node.Find.
	FindServer func() (string, error)

	// Output receives the processes' logs and the progress of the start.
	Output io.Writer
}

// DefaultConfig returns the default configuration.
func DefaultConfig(output io.Writer) Config {
	return Config{FirstPort: 8081, APISites: 2, SocketSites: 1, Workers: 2, FindServer: node.Find, Output: output}
}

const (
	brokerStart = 2 * time.Minute // slow machines take a minute
	setupTime   = 30 * time.Second
	daemonStart = 30 * time.Second
	stopGrace   = 25 * time.Second // above the daemons' own stop timeout
	brokerStop  = 20 * time.Second
	slowStop    = 2 * time.Second // after that, the output says what the stop waits for

	// restartPause is the wait before a process that died is restarted.
	restartPause = time.Second
)

var errLate = fmt.Errorf("not everything was ready after %v: see the log above", daemonStart)

// A Stack is a running revq.
type Stack struct {
	cfg   Config
	dir   string
	group *proc.Group
	out   *output
}

// Run starts everything, calls up when all of it is ready, and stops everything
// when ctx ends or a process cannot be kept running.
func Run(ctx context.Context, cfg Config, up func()) (err error) {
	defer func() {
		if ctx.Err() != nil {
			err = nil // the caller ended it, and the processes failed because of that
		}
	}()
	// Mistakes are told before the broker is started, which takes long.
	server, err := cfg.check()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "revq-up-")
	if err != nil {
		return fmt.Errorf("make a directory for what runs: %w", err)
	}
	group, err := proc.NewGroup(dir)
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	defer func() { err = errors.Join(err, group.Close()) }()
	s := &Stack{cfg: cfg, dir: dir, group: group, out: &output{w: cfg.Output}}
	if ignored := ignoredHandler(); ignored != "" {
		s.out.say("ignoring %s: give a program with --queue NAME -- PROGRAM, and --persistent if it is no filter", ignored)
	}

	broker, err := s.startBroker(ctx, server)
	if err != nil {
		return err
	}
	defer broker.stop()
	if err := s.setup(ctx, broker.urls); err != nil {
		return err
	}

	running, fail := context.WithCancelCause(ctx)
	var kept sync.WaitGroup
	defer func() {
		fail(nil)
		kept.Wait()
	}()
	services := s.services(broker.urls)
	ready := make(chan struct{}, len(services))
	for _, d := range services {
		kept.Go(func() {
			if err := s.keep(running, d, ready); err != nil {
				fail(err)
			}
		})
	}
	kept.Go(func() {
		if err := broker.keep(running); err != nil {
			fail(err)
		}
	})
	late := time.AfterFunc(daemonStart, func() {
		fail(errLate)
	})
	defer late.Stop()
	for range services {
		select {
		case <-ready:
		case <-running.Done():
		}
	}
	if running.Err() == nil && late.Stop() {
		up()
	}
	<-running.Done()
	s.out.say("stopping")
	return context.Cause(running)
}

// setup declares what is missing at the broker. Other sizes than the default
// ones do not matter.
func (s *Stack) setup(ctx context.Context, urls []string) error {
	ctx, cancel := context.WithTimeout(ctx, setupTime)
	defer cancel()
	cfg := rabbit.DefaultConfig("revq up")
	cfg.URLs = urls
	for _, queue := range []string{cfg.Topology.Queue, s.cfg.Queue} {
		if queue == "" {
			continue
		}
		cfg.Topology.Queue = queue
		_, err := rabbit.Setup(ctx, cfg)
		var differences rabbit.Differences
		if err != nil && (!errors.As(err, &differences) || !differences.Sizes()) {
			return fmt.Errorf("set up the broker: %w", err)
		}
	}
	return nil
}

// check returns an error if a program is missing or a port is taken, and
// otherwise the path of the RabbitMQ server, if one is to be started.
func (c *Config) check() (server string, err error) {
	for _, binary := range []string{apiBinary, socketBinary, workerBinary} {
		if _, err := find(binary); err != nil {
			return "", err
		}
	}
	if len(c.Program) > 0 {
		if _, err := exec.LookPath(c.Program[0]); err != nil {
			return "", fmt.Errorf("the program of the queue %s cannot be run: %w", c.Queue, err)
		}
	}
	for i := 1; i <= c.APISites+c.SocketSites; i++ {
		err := free(c.FirstPort + i - 1)
		if errors.Is(err, syscall.EADDRINUSE) {
			return "", fmt.Errorf("port %d %w: stop what uses it, or give --first-port PORT with %d free ports", c.FirstPort+i-1, ErrInUse, c.APISites+c.SocketSites)
		}
		if err != nil {
			return "", fmt.Errorf("cannot listen: %w; give other ports with --first-port", err)
		}
	}
	if len(c.URLs) > 0 {
		return "", nil
	}
	if server, err = c.FindServer(); err != nil {
		return "", fmt.Errorf("%w\nor use a broker that runs already: --amqp-url amqp://USER:PASSWORD@HOST:PORT/VHOST", err)
	}
	return server, nil
}

// A service is one of revq's daemons.
type service struct {
	name   string // unique; shown in the output
	binary string
	args   []string
	urls   []string
}

const (
	apiBinary    = "revq-api"
	socketBinary = "revq-socket"
	workerBinary = "revq-worker"
)

// site returns the flags that make a daemon serve site i, from 1.
func (c *Config) site(i int) (args []string) {
	for _, host := range loopbacks() {
		args = append(args, "--listen", net.JoinHostPort(host, strconv.Itoa(c.FirstPort+i-1)))
	}
	return args
}

func (s *Stack) services(urls []string) []service {
	var all []service
	api, socket := service{"api", apiBinary, nil, urls}, service{"socket", socketBinary, nil, urls}
	for i := range s.cfg.APISites {
		api.args = append(api.args, s.cfg.site(i+1)...)
	}
	for i := range s.cfg.SocketSites {
		socket.args = append(socket.args, s.cfg.site(s.cfg.APISites+i+1)...)
	}
	switch {
	case s.cfg.SocketSites == 0:
	case s.cfg.APISites == 0:
		socket.args = append(socket.args, "--api-url", page.NoAPI)
	default:
		socket.args = append(socket.args, "--api-url", ":"+strconv.Itoa(s.cfg.FirstPort))
	}
	for _, front := range []service{api, socket} {
		if len(front.args) > 0 {
			all = append(all, front)
		}
	}
	for i := range s.cfg.Workers {
		all = append(all, service{fmt.Sprint("worker-", i+1), workerBinary, nil, urls})
	}
	if s.cfg.Queue != "" {
		mode := "filter"
		if s.cfg.Persistent {
			mode = "persistent"
		}
		args := slices.Concat([]string{"--queue", s.cfg.Queue, "--handler", mode, "--"}, s.cfg.Program)
		for i := range s.cfg.Workers {
			all = append(all, service{fmt.Sprint(s.cfg.Queue, "-", i+1), workerBinary, args, urls})
		}
	}
	return all
}

// keep runs a daemon until ctx ends, and restarts it when it dies. It returns
// an error if the daemon refuses its settings or never becomes ready.
func (s *Stack) keep(ctx context.Context, d service, ready chan<- struct{}) error {
	path, err := find(d.binary)
	if err != nil {
		return err
	}
	for first := true; ; first = false {
		notified, err := s.runOnce(ctx, path, d, ready, first)
		switch {
		case ctx.Err() != nil:
			return nil
		case !notified && first:
			return fmt.Errorf("%s did not start, see its last lines above: %w", d.name, err)
		}
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == command.StatusUsage {
			return fmt.Errorf("%s did not start, see its last lines above: %w", d.name, err)
		}
		s.out.say("%s ended (%v); starting it again", d.name, err)
		select {
		case <-time.After(restartPause):
		case <-ctx.Done():
			return nil
		}
	}
}

// runOnce runs a daemon to its end, or stops it when ctx ends. It reports
// whether the daemon was ready at some time.
func (s *Stack) runOnce(ctx context.Context, path string, d service, ready chan<- struct{}, first bool) (notified bool, err error) {
	notify, err := listenNotify(filepath.Join(s.dir, d.name+".notify"))
	if err != nil {
		return false, err
	}
	defer notify.close()
	log := s.out.prefixed(d.name)
	defer log.end()
	cmd := exec.Command(path, append([]string{"--admin", filepath.Join(s.dir, d.name+".admin")}, d.args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	// The URL holds a password: others may read command lines.
	cmd.Env = environment(slices.Concat(s.cfg.Env, []string{"REVQ_AMQP_URL=" + strings.Join(d.urls, ","), "NOTIFY_SOCKET=" + notify.path})...)
	began := time.Now()
	var process *proc.Process
	withTimerSlack(func() { process, err = s.group.Start(cmd) })
	if err != nil {
		return false, fmt.Errorf("start %s: %w", d.name, err)
	}
	for {
		select {
		case <-notify.ready:
			notified = true
			if s.cfg.Ready != nil {
				s.cfg.Ready(d.name, process.Pid(), time.Since(began))
			}
			if first {
				ready <- struct{}{}
			}
			first = false
		case <-process.Done():
			return notified, process.Err()
		case <-ctx.Done():
			if !notified && errors.Is(context.Cause(ctx), errLate) {
				s.out.say("%s is not ready; its status: %s", d.name, notify.lastStatus())
			}
			slow := time.AfterFunc(slowStop, func() { s.out.say("waiting for %s to stop; its status: %s", d.name, notify.lastStatus()) })
			defer slow.Stop()
			err := process.Stop(stopGrace)
			if errors.Is(err, proc.ErrKilled) {
				s.out.say("%s did not stop within %v and was killed; its last status: %s", d.name, stopGrace, notify.lastStatus())
			}
			return notified, err
		}
	}
}

// handlerVariables say what program handles a worker's tasks. They are not
// passed on: there are two kinds of workers, and neither could start with what
// is meant for the other.
var handlerVariables = []string{"REVQ_EXEC", "REVQ_HANDLER"}

// ignoredHandler names the handlerVariables that are set; "" for none.
func ignoredHandler() string {
	var set []string
	for _, name := range handlerVariables {
		if os.Getenv(name) != "" {
			set = append(set, name)
		}
	}
	return strings.Join(set, " and ")
}

// environment returns this program's variables and some more, without those
// that would contradict how the daemons are started.
func environment(add ...string) []string {
	var env []string
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		switch name {
		case "REVQ_SITES", "REVQ_LISTEN", "REVQ_QUEUE", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "JOURNAL_STREAM":
		default:
			if !slices.Contains(handlerVariables, name) {
				env = append(env, v)
			}
		}
	}
	return append(env, add...)
}

// find returns the path of one of revq's daemons: in this program's directory,
// or else in PATH.
func find(binary string) (string, error) {
	if self, err := os.Executable(); err == nil {
		if path, err := exec.LookPath(filepath.Join(filepath.Dir(self), binary)); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath(binary)
	if err != nil {
		return "", fmt.Errorf("%s is neither beside this program nor in PATH: build all of revq with `go build -o bin/ ./cmd/...` and run bin/revq", binary)
	}
	return path, nil
}

// A broker is the RabbitMQ that the stack uses.
type broker struct {
	urls []string
	node *node.Node // nil if it is not a private one
	out  *output
}

func (s *Stack) startBroker(ctx context.Context, server string) (*broker, error) {
	if len(s.cfg.URLs) > 0 {
		return &broker{urls: s.cfg.URLs, out: s.out}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, brokerStart)
	defer cancel()
	began := time.Now()
	s.out.say("starting a private RabbitMQ (%s), which takes some seconds", server)
	done := make(chan struct{})
	defer close(done)
	go func() {
		for ticker := time.NewTicker(5 * time.Second); ; {
			select {
			case <-ticker.C:
				s.out.say("still starting, %v by now", time.Since(began).Round(time.Second))
			case <-done:
				ticker.Stop()
				return
			}
		}
	}()
	n, err := node.Start(ctx, s.group, node.Config{Server: server, Dir: filepath.Join(s.dir, "rabbitmq")})
	if err != nil {
		return nil, err
	}
	s.out.say("RabbitMQ is up after %v", time.Since(began).Round(100*time.Millisecond))
	return &broker{urls: []string{n.URL()}, node: n, out: s.out}, nil
}

// keep restarts a private broker when it dies.
func (b *broker) keep(ctx context.Context) error {
	for b.node != nil {
		select {
		case <-ctx.Done():
			return nil
		case <-b.node.Done():
		}
		b.out.say("RabbitMQ ended; starting it again")
		restart, cancel := context.WithTimeout(ctx, brokerStart)
		err := b.node.Restart(restart)
		cancel()
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("start RabbitMQ again: %w", err)
		}
	}
	return nil
}

func (b *broker) stop() {
	if b.node == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), brokerStop)
	defer cancel()
	if err := b.node.Stop(ctx); err != nil {
		b.out.say("RabbitMQ did not stop in order: %v", err)
	}
}
