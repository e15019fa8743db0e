//go:build linux

package e2e

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/revq/revq/internal/daemon/daemontest"
	"github.com/revq/revq/internal/rabbit/rabbittest"
)

// recovery is how soon everything works again, counted from when the broker takes logins.
const recovery = 10 * time.Second

// A broker that comes late, goes, or hangs. Its parts follow one another, with the same processes of ours and the
// same listeners: nothing of it is started again.
func TestBrokerAway(t *testing.T) {
	t.Parallel()
	n := rabbittest.StartNode(t)
	s := prepare(t, n)
	s.url += "?heartbeat=4" // a silent broker is given up after 6 s, well after a text has been refused
	s.stopBroker(t)

	s.startFronts(t) // which are ready: their clients are told to come again
	workers := []*daemontest.Daemon{s.startDaemon(t, "revq-worker", nil), s.startDaemon(t, "revq-worker", nil)}
	listeners := []*listener{s.listen(t, "json"), s.listen(t, "json")}

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
		await(t, "/readyz of the API answers 503", func() bool {
			return get(t, s.apiSites[0], "/readyz").status == http.StatusServiceUnavailable
		})
		resume()
		s.checkRecovered(t, time.Now(), listeners, "resumed")
	})

	t.Run("hangs until it is given up", func(t *testing.T) {
		resume := s.suspendBroker(t)
		s.checkUnavailable(t)
		s.awaitReadyz(t, http.StatusServiceUnavailable) // that of the socket server, too: no heartbeat comes
		s.checkUnavailable(t)
		resume()
		s.checkRecovered(t, time.Now(), listeners, "reconnected")
	})
}

// suspendBroker has the broker hang: its connections stay open, and nothing answers. It goes on when the function
// returned is called, or when the test ends.
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
	ctx, cancel := timeout(t)
	defer cancel()
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

// checkRecovered expects that within the time for recovery from began a text is accepted at each site, and its result
// is at all listeners, which have been connected all along.
func (s *system) checkRecovered(t *testing.T, began time.Time, listeners []*listener, prefix string) {
	t.Helper()
	ids := make(map[string]bool)
	for i, site := range s.apiSites {
		id := fmt.Sprintf("%s-%d", prefix, i)
		ids[id] = true
		await(t, "a text is accepted at "+site, func() bool {
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
			case m.Text == "desufer": // answered 503 by checkUnavailable when it was on its way already
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
