package rabbit

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/rabbit/rabbittest"
)

// Setup puts each queue on as many nodes as asked for, spreads the leaders, and
// sees when a node has no replica.
func TestSetupInACluster(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three nodes")
	}
	cluster := rabbittest.StartCluster(t, rabbittest.ClusterConfig{Hosts: 3})
	cfg := DefaultConfig("test")
	cfg.URLs = strings.Split(cluster.URL(), ",")
	cfg.Topology.Replicas = 2
	if _, err := Setup(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	cfg.Topology.Replicas = 3 // differs, but not in what can be compared
	if _, err := Setup(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	got, err := LookForReplicas(t.Context(), cfg)
	if err != nil || len(got.With) != 2 || len(got.Without) != 1 {
		t.Errorf("LookForReplicas = %v, %v", got, err)
	}
	leaders := make(map[*rabbittest.Host]int)
	for _, q := range cfg.Topology.queues() {
		h, err := cluster.Hosts[0].Leader(t.Context(), q.name)
		if err != nil {
			t.Fatal(err)
		}
		leaders[h]++
	}
	if len(leaders) != 3 {
		t.Errorf("the leaders are on %d nodes", len(leaders))
	}
	at := slices.IndexFunc(cfg.URLs, func(url string) bool { return host(url) == got.Without[0] })
	added := cluster.Hosts[at]
	cluster.Hosts[0].Tool("rabbitmq-streams", "add_replica", "-p", "test", ResultsQueue, "rabbit@"+added.Name)
	// The broker starts all replicas again.
	await.Nil(t, "a third replica", func() error {
		got, err := LookForReplicas(t.Context(), cfg)
		if err == nil && len(got.With) != 3 {
			err = fmt.Errorf("LookForReplicas = %v", got)
		}
		return err
	})
}

// BenchmarkCluster publishes tasks to one node and to three, and counts those
// that were stored twice, because their connection lagged.
func BenchmarkCluster(b *testing.B) {
	for _, nodes := range []int{1, 3} {
		cluster := rabbittest.StartCluster(b, rabbittest.ClusterConfig{Hosts: nodes})
		r := &rig{t: b, cfg: DefaultConfig("test")}
		r.log, r.out = rabbittest.Log(b)
		r.cfg.URLs = strings.Split(cluster.URL(), ",")
		r.url = r.cfg.URLs[0]
		r.cfg.Topology.Replicas = int64(nodes)
		r.declared()
		p := r.publisher()
		stored := func() int {
			q, err := r.ch.QueueDeclarePassive(TasksQueue, true, false, false, false, nil)
			if err != nil {
				b.Fatal(err)
			}
			return q.Messages
		}
		b.Run(fmt.Sprintf("nodes=%d", nodes), func(b *testing.B) {
			before := stored()
			publishTasks(b, p)
			b.StopTimer()
			b.ReportMetric(float64(stored()-before-b.N), "twice")
		})
	}
}
