//go:build linux

package rabbittest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/proc"
)

// A Host has one node of a Cluster.
type Host struct {
	Name string // of the host; its node is rabbit@Name

	c       *Cluster
	number  int // from 1
	address string
	holder  int // the process that holds its namespaces

	mu     sync.Mutex
	server *proc.Process
}

// prepare writes the files that the node reads.
func (h *Host) prepare(cfg ClusterConfig, cookie string) {
	h.c.t.Helper()
	conf := append([]string{
		"listeners.tcp.1 = 0.0.0.0:5672",
		"default_user = " + clusterUser,
		"default_pass = secret",
		"default_vhost = " + clusterVhost,
		"default_user_tags.administrator = true",
		"loopback_users = none",
		"cluster_formation.peer_discovery_backend = classic_config",
	}, cfg.Lines...)
	for i := 1; i <= cfg.Hosts; i++ {
		conf = append(conf, fmt.Sprintf("cluster_formation.classic_config.nodes.%d = rabbit@host%d", i, i))
	}
	advanced := cfg.Advanced
	if advanced == "" {
		advanced = "[]"
	}
	for _, dir := range []string{"", "home", "data"} {
		if err := os.MkdirAll(h.path(dir), 0o700); err != nil {
			h.c.t.Fatal(err)
		}
	}
	for name, content := range map[string]string{
		"home/.erlang.cookie": cookie,
		"rabbitmq.conf":       strings.Join(conf, "\n") + "\n",
		"advanced.config":     advanced + ".\n",
		"enabled_plugins":     "[].\n",
		"env.conf":            "",
	} {
		if err := os.WriteFile(h.path(name), []byte(content), 0o400); err != nil {
			h.c.t.Fatal(err)
		}
	}
}

// path is where the test sees a file of the node, and seen is where the node
// sees it.
func (h *Host) path(name string) string { return filepath.Join(h.c.dir, h.Name, name) }
func (h *Host) seen(name string) string {
	if h.c.root == "" {
		return h.path(name)
	}
	return filepath.Join("/mnt", h.Name, name)
}

// on returns a command that runs on the host, beside the node.
func (h *Host) on(ctx context.Context, args ...string) *exec.Cmd {
	enter := []string{"--target", strconv.Itoa(h.holder), "--net", "--uts", "--mount"}
	if h.c.root != "" {
		enter = append(enter, "chroot", h.c.root) // its mounts are those of the namespace
	}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	cmd.Env = []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=" + h.seen("home"),
		"RABBITMQ_NODENAME=rabbit@" + h.Name,
		"RABBITMQ_MNESIA_BASE=" + h.seen("data"), "RABBITMQ_LOG_BASE=" + h.seen("data"), "RABBITMQ_LOGS=-",
		"RABBITMQ_PID_FILE=" + h.seen("data/pid"),
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + h.seen("enabled_plugins"), "RABBITMQ_CONF_ENV_FILE=" + h.seen("env.conf"),
		"RABBITMQ_CONFIG_FILE=" + h.seen("rabbitmq.conf"), "RABBITMQ_CONFIG_FILES=" + h.seen("conf.d"),
		"RABBITMQ_ADVANCED_CONFIG_FILE=" + h.seen("advanced.config"), "RABBITMQ_GENERATED_CONFIG_DIR=" + h.seen("data"),
		// Several nodes share the machine's cores: none may spin while it waits.
		"RABBITMQ_SCHEDULER_BIND_TYPE=u", "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=+sbwt none +sbwtdcpu none +sbwtdio none",
		"RUNNING_UNDER_SYSTEMD=true", // the script becomes the server
		"ERL_FLAGS=-start_epmd false", "ERL_CRASH_DUMP_SECONDS=0",
	}
	return cmd
}

// URL returns the node's AMQP URL.
func (h *Host) URL() string {
	return fmt.Sprintf("amqp://%s:secret@%s:5672/%s", clusterUser, h.address, clusterVhost)
}

// Start starts the node, and waits until it accepts a login.
func (h *Host) Start() {
	t := h.c.t
	t.Helper()
	log, err := os.OpenFile(h.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Error(err)
		return
	}
	defer log.Close()
	// Erlang's name server; it ends at once if the host has one already.
	epmd := h.on(context.Background(), "epmd")
	if _, err := h.c.group.Start(epmd); err != nil {
		t.Error(err)
		return
	}
	cmd := h.on(context.Background(), h.c.server)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	server, err := h.c.group.Start(cmd)
	if err != nil {
		t.Error(err)
		return
	}
	h.mu.Lock()
	h.server = server
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), clusterTimeout)
	defer cancel()
	h.await(ctx, "accepts a login")
}

// login returns an error if the node does not accept a login.
func (h *Host) login() error {
	conn, err := amqp.DialConfig(h.URL(), amqp.Config{Dial: amqp.DefaultDial(2 * time.Second)})
	if err == nil {
		conn.Close()
	}
	return err
}

// await waits until the node accepts a login.
func (h *Host) await(ctx context.Context, what string) {
	h.c.t.Helper()
	for {
		err := h.login()
		if err == nil {
			return
		}
		select {
		case <-h.process().Done():
			h.c.t.Errorf("%s has ended; its log:\n%s", h.Name, tail(h.path("log"), 4<<10))
			return
		case <-ctx.Done():
			h.c.t.Errorf("%s: not %s: %v", h.Name, what, err)
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (h *Host) process() *proc.Process {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.server
}

// Tool runs a program of RabbitMQ beside the node, and returns its output.
func (h *Host) Tool(name string, args ...string) string {
	h.c.t.Helper()
	out, err := h.TryTool(name, args...)
	if err != nil {
		h.c.t.Fatal(err)
	}
	return out
}

// TryTool is Tool for what may fail.
func (h *Host) TryTool(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), clusterTimeout)
	defer cancel()
	return h.run(ctx, "", append([]string{filepath.Join(filepath.Dir(h.c.server), name)}, args...)...)
}

// Eval evaluates an Erlang expression in the node.
func (h *Host) Eval(ctx context.Context, erlang string) (string, error) {
	out, err := h.run(ctx, erlang+".\n", "erl_call", "-sname", "rabbit@"+h.Name, "-R", "-e")
	if err != nil {
		return "", err
	}
	return evaluated(erlang, out)
}

func (h *Host) run(ctx context.Context, input string, args ...string) (string, error) {
	cmd := h.on(ctx, args...)
	out, err := output(cmd, input)
	if err != nil {
		return "", fmt.Errorf("%s on %s: %w", strings.Join(args, " "), h.Name, err)
	}
	return out, nil
}

// Kill kills the node with SIGKILL.
func (h *Host) Kill() { h.end(syscall.SIGKILL) }

// Stop shuts the node down.
func (h *Host) Stop() { h.end(syscall.SIGTERM) }

func (h *Host) end(signal syscall.Signal) {
	h.c.t.Helper()
	p := h.process()
	h.signal(signal)
	select {
	case <-p.Done():
	case <-time.After(await.Patience):
		h.c.t.Errorf("%s did not end within %v", h.Name, await.Patience)
		p.Kill()
		<-p.Done()
	}
}

// Suspend stops the node's process: its connections stay open, and nothing
// answers.
func (h *Host) Suspend() { h.signal(syscall.SIGSTOP) }

// Resume lets a suspended node go on.
func (h *Host) Resume() { h.signal(syscall.SIGCONT) }

func (h *Host) signal(signal syscall.Signal) {
	h.c.t.Helper()
	if err := syscall.Kill(h.process().Pid(), signal); err != nil {
		h.c.t.Errorf("signal %s: %v", h.Name, err)
	}
}

// A Link is what connects a host with others.
type Link string

// The links of a host.
const (
	Peers   Link = "peers"   // to the other hosts
	Clients Link = "clients" // to the test
)

// Cut makes links of the host lose all packets, until Heal.
func (h *Host) Cut(links ...Link) { h.set("down", links) }

// Heal lets links of the host work again.
func (h *Host) Heal(links ...Link) { h.set("up", links) }

func (h *Host) set(state string, links []Link) {
	h.c.t.Helper()
	for _, l := range links {
		h.c.inside(h.c.wires, "ip", "link", "set", fmt.Sprintf("%s%d", l, h.number), state)
	}
}

// Log returns the log of the node, or why there is none.
func (h *Host) Log() string {
	content, err := os.ReadFile(h.path("log"))
	if err != nil {
		return err.Error()
	}
	return string(content)
}

// Wipe removes the data of the node, which must have ended.
func (h *Host) Wipe() {
	h.c.t.Helper()
	if err := errors.Join(os.RemoveAll(h.path("data")), os.Mkdir(h.path("data"), 0o700)); err != nil {
		h.c.t.Fatal(err)
	}
}

// Join has a node that runs, without data that is needed, join the cluster of
// another one. A node that does not reach the others when it first starts becomes
// a cluster of its own. Before RabbitMQ 3.13, so does one whose directory is not
// empty any more, because another node has begun a replica of a stream there
// (issue 7138 of rabbitmq-server).
func (h *Host) Join(other *Host) {
	h.c.t.Helper()
	for _, args := range [][]string{{"stop_app"}, {"reset"}, {"join_cluster", "rabbit@" + other.Name}, {"start_app"}} {
		h.Tool("rabbitmqctl", args...)
	}
}

// Leader returns the host of the leader of a queue or stream, as h knows it.
func (h *Host) Leader(ctx context.Context, queue string) (*Host, error) {
	out, err := h.Eval(ctx, fmt.Sprintf(`{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(%s, queue, %s)),
		case amqqueue:get_pid(Q) of {_, Node} -> Node; Pid -> node(Pid) end`, binary(clusterVhost), binary(queue)))
	if err != nil {
		return nil, err
	}
	for _, host := range h.c.Hosts {
		if strings.Trim(out, "'") == "rabbit@"+host.Name {
			return host, nil
		}
	}
	return nil, fmt.Errorf("the leader of %s is on %s", queue, out)
}
