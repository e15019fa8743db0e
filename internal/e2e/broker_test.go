//go:build linux

package e2e

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/daemon/daemontest"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/wire"
)

// recovery is the time limit after which everything works again, from when the
// broker accepts logins.
const recovery = 20 * time.Second

// A broker that starts late, ends, or hangs. The subtests run one after another
// with the same daemons and the same listeners: none of these is restarted.
func TestBrokerAway(t *testing.T) {
	t.Parallel()
	n := rabbittest.StartNode(t)
	s := prepare(t, n)
	s.url += "?heartbeat=4" // a silent broker is disconnected after 6 s, well after a text has been refused
	s.stopBroker(t)

	// The fronts are ready: they tell clients to try again later. Listeners are
	// greeted once there is a broker; the interval bounds how long they wait.
	s.startFronts(t, "--ping-interval=10m")
	workers := []*daemontest.Daemon{s.startDaemon(t, "revq-worker", nil), s.startDaemon(t, "revq-worker", nil)}
	listeners := []*listener{s.connect(t, "json", ""), s.connect(t, "json", "")}

	if !t.Run("not there yet", func(t *testing.T) {
		for _, w := range workers {
			w.WaitState(t, "STATUS=waiting: the broker is not connected")
			for _, state := range w.States() {
				if state == "READY=1" {
					t.Error("a worker without a broker is ready")
				}
			}
		}
		for _, d := range append(workers, s.api, s.socket) {
			d.WaitLog(t, "no session with the broker; will connect again")
		}
		s.checkUnavailable(t)
		s.awaitReadyz(t, http.StatusServiceUnavailable)
		s.startBroker(t)
		began := time.Now()
		for _, w := range workers {
			w.WaitReady(t)
		}
		t.Logf("workers ready %v after the broker", time.Since(began).Round(time.Millisecond))
		for _, l := range listeners {
			l.greet(t)
		}
		s.checkRecovered(t, began, listeners, "late")
	}) {
		return
	}

	if !t.Run("stopped and started again", func(t *testing.T) {
		s.stopBroker(t)
		s.checkUnavailable(t)
		s.awaitReadyz(t, http.StatusServiceUnavailable)
		s.startBroker(t)
		s.checkRecovered(t, time.Now(), listeners, "restarted")
	}) {
		return
	}

	t.Run("hangs for a moment", func(t *testing.T) {
		resume := s.suspendBroker(t)
		s.checkUnavailable(t)
		await.True(t, "/readyz of the API answers 503", func() bool {
			return get(t, s.apiSites[0], wire.ReadyPath).status == http.StatusServiceUnavailable
		})
		resume()
		s.checkRecovered(t, time.Now(), listeners, "resumed")
	})

	t.Run("hangs until it is given up", func(t *testing.T) {
		resume := s.suspendBroker(t)
		s.checkUnavailable(t)
		s.awaitReadyz(t, http.StatusServiceUnavailable) // the socket server's, too: no heartbeat arrives
		s.checkUnavailable(t)
		resume()
		s.checkRecovered(t, time.Now(), listeners, "reconnected")
	})
}

// suspendBroker makes the broker hang: its connections stay open, and nothing
// answers. The broker is resumed by the function that is returned, or when the
// test ends.
func (s *system) suspendBroker(t *testing.T) func() {
	t.Helper()
	if err := s.node.Suspend(); err != nil {
		t.Fatal(err)
	}
	resume := sync.OnceFunc(func() {
		if err := s.node.Resume(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(resume)
	return resume
}

func (s *system) stopBroker(t *testing.T) {
	t.Helper()
	ctx := await.Context(t)
	if err := s.node.Stop(ctx); err != nil {
		t.Fatal(err)
	}
}

func (s *system) startBroker(t *testing.T) {
	t.Helper()
	began := time.Now()
	rabbittest.Restart(t, s.node)
	t.Logf("the broker took %v to start", time.Since(began).Round(time.Millisecond))
}

// checkUnavailable expects both sites of the API to refuse texts.
func (s *system) checkUnavailable(t *testing.T) {
	t.Helper()
	for _, site := range s.apiSites {
		if err := checkUnavailable(t, site); err != nil {
			t.Error(err)
		}
	}
}

// checkRecovered expects that within recovery from began a text is accepted at
// each site, and its result reaches all listeners, which have stayed connected.
func (s *system) checkRecovered(t *testing.T, began time.Time, listeners []*listener, prefix string) {
	t.Helper()
	ids := make(map[string]bool)
	for i, site := range s.apiSites {
		id := fmt.Sprintf("%s-%d", prefix, i)
		ids[id] = true
		await.True(t, "a text is accepted at "+site, func() bool {
			return post(t, site, "application/json", submission(id, "abcdef")).status == http.StatusAccepted
		})
	}
	accepted := time.Since(began)
	for _, l := range listeners {
		open := len(ids)
		for open > 0 {
			m := l.nextResult(t)
			switch {
			case ids[m.ID]:
				open--
				if m.Text != "fedcba" {
					t.Errorf("text %q, want fedcba", m.Text)
				}
			case m.Text == "desufer": // checkUnavailable got a 503 for it after it had been published
			default:
				t.Errorf("unexpected result %+v", m)
			}
		}
	}
	took := time.Since(began)
	s.awaitReadyz(t, http.StatusOK)
	if ready := time.Since(began); took > recovery || ready > recovery {
		t.Errorf("accepted after %v, results after %v, all ready after %v; want all within %v", accepted, took, ready, recovery)
	} else {
		t.Logf("accepted after %v, results at all listeners after %v, all ready after %v",
			accepted.Round(time.Millisecond), took.Round(time.Millisecond), ready.Round(time.Millisecond))
	}
}
