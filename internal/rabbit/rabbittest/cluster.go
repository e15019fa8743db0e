//go:build linux

package rabbittest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/proc"
	"github.com/revq/revq/internal/rabbit/node"
)

// A Cluster is RabbitMQ on several hosts, each in namespaces of its own (network,
// mounts, host name). Two networks connect the hosts: one is for the nodes among
// themselves, the other one for clients, which are the processes of the test.
// Either link of a host can be cut, so that packets are lost without a word.
//
// Everything lives as long as the processes that hold the namespaces, which
// end with the test run, however it ends.
type Cluster struct {
	Hosts []*Host

	t      testing.TB
	group  *proc.Group
	dir    string
	root   string // of the file system with RabbitMQ; "" for this machine's
	server string // the rabbitmq-server script, within root
	wires  int    // the process that holds the namespace of the networks
}

// clusterTimeout is startTimeout where several nodes start at the same time.
const clusterTimeout = 3 * startTimeout

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

// clusterUser may do anything in clusterVhost.
const (
	clusterUser  = "revq"
	clusterVhost = "test"
)

// ClusterConfig says what cluster to start.
type ClusterConfig struct {
	// Hosts is the number of hosts, each with one node.
	Hosts int

	// Root is the root of a file system with another release of RabbitMQ, as
	// debootstrap makes it. Default: the RabbitMQ of this machine.
	Root string

	// Lines are further lines of rabbitmq.conf.
	Lines []string

	// Advanced is the content of advanced.config, an Erlang term. Default: no
	// settings.
	Advanced string
}

// The networks. That of the nodes is seen by nobody else. That of the clients is
// in the range for tests of networks (RFC 2544), which nobody uses.
const (
	peersNetwork  = "10.11.12"
	clientsNumber = 254 // the last byte of the test's own address
)

// StartCluster starts a cluster, whose nodes have joined when it returns. The
// test is skipped where that is not possible: it takes root, and the programs
// ip, unshare and nsenter.
func StartCluster(t testing.TB, cfg ClusterConfig) *Cluster {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces take root")
	}
	for _, name := range []string{"ip", "unshare", "nsenter"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip(err)
		}
	}
	if out, err := exec.Command("unshare", "--net", "--uts", "--mount", "sh", "-c",
		"ip link add name bridge0 type bridge && ip link add name veth1 type veth peer name veth2").CombinedOutput(); err != nil {
		t.Skipf("this machine permits no networks of one's own: %v\n%s", err, out)
	}
	server, err := node.Find()
	check(t, err)
	dir, err := os.MkdirTemp("", "revq-cluster-")
	if err != nil {
		t.Fatal(err)
	}
	group, err := proc.NewGroup(dir)
	if err != nil {
		t.Fatal(errors.Join(err, os.RemoveAll(dir)))
	}
	c := &Cluster{t: t, group: group, dir: dir, root: cfg.Root, server: server}
	t.Cleanup(func() {
		if t.Failed() {
			for _, h := range c.Hosts {
				t.Logf("the end of the log of %s:\n%s", h.Name, tail(h.path("log"), 4<<10))
			}
		}
		if err := group.Close(); err != nil {
			t.Error(err)
		}
	})
	c.connect(cfg)
	var starting sync.WaitGroup
	for _, h := range c.Hosts {
		starting.Go(func() { h.Start() })
	}
	starting.Wait()
	if t.Failed() {
		t.FailNow()
	}
	c.Formed()
	return c
}

// Formed waits until each node sees all others and accepts a login.
func (c *Cluster) Formed() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), clusterTimeout)
	defer cancel()
	await.Nil(c.t, "a member", func() error { return c.formed(ctx) })
}

// IsFormed reports whether each node sees all others and accepts a login. After
// a partition, a node may need half a minute for that.
func (c *Cluster) IsFormed() bool {
	ctx, cancel := context.WithTimeout(context.Background(), clusterTimeout)
	defer cancel()
	return c.formed(ctx) == nil
}

func (c *Cluster) formed(ctx context.Context) error {
	for _, h := range c.Hosts {
		out, err := h.Eval(ctx, `length(case erlang:function_exported(rabbit_nodes, list_running, 0) of
			true -> rabbit_nodes:list_running();
			false -> rabbit_nodes:all_running()
		end)`)
		if err == nil && out != strconv.Itoa(len(c.Hosts)) {
			err = fmt.Errorf("%s sees %s nodes that run", h.Name, out)
		}
		if err == nil {
			err = h.login()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// connect makes the hosts and their networks.
func (c *Cluster) connect(cfg ClusterConfig) {
	c.t.Helper()
	third := 1 + mathrand.IntN(250) // of the clients' network: other test runs have others
	clients := fmt.Sprintf("198.18.%d", third)
	outside := fmt.Sprintf("revq%d", third)
	c.wires = c.hold("unshare", "--net", "sh", "-c", `
		for bridge in peers clients; do
			ip link add $bridge type bridge && ip link set $bridge up || exit
		done
		echo ready; exec sleep infinity`)
	c.command("ip", "link", "add", outside, "type", "veth", "peer", "name", "test", "netns", strconv.Itoa(c.wires))
	c.inside(c.wires, "ip", "link", "set", "dev", "test", "master", "clients", "up")
	c.command("ip", "addr", "add", fmt.Sprintf("%s.%d/24", clients, clientsNumber), "dev", outside)
	c.command("ip", "link", "set", outside, "up")

	var names strings.Builder
	for i := 1; i <= cfg.Hosts; i++ {
		fmt.Fprintf(&names, "%s.%d host%d\n", peersNetwork, i, i)
	}
	if err := os.WriteFile(filepath.Join(c.dir, "hosts"), []byte("127.0.0.1 localhost\n"+names.String()), 0o600); err != nil {
		c.t.Fatal(err)
	}
	cookie := rand.Text()
	for i := 1; i <= cfg.Hosts; i++ {
		h := &Host{Name: fmt.Sprintf("host%d", i), c: c, number: i, address: fmt.Sprintf("%s.%d", clients, i)}
		h.holder = c.hold("unshare", "--net", "--uts", "--mount", "sh", "-c", `
			hostname "$1" && ip link set lo up && mount --bind "$2/hosts" "$3/etc/hosts" || exit
			if [ -n "$3" ]; then mount --bind "$2" "$3/mnt" && mount -t proc proc "$3/proc" || exit; fi
			echo ready; exec sleep infinity`, "sh", h.Name, c.dir, c.root)
		for _, network := range []string{"peers", "clients"} {
			port := fmt.Sprintf("%s%d", network, i)
			c.inside(c.wires, "ip", "link", "add", port, "type", "veth", "peer", "name", network, "netns", strconv.Itoa(h.holder))
			c.inside(c.wires, "ip", "link", "set", port, "master", network, "up")
			c.inside(h.holder, "ip", "link", "set", network, "up")
		}
		c.inside(h.holder, "ip", "addr", "add", fmt.Sprintf("%s.%d/24", peersNetwork, i), "dev", "peers")
		// Hosts reach the clients over this network, and not each other.
		c.inside(h.holder, "ip", "addr", "add", h.address+"/32", "dev", "clients")
		c.inside(h.holder, "ip", "route", "add", fmt.Sprintf("%s.%d/32", clients, clientsNumber), "dev", "clients")
		h.prepare(cfg, cookie)
		c.Hosts = append(c.Hosts, h)
	}
}

// hold starts a process whose namespaces are to be kept, waits until it says
// that it is ready, and returns its number.
func (c *Cluster) hold(name string, args ...string) int {
	c.t.Helper()
	said := new(Output)
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = said, said
	p, err := c.group.Start(cmd)
	if err != nil {
		c.t.Fatal(err)
	}
	said.Says(c.t, "ready")
	return p.Pid()
}

// command runs a program that must succeed.
func (c *Cluster) command(name string, args ...string) {
	c.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		c.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// inside is command in the network namespace that a process holds.
func (c *Cluster) inside(holder int, args ...string) {
	c.t.Helper()
	c.command("nsenter", append([]string{"--target", strconv.Itoa(holder), "--net"}, args...)...)
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

// URL returns the AMQP URLs of all nodes, separated with commas.
func (c *Cluster) URL() string {
	var urls []string
	for _, h := range c.Hosts {
		urls = append(urls, h.URL())
	}
	return strings.Join(urls, ",")
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
	ctx, cancel := context.WithTimeout(context.Background(), clusterTimeout)
	defer cancel()
	out, err := h.run(ctx, "", append([]string{filepath.Join(filepath.Dir(h.c.server), name)}, args...)...)
	if err != nil {
		h.c.t.Fatal(err)
	}
	return out
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

// Wipe removes the data of the node, which must have ended.
func (h *Host) Wipe() {
	h.c.t.Helper()
	if err := errors.Join(os.RemoveAll(h.path("data")), os.Mkdir(h.path("data"), 0o700)); err != nil {
		h.c.t.Fatal(err)
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

// tail returns the end of a file.
func tail(path string, limit int) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(content[max(0, len(content)-limit):])
}
