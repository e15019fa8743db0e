// Package node runs a private RabbitMQ node, for `revq up` and `revq bench`.
// What only tests do with one is in package rabbittest.
//
// A node keeps its files in one directory and changes nothing outside of it:
// not /etc/rabbitmq, /var or the user's home. It leaves no epmd daemon. It
// listens on the loopback interface only, has its own cookie and password, and
// ends with the program ([proc.Group]). It needs no privileges.
package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/proc"
)

const (
	user = "revq"

	// Name is the node's name. It can be the same for all nodes, because each has its own epmd. It
	// is part of the path of the data, so it must stay the same for a
	// directory.
	Name = "revq@localhost"

	pollEvery = 20 * time.Millisecond // while waiting for a port to answer; a refused dial costs microseconds
)

// Config says what node to run.
type Config struct {
	// Server is the path of the rabbitmq-server script. Default: what [Find]
	// returns.
	Server string

	// Dir holds all files of the node: data, logs, configuration, cookie,
	// password. It is created if it is missing, readable by its owner only. A
	// node that is started again in it finds its data. Required.
	Dir string

	// Port is the AMQP port on 127.0.0.1. Default 0: a free one.
	Port int

	// Log receives the server's log, as does the file rabbitmq.log in Dir.
	// Default: the file only.
	Log io.Writer

	// Extra are further lines of rabbitmq.conf, such as "consumer_timeout =
	// 5000", with which tests shorten the broker's timeouts. They override the
	// node's own lines.
	Extra []string
}

// Settings are those of RabbitMQ in advanced.config, the same as in
// systemd/README.md: after how many milliseconds a queue that dead-letters at
// least once, and knew no queue to send a message on to, tries again. By default
// these are 3 minutes, and a node that starts has queues before it has their
// bindings.
const Settings = "{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 2000}]}"

// A Node is a private RabbitMQ node. Its methods may be called from several
// goroutines, but only one at a time may call Stop, Kill and Restart.
type Node struct {
	cfg      Config
	group    *proc.Group
	epmd     string // path
	epmdPort int
	distPort int
	password string

	mu     sync.Mutex
	server *proc.Process
	log    *excerpt
	pid    int  // of beam, the Erlang virtual machine
	asked  bool // Stop or Kill was called, so the server's end is no error
}

// Start starts a node and waits until it accepts a login, which takes seconds;
// ctx limits the time. If it fails, it leaves nothing running.
func Start(ctx context.Context, group *proc.Group, cfg Config) (*Node, error) {
	n := &Node{cfg: cfg, group: group}
	if err := n.prepare(ctx); err != nil {
		return nil, fmt.Errorf("prepare RabbitMQ: %w", err)
	}
	if err := n.startEpmd(ctx); err != nil {
		return nil, fmt.Errorf("start RabbitMQ: %w", err)
	}
	if err := n.start(ctx); err != nil {
		return nil, err
	}
	return n, nil
}

// prepare chooses ports and writes the files that the server reads.
func (n *Node) prepare(ctx context.Context) (err error) {
	if n.cfg.Server == "" {
		if n.cfg.Server, err = Find(); err != nil {
			return err
		}
	}
	if _, err := exec.LookPath(n.cfg.Server); err != nil {
		return fmt.Errorf("server script: %w", err)
	}
	if n.cfg.Dir == "" {
		return errors.New("no directory given")
	}
	if n.cfg.Dir, err = filepath.Abs(n.cfg.Dir); err != nil {
		return err
	}
	for _, dir := range []string{"", "home", "data", "log"} {
		if err := os.MkdirAll(n.path(dir), 0o700); err != nil {
			return err
		}
	}
	if n.cfg.Port != 0 && !isFree(n.cfg.Port) {
		return fmt.Errorf("port %d is in use by another program: stop that, or choose another port", n.cfg.Port)
	}
	ports := []*int{&n.cfg.Port, &n.epmdPort, &n.distPort}
	for i, port := range ports {
		for *port == 0 || slices.ContainsFunc(ports[:i], func(other *int) bool { return *other == *port }) {
			if *port, err = freePort(); err != nil {
				return err
			}
		}
	}
	if n.password, err = n.secret("password", 0o600); err != nil {
		return err
	}
	if _, err := n.secret("home/.erlang.cookie", 0o400); err != nil { // Erlang insists on the mode
		return err
	}
	conf := append([]string{
		fmt.Sprintf("listeners.tcp.1 = 127.0.0.1:%d", n.cfg.Port),
		"default_user = " + user, // created with an empty data directory, in place of guest
		"default_pass = " + n.password,
		"default_user_tags.administrator = true",
	}, n.cfg.Extra...)
	for name, content := range map[string]string{
		"rabbitmq.conf":   strings.Join(conf, "\n") + "\n",
		"advanced.config": "[" + Settings + "].\n",
		"enabled_plugins": "[].\n",
		"env.conf":        "",
	} {
		if err := os.WriteFile(n.path(name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	if n.epmd, err = n.Tool(ctx, "epmd"); err != nil {
		return fmt.Errorf("%w: install all of Erlang (Debian: erlang-base)", err)
	}
	return nil
}

// secret returns the content of a file, which it creates with random content if
// it is missing.
func (n *Node) secret(name string, mode os.FileMode) (string, error) {
	content, err := os.ReadFile(n.path(name))
	if errors.Is(err, os.ErrNotExist) {
		content = []byte(rand.Text())
		err = os.WriteFile(n.path(name), content, mode)
	}
	return string(content), err
}

func (n *Node) path(name string) string { return filepath.Join(n.cfg.Dir, name) }

// Env returns the whole environment of the server and its tools. It has none of
// this program's variables that would change their behaviour (RABBITMQ_*,
// ERL_*, NOTIFY_SOCKET).
func (n *Node) Env() []string {
	env := []string{
		"HOME=" + n.path("home"),
		"RABBITMQ_NODENAME=" + Name,
		"RABBITMQ_DIST_PORT=" + strconv.Itoa(n.distPort),
		"RABBITMQ_MNESIA_BASE=" + n.path("data"), // quorum, stream and feature flag files default to directories below it
		"RABBITMQ_LOG_BASE=" + n.path("log"),
		"RABBITMQ_LOGS=-", // to standard output, which this program reads
		"RABBITMQ_PID_FILE=" + n.path("pid"),
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + n.path("enabled_plugins"),
		"RABBITMQ_CONF_ENV_FILE=" + n.path("env.conf"),
		"RABBITMQ_CONFIG_FILE=" + n.path("rabbitmq.conf"),
		"RABBITMQ_CONFIG_FILES=" + n.path("conf.d"), // does not exist
		"RABBITMQ_ADVANCED_CONFIG_FILE=" + n.path("advanced.config"),
		"RABBITMQ_GENERATED_CONFIG_DIR=" + n.path("data"),
		// Several nodes that bind their schedulers to cores would all choose
		// the same ones.
		"RABBITMQ_SCHEDULER_BIND_TYPE=u",
		// The script splits this at blanks.
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}",
		"RABBITMQ_CTL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}",
		// With this, the script becomes the Erlang virtual machine, as under
		// systemd. Without it, a shell remains as the parent; killed with
		// SIGKILL, it would leave the virtual machine running. On SIGTERM, the
		// virtual machine itself shuts down in an orderly way.
		"RUNNING_UNDER_SYSTEMD=true",
		"ERL_EPMD_ADDRESS=127.0.0.1",
		"ERL_EPMD_PORT=" + strconv.Itoa(n.epmdPort),
		// Otherwise Erlang would start a missing epmd as a daemon that never
		// ends.
		"ERL_FLAGS=-start_epmd false",
		"ERL_CRASH_DUMP_SECONDS=0", // no dump of the heap, which can be large
	}
	for _, name := range []string{"PATH", "LANG", "LC_ALL", "LOCALE_ARCHIVE", "TZ", "TMPDIR"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// startEpmd starts Erlang's name server in the foreground, on its own port, and
// waits until it answers.
func (n *Node) startEpmd(ctx context.Context) error {
	log := new(excerpt)
	cmd := exec.Command(n.epmd, "-port", strconv.Itoa(n.epmdPort), "-address", "127.0.0.1")
	cmd.Dir, cmd.Env = n.cfg.Dir, n.Env()
	cmd.Stdout, cmd.Stderr = log, log
	epmd, err := n.group.Start(cmd)
	if err != nil {
		return err
	}
	err = poll(ctx, epmd.Done(), func() error {
		conn, err := net.Dial("tcp", addr(n.epmdPort))
		if err == nil {
			conn.Close()
		}
		return err
	})
	if err != nil {
		epmd.Kill()
		return fmt.Errorf("epmd on port %d: %w%s", n.epmdPort, err, log)
	}
	return nil
}

// start starts the server and waits until it accepts a login.
func (n *Node) start(ctx context.Context) error {
	logFile, err := os.OpenFile(n.path("rabbitmq.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start RabbitMQ: %w", err)
	}
	log := new(excerpt)
	out := io.MultiWriter(logFile, log)
	if n.cfg.Log != nil {
		out = io.MultiWriter(logFile, log, n.cfg.Log)
	}
	cmd := exec.Command(n.cfg.Server)
	cmd.Dir, cmd.Env = n.cfg.Dir, n.Env()
	cmd.Stdout, cmd.Stderr = out, out
	server, err := n.group.Start(cmd)
	if err != nil {
		logFile.Close()
		return fmt.Errorf("start RabbitMQ: %w", err)
	}
	go func() {
		<-server.Done()
		logFile.Close()
	}()
	n.mu.Lock()
	n.server, n.log, n.pid, n.asked = server, log, server.Pid(), false
	n.mu.Unlock()

	if err := poll(ctx, server.Done(), n.login); err != nil {
		server.Kill()
		<-server.Done()
		return fmt.Errorf("start RabbitMQ in %s: %w; from its log:%s\nfull log: %s",
			n.cfg.Dir, err, log, n.path("rabbitmq.log"))
	}
	// The server writes its own process id, which differs from the child's if a
	// wrapper remains as its parent.
	if content, err := os.ReadFile(n.path("pid")); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(content))); err == nil {
			n.mu.Lock()
			n.pid = pid
			n.mu.Unlock()
		}
	}
	return nil
}

// login opens an AMQP connection and closes it. The port accepts connections
// before users can log in.
func (n *Node) login() error {
	conn, err := amqp.DialConfig(n.URL(), amqp.Config{Dial: amqp.DefaultDial(5 * time.Second)})
	if err == nil {
		err = conn.Close()
	}
	return err
}

// URL returns the AMQP URL of the node with its user and password, for the
// virtual host "/". That user, an administrator, is the only one.
func (n *Node) URL() string {
	u := url.URL{Scheme: "amqp", User: url.UserPassword(user, n.password), Host: addr(n.cfg.Port)}
	return u.String() + "/" + url.PathEscape("/")
}

// Pid returns the process id of the Erlang virtual machine that runs the
// server.
func (n *Node) Pid() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pid
}

// Done is closed when the server that was started last has ended. [Node.Err]
// tells whether that was asked for.
func (n *Node) Done() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.server.Done()
}

// Err returns an error with an excerpt of the log if the server has ended
// although neither Stop nor Kill was called, and nil otherwise.
func (n *Node) Err() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-n.server.Done():
	default:
		return nil
	}
	if n.asked {
		return nil
	}
	return fmt.Errorf("RabbitMQ has ended (%w); from its log:%s\nfull log: %s",
		status(n.server), n.log, n.path("rabbitmq.log"))
}

// Stop shuts the server down in an orderly way, which takes a second or two. If
// ctx ends first, it kills the server and returns an error.
func (n *Node) Stop(ctx context.Context) error {
	server, pid := n.ask()
	select {
	case <-server.Done():
		return nil
	default:
	}
	syscall.Kill(pid, syscall.SIGTERM)
	syscall.Kill(pid, syscall.SIGCONT) // a suspended process does not handle SIGTERM
	select {
	case <-server.Done():
		return nil
	case <-ctx.Done():
		server.Kill()
		<-server.Done()
		return fmt.Errorf("stop RabbitMQ: killed: %w", context.Cause(ctx))
	}
}

// Kill ends the server with SIGKILL and waits for its end. RabbitMQ writes a
// new quorum queue to disk half a second after its declaration. If it is killed
// before that, the queue never answers after a restart.
func (n *Node) Kill() {
	server, _ := n.ask()
	server.Kill()
	<-server.Done()
}

// ask marks the server's end as asked for.
func (n *Node) ask() (server *proc.Process, pid int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = true
	return n.server, n.pid
}

// Restart starts the server again with the same data, port, user and password,
// and waits until it accepts a login. A server that still runs is stopped
// first.
func (n *Node) Restart(ctx context.Context) error {
	if err := n.Stop(ctx); err != nil {
		return err
	}
	return n.start(ctx)
}

// status returns how a process ended.
func status(p *proc.Process) error {
	if err := p.Err(); err != nil {
		return err
	}
	return errors.New("exit status 0")
}

// poll calls ready until it succeeds, ctx ends or done is closed.
func poll(ctx context.Context, done <-chan struct{}, ready func() error) error {
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-ticker.C:
		case <-done:
			return errors.New("the process has ended")
		case <-ctx.Done():
			return fmt.Errorf("%w (last try: %w)", context.Cause(ctx), err)
		}
	}
}
