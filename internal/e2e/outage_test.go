//go:build linux

package e2e

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/client"
	"github.com/revq/revq/internal/daemon/daemontest"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/task"
)

var (
	outageTime = flag.Duration("outage", 15*time.Second, "how long TestHandlerOutage lasts; the promise is for 10m (give -timeout 15m)")

	// A minute must suffice for all tasks of ten, also on a machine that is busy
	// with other tests.
	outageRate = flag.Float64("outage.rate", 2, "tasks a second in TestHandlerOutage")
)

// afterOutage is the time limit, after the outage, for all tasks.
const afterOutage = time.Minute

// What a handler needs is away, whether the handler knows what to say of that
// (later) or just fails. No task is given up, and all are done soon after it.
func TestHandlerOutage(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	s := start(t)
	away := filepath.Join(t.TempDir(), "away")
	statuses := map[string]string{"later": "75", "fails": "1"} // by queue
	workers := make(map[string]*daemontest.Daemon)
	l := s.listen(t, "json")
	for queue, status := range statuses {
		s.revq(t, "setup", "--queue", queue)
		workers[queue] = s.startWorker(t, "--queue", queue, "--", program(t, `
[ ! -e `+away+` ] || exit `+status+`
read -r text
printf %s "$text"`))
	}
	if err := os.WriteFile(away, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var ids []string
	pace := time.NewTicker(time.Duration(float64(len(statuses)) / *outageRate * float64(time.Second)))
	defer pace.Stop()
	for time.Since(began) < *outageTime {
		for queue := range statuses {
			sender := client.Sender{URL: "http://" + s.apiSites[len(ids)%2], Queue: queue, Timeout: await.Patience}
			id := task.NewID()
			if answers, err := sender.Send(t.Context(), []task.Task{{ID: id, Text: "text\n"}}); err != nil || answers[0] != nil {
				t.Fatalf("send to %s: %v %v", queue, answers, err)
			}
			ids = append(ids, id)
		}
		<-pace.C
	}
	if err := os.Remove(away); err != nil {
		t.Fatal(err)
	}
	ended := time.Now()
	l.collect(t, ids) // fails if a task is given up, or done twice
	took := time.Since(ended)
	for queue, w := range workers {
		t.Logf("queue %s: %d attempts did not succeed in the outage", queue, strings.Count(w.Log(), "an attempt did not succeed"))
	}
	t.Logf("outage of %v, %d tasks: all are done %v after it", ended.Sub(began).Round(time.Second), len(ids), took.Round(time.Millisecond))
	if took > afterOutage {
		t.Errorf("they were done %v after the outage, want %v at most", took, afterOutage)
	}
	if n := rabbittest.QueueLength(t, s.node, s.url, "revq.dead"); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}
