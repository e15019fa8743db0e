//go:build linux

package rabbittest_test

import (
	"errors"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/rabbit/rabbittest"
)

// A host that is cut off from its peers still answers its clients, and one that
// is cut off from its clients is still a member.
func TestCluster(t *testing.T) {
	c := rabbittest.StartCluster(t, rabbittest.ClusterConfig{Hosts: 3, Lines: []string{"cluster_partition_handling = ignore"}})
	_, ch := dial(t, c.Hosts[0].URL())
	declare(t, ch, "q", "quorum")
	leader, err := c.Hosts[1].Leader(t.Context(), "q")
	if err != nil {
		t.Fatal(err)
	}
	if leader != c.Hosts[0] {
		t.Errorf("the leader is on %s", leader.Name)
	}
	running := func(h *rabbittest.Host, want string) {
		t.Helper()
		await.Nil(t, "members as "+h.Name+" sees them", func() error {
			out, err := h.Eval(t.Context(), "length(nodes())")
			if err == nil && out != want {
				err = errors.New(out)
			}
			return err
		})
	}
	running(c.Hosts[2], "2")
	c.Hosts[2].Cut(rabbittest.Clients)
	if _, err := amqp.DialConfig(c.Hosts[2].URL(), amqp.Config{Dial: amqp.DefaultDial(1e9)}); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("a client that is cut off: %v", err)
	}
	c.Hosts[2].Heal(rabbittest.Clients)
	dial(t, c.Hosts[2].URL())
}

// A host without data that starts while it reaches no other one is a cluster of
// its own, and joins the others when it is told to.
func TestJoin(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three nodes")
	}
	c := rabbittest.StartCluster(t, rabbittest.ClusterConfig{Hosts: 3, Advanced: "[{kernel, [{net_setuptime, 1}]}]"})
	h, other := c.Hosts[0], c.Hosts[1]
	h.Kill()
	other.Tool("rabbitmqctl", "forget_cluster_node", "rabbit@"+h.Name)
	h.Wipe()
	h.Cut(rabbittest.Peers)
	h.Start()
	h.Heal(rabbittest.Peers)
	if c.IsFormed() {
		t.Skip("it has joined by itself")
	}
	h.Join(other)
	c.Formed()
}
