//go:build linux

package e2e

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/revq/revq/internal/admin"
	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/wire"
)

var updateMetrics = flag.Bool("metrics.update", false, "write the table of metrics to "+metricsPage)

const (
	metricsPage  = "../admin/README.md"
	metricsBegin = "<!-- metrics -->\n"
	metricsEnd   = "<!-- end of metrics -->\n"
)

// A metric is one as a program shows it.
type metric struct {
	kind, help string
	labels     map[string]bool
	programs   []string
}

// The table of metrics in the documentation is what the programs show, and
// promtool has nothing to say about it. Each metric is there from the start, so
// that an alert on it can tell "never" from "unknown".
func TestMetrics(t *testing.T) {
	if testing.Short() {
		t.Skip("starts RabbitMQ")
	}
	s, dir := prepare(t, rabbittest.Shared(t)), adminDir(t)
	s.startSeen(t, dir)
	all := make(map[string]*metric)
	for program := range strings.FieldsSeq("revq-api revq-socket revq-worker") {
		page := scrape(t, filepath.Join(dir, program))
		lint(t, program, page)
		readMetrics(t, all, program, page)
	}
	// What all daemons show, revq metrics shows again; only one is its own.
	gathered := get(t, gather(t, filepath.Join(dir, "*")), admin.MetricsPath).body
	lint(t, "revq metrics", gathered)
	readMetrics(t, all, "revq-metrics", strings.Join(regexp.MustCompile(`(?m)^.*\brevq_up\b.*$`).FindAllString(gathered, -1), "\n"))
	var table strings.Builder
	table.WriteString("| metric | type | labels | of revq- | what it says |\n|---|---|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(all)) {
		m := all[name]
		labels := strings.Join(slices.Sorted(maps.Keys(m.labels)), ", ")
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s | %s |\n", name, m.kind, labels, strings.Join(m.programs, ", "), m.help)
	}
	page, err := os.ReadFile(metricsPage)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(page), metricsBegin)
	is, after, closed := strings.Cut(rest, metricsEnd)
	if !found || !closed {
		t.Fatalf("%s has no place for the metrics", metricsPage)
	}
	if *updateMetrics {
		if err := os.WriteFile(metricsPage, []byte(before+metricsBegin+table.String()+metricsEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if is != table.String() {
		t.Errorf("%s has other metrics than the programs; run this test with -metrics.update. The programs have:\n%s", metricsPage, table.String())
	}
}

// What the daemons count is what happens: each figure is that of one task that
// was posted, handled and sent to one listener.
func TestMetricsCount(t *testing.T) {
	if testing.Short() {
		t.Skip("starts RabbitMQ")
	}
	s, dir := prepare(t, rabbittest.Shared(t)), adminDir(t)
	s.startSeen(t, dir)
	listener := s.listen(t, wire.FormatText)
	send(t, s.apiSites[0], "a", "abc")
	listener.next(t)
	for name, want := range map[string][]string{
		"revq-api": {
			`revq_api_texts_total{result="accepted"} 1`, `revq_publisher_confirm_seconds_count{kind="task"} 1`,
			`revq_broker_connected{connection="publisher 1"} 1`, `revq_queue_consumers{queue="revq.tasks"} 1`, "revq_ready 1",
		},
		"revq-worker": {
			`revq_worker_attempts_total{queue="reverse_text",result="done"} 1`, `revq_worker_wait_seconds_count{queue="reverse_text"} 1`,
			`revq_worker_handling_seconds_count{queue="reverse_text"} 1`, `revq_publisher_messages_total{kind="results",result="confirmed"} 1`,
		},
		"revq-socket": {
			`revq_socket_listeners{format="text"} 1`, "revq_feed_results_total 1", "revq_socket_delivery_seconds_count 1", "revq_feed_gaps_total 0",
		},
	} {
		for _, line := range want {
			await.True(t, name+" shows "+line, func() bool { return strings.Contains(scrape(t, filepath.Join(dir, name)), "\n"+line+"\n") })
		}
	}
}

// startSeen starts a system with one worker, whose admin sockets in dir are
// called as the programs.
func (s *system) startSeen(t *testing.T, dir string) {
	t.Helper()
	s.api = s.startDaemon(t, "revq-api", s.apiSockets, "--admin", filepath.Join(dir, "revq-api"))
	s.socket = s.startDaemon(t, "revq-socket", s.socketSockets, "--admin", filepath.Join(dir, "revq-socket"))
	s.startWorker(t, "--pause", "0s", "--admin", filepath.Join(dir, "revq-worker"))
	s.awaitReadyz(t, http.StatusOK)
}

// adminDir returns a directory whose name is short enough for a socket in it.
func adminDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "revq-admin-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// scrape returns what the daemon with the admin socket at path shows.
func scrape(t *testing.T, path string) string {
	t.Helper()
	client := http.Client{Timeout: await.Patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) },
	}}
	answer, err := client.Get("http://admin" + admin.MetricsPath)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("status %d, %v", answer.StatusCode, err)
	}
	return string(body)
}

// lint has promtool check a page of metrics, where it is installed.
func lint(t *testing.T, program, page string) {
	t.Helper()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Log("promtool is not installed: install prometheus")
		return
	}
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(page)
	if out, err := cmd.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("promtool about %s: %v\n%s", program, err, out)
	}
}

var (
	metricHead   = regexp.MustCompile(`^# (HELP|TYPE) (revq_\w+) (.*)$`)
	metricSample = regexp.MustCompile(`^(revq_\w+?)(?:_bucket|_sum|_count)?(?:\{(.*)\})? `)
	metricLabel  = regexp.MustCompile(`(\w+)="`)
)

// readMetrics adds revq's own metrics of a page to all.
func readMetrics(t *testing.T, all map[string]*metric, program, page string) {
	t.Helper()
	seen := make(map[string]bool)
	for line := range strings.Lines(page) {
		line = strings.TrimSuffix(line, "\n")
		if head := metricHead.FindStringSubmatch(line); head != nil {
			m := all[head[2]]
			if m == nil {
				m = &metric{labels: make(map[string]bool)}
				all[head[2]] = m
			}
			if short := strings.TrimPrefix(program, "revq-"); !slices.Contains(m.programs, short) {
				m.programs = append(m.programs, short)
			}
			is := &m.help
			if head[1] == "TYPE" {
				is = &m.kind
			}
			if *is = cmp.Or(*is, head[3]); *is != head[3] {
				t.Errorf("%s of %s: %s says %q, and another program %q", head[1], head[2], program, head[3], *is)
			}
			continue
		}
		sample := metricSample.FindStringSubmatch(line)
		if sample == nil {
			continue
		}
		name := sample[1]
		if m := all[name]; m == nil {
			t.Errorf("%s has no help: %s", name, line)
			continue
		}
		seen[name] = true
		for _, label := range metricLabel.FindAllStringSubmatch(sample[2], -1) {
			if label[1] != "le" {
				all[name].labels[label[1]] = true
			}
		}
	}
	for name, m := range all {
		if slices.Contains(m.programs, strings.TrimPrefix(program, "revq-")) && !seen[name] {
			t.Errorf("%s shows no value of %s", program, name)
		}
	}
}
