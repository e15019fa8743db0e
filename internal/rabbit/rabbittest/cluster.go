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
	"testing"

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
	c.t.Cleanup(func() {
		if log := said.String(); !strings.Contains(log, "ready") {
			c.t.Logf("%s said: %s", name, log)
		}
	})
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

// URL returns the AMQP URLs of all nodes, separated with commas.
func (c *Cluster) URL() string {
	var urls []string
	for _, h := range c.Hosts {
		urls = append(urls, h.URL())
	}
	return strings.Join(urls, ",")
}

// tail returns the end of a file.
func tail(path string, limit int) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(content[max(0, len(content)-limit):])
}
