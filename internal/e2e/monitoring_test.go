//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/revq/revq/internal/admin"
	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/daemon/daemontest"
	"github.com/revq/revq/internal/proc"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/wire"
)

const monitoring = "../../systemd/monitoring/"

// A real Prometheus that scrapes one address sees all daemons of a host, also
// those that start later and those that hang. Each query of the dashboard
// returns data, and the alerts are evaluated.
func TestMonitoring(t *testing.T) {
	if testing.Short() {
		t.Skip("starts RabbitMQ")
	}
	t.Parallel()
	if _, err := exec.LookPath("prometheus"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%v: apt-get install prometheus", err)
		}
		t.Skip(err)
	}
	s, dir := prepare(t, rabbittest.Shared(t)), adminDir(t)
	s.api = s.startDaemon(t, "revq-api", s.apiSockets, "--admin", filepath.Join(dir, "api@1.admin"))
	s.socket = s.startDaemon(t, "revq-socket", s.socketSockets, "--admin", filepath.Join(dir, "socket@3.admin"))
	first := s.startWorker(t, "--pause", "0s", "--admin", filepath.Join(dir, "worker@1.admin"))
	s.awaitReadyz(t, http.StatusOK)
	address := gather(t, filepath.Join(dir, "*.admin"))
	p := startPrometheus(t, address)
	daemonOf := func(name string) string { return fmt.Sprintf("%q", filepath.Join(dir, name)) }
	listener := s.listen(t, wire.FormatJSON)
	for i := range 20 {
		send(t, s.apiSites[0], fmt.Sprintf("monitored-%d", i), "abc")
		listener.next(t)
	}
	p.await(t, `revq_worker_attempts_total{result="done"} == 20`)

	s.startWorker(t, "--pause", "0s", "--admin", filepath.Join(dir, "worker@2.admin"))
	t.Run("a daemon that has started is seen", func(t *testing.T) {
		p.await(t, "revq_up{daemon="+daemonOf("worker@2")+"} == 1")
		p.await(t, "sum(revq_worker_slots) == 20")
	})
	t.Run("each query of the dashboard returns data", func(t *testing.T) {
		for _, query := range dashboardQueries(t) {
			// Rates need two samples in their range.
			p.await(t, strings.ReplaceAll(query, "$__rate_interval", "1m"))
		}
	})
	t.Run("the alerts are evaluated", func(t *testing.T) {
		for _, rule := range p.rules(t) {
			if rule.Health != "ok" || rule.State != "inactive" {
				t.Errorf("%s is %s, %s %s; want ok, inactive", rule.Name, rule.Health, rule.State, rule.LastError)
			}
		}
	})
	t.Run("a daemon that hangs costs no more than its deadline", func(t *testing.T) {
		first.Signal(t, syscall.SIGSTOP)
		defer first.Signal(t, syscall.SIGCONT)
		page := get(t, address, admin.MetricsPath)
		if limit := admin.GatherPatience + 5*time.Second; page.took < admin.GatherPatience || page.took > limit {
			t.Errorf("the page took %v, want %v to %v", page.took, admin.GatherPatience, limit)
		}
		p.await(t, "revq_up{daemon="+daemonOf("worker@1")+"} == 0")
		p.await(t, "sum(revq_up) == 3")
		p.await(t, `ALERTS{alertname="RevqDaemonSilent",alertstate="pending"}`)
	})
	p.await(t, "sum(revq_up) == 4")
}

// gather starts revq metrics, as its unit does, and returns its address.
func gather(t *testing.T, sockets string, args ...string) string {
	t.Helper()
	ln, address := daemontest.Listen(t)
	daemontest.Start(t, daemontest.Config{
		Path: daemontest.Binary(t, "revq"), Args: append([]string{"metrics", "--admin", sockets}, args...),
		Sockets: []daemontest.Socket{ln}, Env: []string{"LISTEN_FDNAMES=revq-metrics"},
	})
	return address
}

// A page whose owner has pointed its name to this machine reads no metrics, as
// it reads nothing else of revq.
func TestMetricsOfPages(t *testing.T) {
	t.Parallel()
	address := gather(t, filepath.Join(t.TempDir(), "*.admin"), "--allow-host", "queue.example", "--allow-origin", "https://grafana.example")
	for _, tc := range []struct {
		name, host string
		header     []string // names and values
		status     int
		readable   string // for the page of this origin
	}{
		{"Prometheus", "queue.internal:8090", []string{"User-Agent", "Prometheus/2.42.0"}, http.StatusOK, ""},
		{"a browser", address, []string{"User-Agent", "Mozilla/5.0", "Accept-Language", "en"}, http.StatusOK, ""},
		{"a browser, by the name that is allowed", "queue.example:8090", []string{"User-Agent", "Mozilla/5.0"}, http.StatusOK, ""},
		{"rebinding", "evil.example:8090", []string{"Sec-Fetch-Site", "same-origin"}, http.StatusMisdirectedRequest, ""},
		{"rebinding without TLS", "evil.example:8090", []string{"User-Agent", "Mozilla/5.0"}, http.StatusMisdirectedRequest, ""},
		{"rebinding, under a false name", "evil.example:8090", []string{"User-Agent", "Prometheus/2.42.0", "Accept-Language", ""}, http.StatusMisdirectedRequest, ""},
		{"a page elsewhere", address, []string{"Origin", "https://evil.example"}, http.StatusForbidden, ""},
		{"an image elsewhere", address, []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "no-cors"}, http.StatusForbidden, ""},
		{"the page that is allowed", address, []string{"Origin", "https://grafana.example"}, http.StatusOK, "https://grafana.example"},
	} {
		a := request(t, http.MethodGet, address, admin.MetricsPath, "", append(tc.header, "Host", tc.host)...)
		if a.status != tc.status || a.header.Get("Access-Control-Allow-Origin") != tc.readable {
			t.Errorf("%s: %d %q, readable for %q; want %d, %q", tc.name, a.status, a.body, a.header.Get("Access-Control-Allow-Origin"), tc.status, tc.readable)
			continue
		}
		if tc.status != http.StatusOK {
			if err := checkProblem(a, tc.status); err != nil {
				t.Errorf("%s: %v", tc.name, err)
			}
		}
	}
}

// Metrics that the dashboard and the alerts name exist.
func TestMonitoringNames(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(metricsPage)
	if err != nil {
		t.Fatal(err)
	}
	known := make(map[string]bool)
	for _, row := range regexp.MustCompile("(?m)^\\| `(revq_\\w+)` \\|").FindAllStringSubmatch(string(page), -1) {
		known[row[1]] = true
	}
	alerts, err := os.ReadFile(monitoring + "alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	named := make(map[string]bool)
	for _, name := range regexp.MustCompile(`revq_\w+`).FindAllString(strings.Join(append(dashboardQueries(t), string(alerts)), "\n"), -1) {
		named[regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, "")] = true
	}
	if len(named) < 20 {
		t.Errorf("only %d metrics are named: %v", len(named), slices.Sorted(maps.Keys(named)))
	}
	for name := range named {
		if !known[name] {
			t.Errorf("%s is no metric of %s", name, metricsPage)
		}
	}
	for name := range known {
		if !named[name] {
			t.Logf("neither the dashboard nor an alert has %s", name)
		}
	}
}

// promtool has nothing to say against the alerts, and each comes when it should.
func TestAlerts(t *testing.T) {
	t.Parallel()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%v: apt-get install prometheus", err)
		}
		t.Skip(err)
	}
	for _, args := range [][]string{{"check", "rules", monitoring + "alerts.yml"}, {"test", "rules", monitoring + "alerts_test.yml"}} {
		if out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// dashboardQueries returns the queries of all panels.
func dashboardQueries(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(monitoring + "dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			ID      int
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	var queries []string
	ids := make(map[int]bool)
	for _, panel := range dashboard.Panels {
		if ids[panel.ID] {
			t.Errorf("two panels have the id %d; one is %s", panel.ID, panel.Title)
		}
		ids[panel.ID] = true
		for _, target := range panel.Targets {
			queries = append(queries, target.Expr)
		}
	}
	if len(queries) < 20 {
		t.Fatalf("the dashboard has %d queries", len(queries))
	}
	return queries
}

// A prometheus is a running Prometheus.
type prometheus struct{ address string }

// startPrometheus starts a Prometheus with revq's alerts that scrapes the
// address every few seconds, which is longer than a daemon may take.
func startPrometheus(t *testing.T, target string) *prometheus {
	t.Helper()
	dir := t.TempDir()
	alerts, err := filepath.Abs(monitoring + "alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`global: {scrape_interval: 4s, scrape_timeout: 4s, evaluation_interval: 1s}
rule_files: [%s]
scrape_configs: [{job_name: revq, static_configs: [{targets: ['%s']}]}]
`, alerts, target)
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	ln, address := daemontest.Listen(t)
	ln.Close() // Prometheus opens its port by itself
	cmd := exec.Command("prometheus", "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address, "--log.level=warn")
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	process, err := proc.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		process.Kill()
		if t.Failed() {
			t.Logf("Prometheus:\n%s", log.String())
		}
	})
	p := &prometheus{address}
	await.True(t, "Prometheus answers", func() bool {
		res, err := httpClient.Get("http://" + address + "/-/ready")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	return p
}

// ask decodes the data of an answer of Prometheus's API.
func (p *prometheus) ask(t *testing.T, path string, data any) {
	t.Helper()
	answer := get(t, p.address, "/api/v1/"+path)
	wrapped := struct {
		Status, Error string
		Data          any
	}{Data: data}
	if err := json.Unmarshal([]byte(answer.body), &wrapped); err != nil || wrapped.Status != "success" {
		t.Fatalf("%s: %v, %s", path, err, answer.body)
	}
}

// await waits until a query has a result.
func (p *prometheus) await(t *testing.T, query string) {
	t.Helper()
	await.True(t, query+" has a result", func() bool {
		var data struct{ Result []json.RawMessage }
		p.ask(t, "query?query="+url.QueryEscape(query), &data)
		return len(data.Result) > 0
	})
}

// A rule is what Prometheus says of an alert.
type rule struct{ Name, State, Health, LastError string }

// rules returns all alerts, once they have been evaluated.
func (p *prometheus) rules(t *testing.T) []rule {
	t.Helper()
	var rules []rule
	await.True(t, "all rules are evaluated", func() bool {
		var data struct{ Groups []struct{ Rules []rule } }
		p.ask(t, "rules", &data)
		rules = data.Groups[0].Rules
		return !slices.ContainsFunc(rules, func(r rule) bool { return r.Health == "unknown" })
	})
	return rules
}
