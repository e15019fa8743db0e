package e2e

import (
	"net/http"
	"strings"
	"testing"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/wire"
)

// The API knows that the broker is short of memory though nobody posts, and
// that it no longer is; the first post meanwhile is refused at once.
func TestMemoryAlarmWithoutPosts(t *testing.T) {
	t.Parallel()
	n := rabbittest.StartNode(t)
	s := prepare(t, n)
	s.startFronts(t)
	s.awaitReadyz(t, http.StatusOK)
	watermark := func(fraction string) {
		t.Helper()
		if out, err := n.Ctl(t.Context(), "set_vm_memory_high_watermark", fraction); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	ready := func(site string, status int) func() bool {
		return func() bool { return get(t, site, wire.ReadyPath).status == status }
	}
	watermark("0.00001")
	for _, site := range s.apiSites {
		took := await.True(t, "the alarm is known", ready(site, http.StatusServiceUnavailable))
		t.Logf("%s is not ready after %v", site, took)
	}
	if a := get(t, s.apiSites[0], wire.ReadyPath); !strings.Contains(a.body, "short of memory") {
		t.Errorf("/readyz says %s", a.body)
	}
	for range 100 { // over each connection to the broker
		if a := post(t, s.apiSites[0], "text/plain", "abc"); a.status != http.StatusServiceUnavailable {
			t.Fatalf("a text was answered %d %s", a.status, a.body)
		}
	}
	watermark("0.4")
	s.awaitReadyz(t, http.StatusOK)
	if a := post(t, s.apiSites[0], "text/plain", "abc"); a.status != http.StatusAccepted {
		t.Errorf("after the alarm a text was answered %d %s", a.status, a.body)
	}
}
