//go:build linux

package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/daemon/daemontest"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/rabbit/node"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/wire"
)

var (
	cluster       = flag.Bool("cluster", false, "TestClusterFaults, which takes root, minutes, and a machine that does nothing else")
	clusterLong   = flag.Bool("cluster.long", false, "TestClusterFaults with all faults, each for a minute (give -timeout 60m)")
	clusterRounds = flag.Int("cluster.rounds", 1, "how often TestClusterFaults goes through all faults in the long form")
	clusterOnly   = flag.String("cluster.only", "", "only those faults of TestClusterFaults that have this in their name, or one of several texts separated by commas")
	clusterRoot   = flag.String("cluster.root", "", "root of a file system with another release of RabbitMQ, as debootstrap makes it")
	clusterConfig = flag.String("cluster.config", clusterSettings, "the nodes' advanced.config, without the full stop")
	clusterHold   = flag.Duration("cluster.hold", 0, "how long a fault lasts; 0: 10 s, and 60 s in the long form")
	clusterLogs   = flag.String("cluster.logs", "", "a directory for the logs of the daemons and nodes")
)

const (
	// maxReadySilent is for how long a socket server may say that it is ready
	// while results that exist do not come.
	maxReadySilent = 5 * time.Second

	// clusterSettings and clusterPartitions are what internal/rabbit/README.md
	// recommends for advanced.config and rabbitmq.conf.
	clusterSettings   = "[" + node.Settings + `, {kernel, [{net_ticktime, 2}, {net_setuptime, 0.5}]}, {aten, [{poll_interval, 100}]}, {osiris, [{max_segment_size_chunks, 8192}]}]`
	clusterPartitions = "cluster_partition_handling = pause_minority"

	// clusterRest is how long everything works before a fault: each connection
	// has been used by then, and is at its own node (see rabbit/home.go).
	clusterRest = 20 * time.Second

	// restartPause is for how long all nodes run before the next one is restarted.
	// RabbitMQ counts a replica that runs as one that can take over, but it
	// hears from its leader only within quorum_tick_interval, 5 s.
	restartPause = 10 * time.Second

	// clusterLimit is the time limit for everything to work again once a fault
	// is over.
	clusterLimit = 90 * time.Second
)

// clusterFaults are what happens to a cluster of three. The functions return
// how to end the fault.
var clusterFaults = []struct {
	name    string
	short   bool // part of the short form
	inflict func(*clusterTrial) (heal func())
}{
	{"leader of the tasks killed", true, func(c *clusterTrial) func() { return c.kill(c.leader(rabbit.TasksQueue)) }},
	{"leader of the results killed", false, func(c *clusterTrial) func() { return c.kill(c.leader(rabbit.ResultsQueue)) }},
	{"rolling restart", false, func(c *clusterTrial) func() {
		for _, h := range c.cluster.Hosts {
			// As systemd/README.md says.
			<-time.After(restartPause)
			await.Nil(c.t, "the others can do without "+h.Name, func() error {
				_, err := h.TryTool("rabbitmq-queues", "check_if_node_is_quorum_critical")
				return err
			})
			c.handOver(h)
			h.Stop()
			h.Start()
			c.cluster.Formed()
		}
		return func() {}
	}},
	{"leader of the tasks cut off", false, func(c *clusterTrial) func() {
		return c.cut(c.leader(rabbit.TasksQueue), rabbittest.Peers, rabbittest.Clients)
	}},
	{"leader of the results cut off", false, func(c *clusterTrial) func() {
		return c.cut(c.leader(rabbit.ResultsQueue), rabbittest.Peers, rabbittest.Clients)
	}},
	{"leader of the tasks suspended", false, func(c *clusterTrial) func() { return c.suspend(c.leader(rabbit.TasksQueue)) }},
	{"leader of the results suspended", true, func(c *clusterTrial) func() { return c.suspend(c.leader(rabbit.ResultsQueue)) }},
	{"cut off from its peers only", true, func(c *clusterTrial) func() {
		return c.cut(c.cluster.Hosts[c.random.IntN(len(c.cluster.Hosts))], rabbittest.Peers)
	}},
	{"two of three killed", false, func(c *clusterTrial) func() {
		first := c.random.IntN(3)
		one, other := c.cluster.Hosts[first], c.cluster.Hosts[(first+1)%3]
		one.Kill()
		other.Kill()
		return func() {
			var starting sync.WaitGroup
			starting.Go(one.Start)
			starting.Go(other.Start)
			starting.Wait()
		}
	}},
	{"forgotten, wiped, added again", false, func(c *clusterTrial) func() {
		i := c.random.IntN(3)
		h, other := c.cluster.Hosts[i], c.cluster.Hosts[(i+1)%3]
		h.Kill()
		other.Tool("rabbitmqctl", "forget_cluster_node", "rabbit@"+h.Name)
		c.coordinate("remove_member", h, other)
		h.Wipe()
		return func() {
			h.Start()
			if !c.joins() {
				c.note("  %s began a cluster of its own; it is told to join the others", h.Name)
				h.Join(other)
			}
			c.cluster.Formed()
			c.coordinate("add_member", h, other)
			other.Tool("rabbitmq-queues", "grow", "rabbit@"+h.Name, "all")
			c.growStream(h, other)
		}
	}},
}

// coordinate has another node add h to the coordinator of streams, or remove it.
// RabbitMQ before 3.13 does neither at once. Each 30 s it removes who was
// forgotten and adds who is new. If h has come back until then, it is neither.
// If it comes back later and is asked for the stream, it begins a coordinator of
// its own again and again, which keeps it from being added.
func (c *clusterTrial) coordinate(change string, h, other *rabbittest.Host) {
	const coordinator = "rabbit_stream_coordinator"
	ctx := await.Context(c.t)
	if bySelf, err := other.Eval(ctx, "erlang:function_exported("+coordinator+", forget_node, 1)"); err != nil {
		c.t.Fatal(err)
	} else if bySelf == "true" {
		return
	}
	if got, err := other.Eval(ctx, fmt.Sprintf("ra:%s({%s, node()}, {%[2]s, rabbit@%s})", change, coordinator, h.Name)); err != nil || !strings.HasPrefix(got, "{ok") {
		c.t.Errorf("%s: %s: %s %v", change, h.Name, got, err)
	}
}

// growStream waits until h, which has lost its data, has a replica of the stream
// again. RabbitMQ 3.10 has kept the replica, and starts it by itself: while that
// lags, it is no error that none can be added.
func (c *clusterTrial) growStream(h, other *rabbittest.Host) {
	took := await.NilWithin(c.t, time.Minute, "a replica of the stream on each node", func() error {
		got, err := rabbit.LookForReplicas(await.Context(c.t), c.brokerConfig())
		if err == nil && len(got.With) == len(c.cluster.Hosts) {
			return nil
		}
		_, failed := other.TryTool("rabbitmq-streams", "add_replica", "-p", "test", rabbit.ResultsQueue, "rabbit@"+h.Name)
		return fmt.Errorf("%v %w", got, errors.Join(err, failed))
	})
	c.note("  %s has a replica of the stream after %v", h.Name, took.Round(time.Second))
}

// A node of three is killed, hangs, is cut off from clients or from its peers,
// or loses its data, under load. Each accepted task has one result at every
// listener that resumes, and the test shows how long nothing was accepted and
// nothing came.
func TestClusterFaults(t *testing.T) {
	if !*cluster && !*clusterLong && *clusterOnly == "" {
		t.Skip("measures, and so needs a machine that does nothing else: give -cluster")
	}
	seed := *faultSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) % 1_000_000_000
	}
	t.Logf("seed %d: again with -fault.seed %d", seed, seed)
	c := startClusterTrial(t, seed)
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "fault\tno 202 for\tno result for\tready, but silent for")
	for range *clusterRounds {
		for _, i := range c.random.Perm(len(clusterFaults)) {
			f := clusterFaults[i]
			if !wanted(f.name) || *clusterOnly == "" && !f.short && !*clusterLong {
				continue
			}
			c.note("%s", f.name)
			refused, silent, ready := c.measure(f.inflict)
			fmt.Fprintf(w, "%s\t%.1f s\t%.1f s\t%.1f s\n", f.name, refused.Seconds(), silent.Seconds(), ready.Seconds())
			c.note("  no 202 for %v, no result for %v, ready but silent for %v", refused, silent, ready)
			if ready > maxReadySilent {
				t.Errorf("%s: /readyz of a socket server said 200 for %v while results that exist did not come", f.name, ready)
			}
			if t.Failed() && !*clusterLong {
				break
			}
		}
	}
	c.posters.stop()
	c.settle()
	c.judge()
	w.Flush()
	t.Logf("seed %d: %d accepted; the longest request took %v\n%s", seed, len(c.posters.accepted), c.posters.longest.Round(time.Millisecond), table.String())
}

// wanted reports whether -cluster.only names a fault.
func wanted(fault string) bool {
	return slices.ContainsFunc(strings.Split(*clusterOnly, ","), func(part string) bool { return strings.Contains(fault, part) })
}

// Everyone is told the settings with which TestClusterFaults runs.
func TestClusterSettings(t *testing.T) {
	for page, want := range map[string][]string{
		"../rabbit/README.md":     {clusterSettings + ".\n", clusterPartitions + "\n"},
		"../../systemd/README.md": {clusterSettings + ".\n", clusterPartitions + "\n", "[" + node.Settings + "].\n"},
		"../../nix/module.nix":    {clusterSettings + ".\"", `"cluster_partition_handling" = mkDefault "pause_minority"`, "[" + node.Settings + "].\""},
	} {
		content, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, setting := range want {
			if !strings.Contains(string(content), setting) {
				t.Errorf("%s does not have %s", page, setting)
			}
		}
	}
}

// A clusterTrial is a trial on a cluster of three.
type clusterTrial struct {
	*trial
	cluster *rabbittest.Cluster
}

func startClusterTrial(t *testing.T, seed uint64) *clusterTrial {
	t.Helper()
	cluster := rabbittest.StartCluster(t, rabbittest.ClusterConfig{
		Hosts: 3, Root: *clusterRoot, Lines: []string{clusterPartitions}, Advanced: *clusterConfig,
	})
	r := &trial{
		system: &system{url: cluster.URL(), vhost: "test", binary: daemontest.Binary}, t: t, random: rand.New(rand.NewPCG(seed, 0)), began: time.Now(),
		broker: cluster.Hosts[0], postPause: 200 * time.Millisecond,
		requeued: make(map[string]int),
	}
	ctx := await.Context(t)
	if _, err := rabbit.Setup(ctx, r.brokerConfig()); err != nil {
		t.Fatal(err)
	}
	c := &clusterTrial{r, cluster}
	if *clusterLogs != "" {
		t.Cleanup(c.keepLogs)
	}
	r.startClients(3)
	return c
}

// keepLogs writes the logs of the daemons and nodes to files. What clients saw
// is explained by them.
func (c *clusterTrial) keepLogs() {
	keep := func(name, log string) {
		if err := os.WriteFile(filepath.Join(*clusterLogs, name+".log"), []byte(log), 0o600); err != nil {
			c.t.Error(err)
		}
	}
	for i, u := range c.units() {
		if u.daemon != nil {
			keep(fmt.Sprintf("%d-%s", i, u.name), u.daemon.Log())
		}
	}
	for _, h := range c.cluster.Hosts {
		keep(h.Name, h.Log())
	}
	for _, f := range c.listeners {
		f.mu.Lock()
		keep(f.name, strings.Join(f.events, "\n"))
		f.mu.Unlock()
	}
}

// measure inflicts a fault and ends it. It returns the longest time for which an
// API accepted nothing, a listener got nothing, and a socket server said that it
// was ready while nothing came.
func (c *clusterTrial) measure(inflict func(*clusterTrial) func()) (refused, silent, ready time.Duration) {
	c.t.Helper()
	<-time.After(clusterRest)
	for _, r := range c.rhythms() {
		r.reset()
	}
	ctx, stop := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	watching.Go(func() { ready = c.readySilent(ctx) })
	heal := inflict(c)
	hold := *clusterHold
	switch {
	case hold == 0 && *clusterLong:
		hold = time.Minute
	case hold == 0:
		hold = 10 * time.Second
	}
	<-time.After(hold)
	c.note("  it ends")
	heal()
	began := time.Now()
	c.steady()
	for i := 0; i < len(c.rhythms()); {
		if time.Since(began) > clusterLimit {
			c.t.Errorf("not everything worked again within %v", clusterLimit)
			break
		}
		if c.rhythms()[i].since(began) {
			i++
			continue
		}
		<-time.After(await.Every)
	}
	c.note("  all work again %v after its end", time.Since(began).Round(time.Millisecond))
	stop()
	watching.Wait()
	for i, api := range c.apis {
		from, pause := api.accepted.longest()
		c.note("  API %d accepted nothing for %v, from %s on", i, pause.Round(time.Millisecond), from.UTC().Format("15:04:05.000"))
		refused = max(refused, pause)
	}
	for _, f := range c.listeners {
		from, pause := f.heard.longest()
		c.note("  %s heard nothing for %v, from %s on", f.name, pause.Round(time.Millisecond), from.UTC().Format("15:04:05.000"))
		silent = max(silent, pause)
	}
	return refused, silent, ready
}

// steady waits until the nodes have seen each other for a while. When a
// partition ends, RabbitMQ restarts some of them a moment later.
func (c *clusterTrial) steady() {
	c.t.Helper()
	const often = 3
	for began, seen := time.Now(), 0; seen < often; <-time.After(time.Second) {
		if seen++; !c.cluster.IsFormed() {
			seen = 0
		}
		if time.Since(began) > clusterLimit {
			c.t.Fatalf("the nodes did not see each other for %v", clusterLimit)
		}
	}
}

func (c *clusterTrial) rhythms() (all []*rhythm) {
	for _, api := range c.apis {
		all = append(all, &api.accepted)
	}
	for _, f := range c.listeners {
		all = append(all, &f.heard)
	}
	return all
}

// readySilent returns the longest time for which a socket server said that it
// was ready while no listener got a result, although some were to come.
func (c *clusterTrial) readySilent(ctx context.Context) (longest time.Duration) {
	client := &http.Client{Timeout: time.Second}
	defer client.CloseIdleConnections()
	since := make([]time.Time, len(c.sockets))
	for ctx.Err() == nil {
		<-time.After(100 * time.Millisecond)
		now := time.Now()
		for i, s := range c.sockets {
			res, err := client.Get("http://" + s.site + wire.ReadyPath)
			if err == nil {
				res.Body.Close()
			}
			if err != nil || res.StatusCode != http.StatusOK || !c.pending() || c.heardWithin(200*time.Millisecond) {
				since[i] = now
			} else if !since[i].IsZero() {
				longest = max(longest, now.Sub(since[i]))
			}
		}
	}
	return longest
}

// pending reports whether a listener has not got all results.
func (c *clusterTrial) pending() bool {
	c.posters.mu.Lock()
	accepted := len(c.posters.accepted)
	c.posters.mu.Unlock()
	for _, f := range c.listeners {
		f.mu.Lock()
		got := len(f.got)
		f.mu.Unlock()
		if got < accepted {
			return true
		}
	}
	return false
}

func (c *clusterTrial) heardWithin(d time.Duration) bool {
	for _, f := range c.listeners {
		if f.heard.since(time.Now().Add(-d)) {
			return true
		}
	}
	return false
}

// leader returns the host of a queue's leader.
func (c *clusterTrial) leader(queue string) *rabbittest.Host {
	c.t.Helper()
	ctx := await.Context(c.t)
	var h *rabbittest.Host
	await.Nil(c.t, "a leader of "+queue, func() (err error) {
		h, err = c.cluster.Hosts[0].Leader(ctx, queue)
		return err
	})
	c.note("  the leader of %s is on %s", queue, h.Name)
	if queue == rabbit.ResultsQueue { // if one node has both, RabbitMQ 4.3 may take 5 s longer
		coordinator, err := c.cluster.Hosts[0].Eval(ctx, "ra_leaderboard:lookup_leader(rabbit_stream_coordinator)")
		c.note("  the coordinator of streams is led by %s %v", coordinator, err)
	}
	return h
}

// handOver has another node lead the stream, as systemd/README.md says. Only
// the node that leads may have the last results; then it is chosen again.
func (c *clusterTrial) handOver(h *rabbittest.Host) {
	c.t.Helper()
	if c.leader(rabbit.ResultsQueue) != h {
		return
	}
	other := "rabbit@" + c.cluster.Hosts[(slices.Index(c.cluster.Hosts, h)+1)%len(c.cluster.Hosts)].Name
	await.Nil(c.t, "the stream is led by another node than "+h.Name, func() error {
		out, err := h.TryTool("rabbitmq-streams", "restart_stream", "-p", "test", rabbit.ResultsQueue, "--preferred-leader-node", other)
		switch {
		case err != nil && strings.Contains(err.Error(), "'restart_stream' not found"): // before RabbitMQ 3.12
			return nil
		case err == nil && strings.Contains(out, "rabbit@"+h.Name):
			return errors.New(out)
		}
		return err
	})
}

func (c *clusterTrial) kill(h *rabbittest.Host) (heal func()) {
	h.Kill()
	return h.Start
}

func (c *clusterTrial) suspend(h *rabbittest.Host) (heal func()) {
	h.Suspend()
	return func() {
		h.Resume()
		c.rejoin(h)
	}
}

func (c *clusterTrial) cut(h *rabbittest.Host, links ...rabbittest.Link) (heal func()) {
	h.Cut(links...)
	return func() {
		h.Heal(links...)
		c.rejoin(h)
	}
}

// rejoin restarts a node that does not join the others by itself, as
// internal/rabbit/README.md says.
func (c *clusterTrial) rejoin(h *rabbittest.Host) {
	if !c.joins() {
		c.note("  %s does not join the others; it is restarted", h.Name)
		h.Kill()
		h.Start()
	}
}

// joins reports whether all nodes see each other before long.
func (c *clusterTrial) joins() bool {
	const patience = 15 * time.Second
	for began := time.Now(); time.Since(began) < patience; <-time.After(time.Second) {
		if c.cluster.IsFormed() {
			return true
		}
	}
	return false
}

// A rhythm records the longest time between two events.
type rhythm struct {
	mu    sync.Mutex
	last  time.Time
	from  time.Time // when the longest pause began
	pause time.Duration
}

func (r *rhythm) beat() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if pause := now.Sub(r.last); !r.last.IsZero() && pause > r.pause {
		r.from, r.pause = r.last, pause
	}
	r.last = now
}

func (r *rhythm) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.from, r.pause = time.Time{}, 0
}

// longest returns the longest time without an event since reset, and when it
// began.
func (r *rhythm) longest() (from time.Time, pause time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if pause := time.Since(r.last); pause > r.pause {
		return r.last, pause
	}
	return r.from, r.pause
}

// since reports whether there was an event after then.
func (r *rhythm) since(then time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last.After(then)
}
