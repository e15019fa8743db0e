//go:build linux

package boot

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/revq/revq/internal/await"
)

// prometheusAPI is that of the Prometheus in the host.
const prometheusAPI = "http://127.0.0.1:9099/api/v1/"

// monitor does what internal/admin/README.md says, as a new operator: Prometheus
// scrapes the host, and each query of the dashboard returns data. Then the workers
// are stopped, and revq status and an alert say so.
func (b *bootTest) monitor(t *testing.T) {
	if _, err := b.Try(t, "which", "prometheus"); err != nil {
		if os.Getenv("CI") != "" && *bootRelease == "" {
			t.Fatal("the host has no prometheus: apt-get install prometheus")
		}
		t.Skip("the host has no prometheus")
	}
	page, err := os.ReadFile("../../admin/README.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := regexp.MustCompile("(?s)```yaml\n(rule_files.*?)```").FindSubmatch(page)
	if documented == nil {
		t.Fatal("internal/admin/README.md has no configuration for Prometheus")
	}
	const often = "global: {scrape_interval: 4s, scrape_timeout: 4s, evaluation_interval: 1s}\n"
	b.Write(t, "/run/monitor/prometheus.yml", often+strings.ReplaceAll(string(documented[1]), "192.0.2.17", "127.0.0.1"))
	b.Run(t, "systemctl", "start", "revq-metrics.socket")
	b.Run(t, "systemd-run", "--quiet", "--unit=monitor", "prometheus", "--config.file=/run/monitor/prometheus.yml",
		"--storage.tsdb.path=/run/monitor/data", "--web.listen-address=127.0.0.1:9099", "--log.level=warn")
	defer b.Run(t, "systemctl", "stop", "monitor", "revq-metrics.socket", "revq-metrics.service")

	await.True(t, "Prometheus sees the workers", func() bool { return b.found(t, `sum(revq_up{daemon=~"worker.*"}) >= 2`) })
	b.Run(t, "revq", "send", "--quiet", "one", "two", "three")
	for _, query := range b.dashboard(t) {
		query = strings.ReplaceAll(query, "$__rate_interval", "1m") // two samples are enough for a rate
		await.True(t, query+" returns data", func() bool { return b.found(t, query) })
	}

	b.Run(t, "systemctl", "stop", "revq-worker@*")
	defer func() {
		b.Run(t, "systemctl", "start", "revq-worker@1", "revq-worker@2")
		await.True(t, "revq status says that all is well", func() bool { _, err := b.Try(t, "revq", "status"); return err == nil })
	}()
	await.True(t, "revq status says that there is no worker", func() bool {
		seen, err := b.Try(t, "revq", "status")
		return err != nil && strings.HasPrefix(seen, "trouble: ") && strings.Contains(firstLine(seen), "no worker")
	})
	await.True(t, "the alert is on its way", func() bool { return b.found(t, `ALERTS{alertname="RevqNoWorker",queue="revq.tasks"}`) })
}

// found reports whether a query returns data.
func (b *bootTest) found(t *testing.T, query string) bool {
	t.Helper()
	out, err := b.Try(t, "curl", "--silent", "--get", "--data-urlencode", "query="+query, prometheusAPI+"query")
	if err != nil {
		return false // it starts
	}
	var answer struct {
		Status, Error string
		Data          struct{ Result []json.RawMessage }
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		return false
	}
	if answer.Status != "success" {
		t.Fatalf("%s: %s", query, answer.Error)
	}
	return len(answer.Data.Result) > 0
}

// dashboard returns the queries of the installed dashboard.
func (b *bootTest) dashboard(t *testing.T) (queries []string) {
	t.Helper()
	var dashboard struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	if err := json.Unmarshal([]byte(b.Run(t, "cat", "/usr/local/share/revq/dashboards/revq.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			queries = append(queries, target.Expr)
		}
	}
	if len(queries) < 20 {
		t.Fatalf("the dashboard has %d queries", len(queries))
	}
	return queries
}
