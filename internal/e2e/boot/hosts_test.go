//go:build linux

package boot

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
)

var bootHosts = flag.Bool("boot.hosts", false, "TestBootHosts, which boots three hosts and takes minutes")

// The hosts of systemd/README.md.
var (
	hostNames     = []string{"host1", "host2", "host3"}
	hostAddresses = []string{"192.0.2.1/24", "192.0.2.2/24", "192.0.2.3/24"}
)

const cookie = "7d2c5b0a9f4e8d1637a0c4b5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f70819\n"

// maxSilence is for how long no result may come to listeners when a host loses
// its power. Measured: 5 to 11 s, and 29 s before URLs of several hosts had
// heartbeats of 4 s. The nodes then gave tasks to workers that were gone.
const maxSilence = 20 * time.Second

// clusterPatience is the time limit for a cluster to form, and for a host to
// accept texts again after a fault. Measured: 2 to 14 s, and 2 to 5 s.
const clusterPatience = 3 * time.Minute

// A hostsTest is revq on three hosts with a RabbitMQ each.
type hostsTest struct {
	hosts []*queueTest
}

// The commands of systemd/README.md for three hosts with a RabbitMQ each, word
// for word, on three booted hosts, up to the removal. Any host loses its power,
// and so do all of them.
func TestBootHosts(t *testing.T) {
	if !*bootHosts {
		t.Skip("boots three hosts: give -boot.hosts")
	}
	root := "/"
	if *bootRelease != "" {
		root = Debian(t, *bootRelease)
	}
	var h hostsTest
	for _, host := range startLAN(t, root, hostNames, hostAddresses) {
		q := &queueTest{bootTest: &bootTest{Host: host}}
		q.copySource(t)
		h.hosts = append(h.hosts, q)
	}
	t.Logf("RabbitMQ %s", h.hosts[0].Run(t, "rabbitmqctl", "-q", "version"))
	var before []string
	for _, part := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"the documented commands make a cluster", h.brokers},
		{"what is there before revq", func(t *testing.T) { before = h.inventories(t) }},
		{"the documented commands install revq", h.install},
		{"host1 loses its power, and comes back", func(t *testing.T) { h.powerCut(t, 0) }},
		{"host3 loses its power, and comes back", func(t *testing.T) { h.powerCut(t, 2) }},
		{"an upgrade goes line by line", h.upgradeAll},
		{"RabbitMQ restarts on one host after the other", h.restart},
		{"all hosts lose their power, and come back", h.blackout},
		{"host1 is lost with its disk, and another one replaces it", h.replace},
		{"removing it leaves nothing", func(t *testing.T) { h.remove(t, before) }},
	} {
		if !t.Run(part.name, part.run) {
			break // each part begins where the one before has ended
		}
	}
	if t.Failed() {
		for _, q := range h.hosts {
			if q.leader == 0 {
				continue // it is off
			}
			t.Logf("journal of %s:\n%s\n%s", q.host(t), q.Run(t, "journalctl", "--no-pager", "--lines=200", "--output=short-precise", "--unit=revq*"),
				q.Shell(t, "tail --lines=100 /var/log/rabbitmq/rabbit@*.log; echo; echo without errors:; grep --no-filename --invert-match ' .error. ' /var/log/rabbitmq/rabbit@*.log | tail --lines=400"))
		}
	}
}

// host returns the name of the host.
func (q *queueTest) host(t *testing.T) string {
	t.Helper()
	return q.Run(t, "hostname", "--short")
}

// each runs a script of the page on all hosts at once.
func (h *hostsTest) each(t *testing.T, script string) {
	t.Helper()
	outs, errs := make([]string, len(h.hosts)), make([]error, len(h.hosts))
	var running sync.WaitGroup
	for i, q := range h.hosts {
		running.Go(func() { outs[i], errs[i] = q.installer(t, script) })
	}
	running.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("%s: %v\n%s", hostNames[i], err, outs[i])
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}

func (h *hostsTest) brokers(t *testing.T) {
	for _, q := range h.hosts {
		q.Write(t, bootSource+"/cookie", cookie)
	}
	h.each(t, documented(t, "hosts' brokers"))
	h.formed(t)
	for _, q := range h.hosts {
		got := q.Run(t, "rabbitmqctl", "-q", "eval", "{net_kernel:get_net_ticktime(), [application:get_env(A, P) || {A, P} <- [{rabbit, dead_letter_worker_publisher_confirm_timeout}, {kernel, net_setuptime}, {aten, poll_interval}, {osiris, max_segment_size_chunks}]]}.")
		if want := "{2,[{ok,2000},{ok,0.5},{ok,100},{ok,8192}]}"; got != want {
			t.Errorf("a node has the settings %s, want %s of advanced.config", got, want)
		}
	}
	if out, err := h.hosts[0].installer(t, documented(t, "hosts' guest")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// formed waits until each node sees all of them.
func (h *hostsTest) formed(t *testing.T) {
	t.Helper()
	began := time.Now()
	for _, q := range h.hosts {
		await.NilWithin(t, clusterPatience, q.host(t)+" sees all nodes", func() error {
			if !q.seesAll(t) {
				return errors.New("it does not")
			}
			return nil
		})
	}
	t.Logf("all nodes see each other after %v", time.Since(began).Round(time.Millisecond))
}

func (q *queueTest) seesAll(t *testing.T) bool {
	t.Helper()
	running, partitions, err := q.nodes(t)
	return err == nil && len(running) == len(hostNames) && partitions == 0
}

// nodes returns the names of the nodes that run, as the host's own one sees it,
// and how many partitions there are.
func (q *queueTest) nodes(t *testing.T) (running []string, partitions int, err error) {
	t.Helper()
	out, err := q.Try(t, "rabbitmqctl", "-q", "cluster_status", "--formatter", "json")
	if err != nil {
		return nil, 0, fmt.Errorf("%w\n%s", err, out)
	}
	var status struct {
		Running    []string       `json:"running_nodes"`
		Partitions map[string]any `json:"partitions"`
	}
	err = json.Unmarshal([]byte(out), &status)
	return status.Running, len(status.Partitions), err
}

// inventories returns what is on the hosts, besides the cookie.
func (h *hostsTest) inventories(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, q := range h.hosts {
		q.Run(t, "rm", "-f", bootSource+"/cookie")
		all = append(all, q.inventory(t))
	}
	return all
}

func (h *hostsTest) install(t *testing.T) {
	for _, q := range h.hosts {
		q.Write(t, bootSource+"/cookie", cookie)
	}
	h.each(t, documented(t, "hosts' revq"))
	for _, q := range h.hosts {
		q.hear(t)
	}
	h.through(t, "first", h.hosts)
	h.replicated(t)
	for _, q := range h.hosts {
		if out, err := q.Try(t, "revq", "status"); err != nil || !strings.HasPrefix(out, "well: ") {
			t.Errorf("revq status of %s: %v\n%s", q.host(t), err, out)
		}
	}
}

// replicated checks that all queues have a replica on each host.
func (h *hostsTest) replicated(t *testing.T) {
	t.Helper()
	queues := h.hosts[0].Run(t, "rabbitmqctl", "-q", "-p", "revq", "list_queues", "name", "leader", "members")
	t.Log(queues)
	for line := range strings.Lines(queues) {
		for _, name := range hostNames {
			if strings.HasPrefix(line, "revq.") && !strings.Contains(line[strings.Index(line, "["):], "rabbit@"+name) {
				t.Errorf("no replica on %s: %s", name, line)
			}
		}
	}
}

// through posts a text at each of some hosts, and waits until it is accepted
// and its result has come to listeners at all of them. It returns how long that
// took.
func (h *hostsTest) through(t *testing.T, label string, hosts []*queueTest) time.Duration {
	t.Helper()
	began := time.Now()
	var accepted time.Duration
	var noted time.Time
	var ids []string
	for _, q := range hosts {
		id := label + "-" + q.host(t)
		p := &poster{host: q.Host, site: apiSites[0]}
		await.NilWithin(t, clusterPatience, id+" is accepted", func() error {
			err := p.post(id, id)
			if err != nil && time.Since(noted) > time.Second {
				t.Logf("%s, after %v: %v", id, time.Since(began).Round(time.Millisecond), err)
				noted = time.Now()
			}
			return err
		})
		p.close()
		ids = append(ids, id)
		accepted = time.Since(began)
	}
	for _, q := range hosts {
		for _, id := range ids {
			if got, want := q.result(t, id), reversed(id); got != want {
				t.Errorf("the result of %s is %q, want %q", id, got, want)
			}
		}
	}
	t.Logf("%s: accepted by %d hosts after %v, at all listeners after %v", label, len(hosts), accepted.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	return time.Since(began)
}

func reversed(s string) string {
	b := []byte(s)
	slices.Reverse(b)
	return string(b)
}

func (h *hostsTest) powerCut(t *testing.T, i int) {
	off := h.hosts[i]
	others := slices.Concat(h.hosts[:i], h.hosts[i+1:])
	off.powerOff(t)
	if took := h.through(t, fmt.Sprintf("without-%d", i+1), others); took > maxSilence {
		t.Errorf("the last result came %v after %s lost its power, want %v at most", took, hostNames[i], maxSilence)
	}
	began := time.Now()
	powerOn(t, off.Host)
	t.Logf("%s is up after %v", hostNames[i], time.Since(began).Round(time.Millisecond))
	h.formed(t)
	t.Logf("RabbitMQ of %s was started %s times more than once", hostNames[i], off.Property(t, "rabbitmq-server", "NRestarts"))
	off.hear(t)
	h.through(t, fmt.Sprintf("with-%d-again", i+1), h.hosts)
	// From the beginning, and so also what it was not there for.
	for _, q := range others {
		id := fmt.Sprintf("without-%d-%s", i+1, q.host(t))
		if got, want := off.result(t, id), reversed(id); got != want {
			t.Errorf("%s has the result %q of %s, want %q", hostNames[i], got, id, want)
		}
	}
}

func (h *hostsTest) upgradeAll(t *testing.T) {
	h.each(t, "systemd/install install --no-broker")
	for i, line := range strings.Split(strings.TrimSpace(documented(t, "hosts' upgrade")), "\n") {
		h.each(t, line)
		h.through(t, fmt.Sprintf("upgrade-%d", i+1), h.hosts)
	}
	// Who runs the commands for one host by mistake loses nothing.
	q := h.hosts[0]
	const urls = "cat /etc/revq/*.amqp-url"
	before := q.Shell(t, urls)
	if out, err := q.installer(t, documented(t, "upgrade")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if q.Shell(t, urls) != before {
		t.Error("systemd/install install has changed the URLs of a cluster")
	}
	h.through(t, "upgrade-of-one", h.hosts)
}

func (h *hostsTest) restart(t *testing.T) {
	for i, q := range h.hosts {
		await.NilWithin(t, clusterPatience, "the others can do without "+q.host(t), func() error {
			out, err := q.Try(t, "rabbitmq-queues", "check_if_node_is_quorum_critical")
			if err != nil {
				return fmt.Errorf("%w\n%s", err, out)
			}
			return nil
		})
		q.handOver(t, hostNames[(i+1)%len(hostNames)])
		q.Run(t, "systemctl", "restart", "rabbitmq-server")
		h.formed(t)
	}
	h.through(t, "restarted", h.hosts)
}

// handOver has the node of another host lead the stream. RabbitMQ has the command
// since 3.12.
func (q *queueTest) handOver(t *testing.T, other string) {
	t.Helper()
	command := strings.ReplaceAll(documented(t, "hosts' handover"), "host2", other)
	await.Nil(t, "another node than that of "+q.host(t)+" leads the stream", func() error {
		out, err := q.installer(t, command)
		switch {
		case err != nil && strings.Contains(out, "Command 'restart_stream' not found"):
			return nil
		case err == nil && strings.Contains(out, "rabbit@"+q.host(t)):
			return errors.New(out)
		case err != nil:
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	})
}

func (h *hostsTest) blackout(t *testing.T) {
	var hosts []*Host
	for _, q := range h.hosts {
		q.powerOff(t)
		hosts = append(hosts, q.Host)
	}
	powerOn(t, hosts...) // a node waits for others, and the host for its node
	h.formed(t)
	for _, q := range h.hosts {
		q.hear(t)
	}
	h.through(t, "after-a-blackout", h.hosts)
}

// replace has a fresh host take the place of the first one.
func (h *hostsTest) replace(t *testing.T) {
	lost, left := h.hosts[0], h.hosts[1]
	run := func(q *queueTest, command string) {
		t.Helper()
		out, err := q.installer(t, documented(t, command))
		if err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
		t.Logf("%s:\n%s", command, out)
	}
	old := isOld(left.Run(t, "rabbitmqctl", "-q", "version"))
	lost.powerOff(t)
	lost.newDisk(t)
	await.NilWithin(t, clusterPatience, "the others have given up the node of host1", func() error {
		running, _, err := left.nodes(t)
		if err == nil && slices.Contains(running, "rabbit@host1") {
			err = fmt.Errorf("%q run", running)
		}
		return err
	})
	run(left, "hosts' loss")
	if old {
		run(left, "hosts' loss before 3.13")
	}
	h.through(t, "one-is-lost", h.hosts[1:])
	powerOn(t, lost.Host)
	lost.copySource(t)
	lost.Write(t, bootSource+"/cookie", left.Shell(t, "cat /var/lib/rabbitmq/.erlang.cookie")+"\n")
	run(lost, "hosts' brokers")
	if running, _, err := lost.nodes(t); err != nil {
		t.Fatal(err)
	} else if len(running) == 1 {
		run(lost, "hosts' join")
	}
	run(lost, "hosts' revq")
	h.formed(t)
	if old {
		run(left, "hosts' replacement before 3.13")
	}
	run(left, "hosts' replacement")
	lost.hear(t)
	h.through(t, "one-is-new", h.hosts)
	if got, want := lost.result(t, "one-is-lost-host2"), reversed("one-is-lost-host2"); got != want {
		t.Errorf("the new host has the result %q, want %q", got, want)
	}
	// RabbitMQ looks each 30 s whether the coordinator of streams is on all nodes.
	took := await.NilWithin(t, 2*time.Minute, "all nodes keep the queues", func() error {
		said := left.Shell(t, `REVQ_AMQP_URL=$(cat /etc/revq/setup.amqp-url) revq setup 2>&1`)
		if !strings.Contains(said, "everything exists already") || strings.Contains(said, "keep the queues") {
			return errors.New(said)
		}
		return nil
	})
	t.Logf("all nodes keep the queues after %v", took.Round(time.Second))
	h.replicated(t)
}

// isOld reports whether a RabbitMQ, such as 3.10.8, does not tell the coordinator
// of streams that a node was forgotten.
func isOld(version string) bool {
	var major, minor int
	fmt.Sscanf(version, "%d.%d", &major, &minor)
	return major < 3 || major == 3 && minor < 13
}

func (h *hostsTest) remove(t *testing.T, before []string) {
	end := documented(t, "hosts' end")
	if out, err := h.hosts[1].installer(t, end); err == nil || !strings.Contains(out, "revq is connected") {
		t.Errorf("while revq runs: %v, want a refusal\n%s", err, out)
	}
	out, err := h.hosts[0].installer(t, "systemd/install uninstall")
	if err != nil || !strings.Contains(out, "stays for other hosts") {
		t.Fatalf("uninstall: %v, want to be told of the broker\n%s", err, out)
	}
	h.through(t, "two-are-left", h.hosts[1:])
	for _, q := range h.hosts[1:] {
		q.Run(t, "systemctl", "stop", "ear", "revq.target")
	}
	var refused string
	await.True(t, "the sessions of the daemons are over", func() bool {
		refused, err = h.hosts[1].installer(t, end)
		return err == nil || !strings.Contains(refused, "revq is connected")
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, refused)
	}
	h.each(t, "systemctl stop ear || :; systemd/install uninstall")
	for i, after := range h.inventories(t) {
		if after != before[i] {
			t.Errorf("something is left on %s, or missing:\n%s", hostNames[i], difference(before[i], after))
		}
	}
}
