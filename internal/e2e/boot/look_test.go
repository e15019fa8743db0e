//go:build linux

package boot

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/revq/revq/internal/await"
)

func (b *bootTest) status(t *testing.T) {
	for _, unit := range daemons {
		process := b.Property(t, unit, "MainPID")
		b.Run(t, "systemctl", "reload", unit)
		if now := b.Property(t, unit, "MainPID"); now != process {
			t.Errorf("%s has been restarted by a reload", unit)
		}
		text := b.Property(t, unit, "StatusText")
		t.Logf("%s: %s", unit, text)
		if !strings.HasPrefix(text, "ready") {
			t.Errorf("%s has the status %q, want ready", unit, text)
		}
	}
}

// lookAs runs revq status as a user who owns nothing, in a group.
func (b *bootTest) lookAs(t *testing.T, group string) (string, error) {
	t.Helper()
	return b.Try(t, "bash", "-c", "setpriv --reuid=65534 --regid=65534 --groups=$(getent group "+group+" | cut -d: -f3) revq status")
}

func (b *bootTest) look(t *testing.T) {
	seen := b.Run(t, "revq", "status")
	t.Log(seen)
	sockets := []string{"api@1", "api@2", "socket@3", "worker@1", "worker@2"}
	for _, name := range sockets {
		if !strings.Contains(seen, "/run/revq/"+name+".admin") {
			t.Errorf("revq status does not show %s", name)
		}
	}
	if out, err := b.lookAs(t, "revq-admin"); err != nil || !strings.HasPrefix(out, "well: ") {
		t.Errorf("for a member of the group: %v\n%s", err, out)
	}
	out, err := b.lookAs(t, "nogroup")
	if err == nil || !strings.Contains(out, "permission denied") || strings.Contains(out, "listeners") {
		t.Errorf("for another user: %v\n%s", err, out)
	}
	for _, name := range sockets {
		if mode := b.Run(t, "stat", "--format=%U %G %a", "/run/revq/"+name+".admin"); mode != "root revq-admin 660" {
			t.Errorf("the admin socket of %s is %s, want root revq-admin 660", name, mode)
		}
	}
}

func (b *bootTest) lookOnly(t *testing.T) {
	// A worker whose admin socket alone is there is started by the first look.
	b.Run(t, "systemctl", "start", "revq-admin-worker@4.socket")
	if out, err := b.Try(t, "revq", "status"); !strings.Contains(out, "/run/revq/worker@4.admin") {
		t.Errorf("the worker was not started: %v\n%s", err, out)
	}
	await.True(t, "the worker takes tasks", func() bool { return b.Property(t, "revq-worker@4", "ActiveState") == "active" })
	b.Run(t, "systemctl", "stop", "revq-worker@4", "revq-api@2")
	if out, err := b.Try(t, "revq", "status"); !strings.Contains(out, "/run/revq/api@1.admin") {
		t.Errorf("without the second API: %v\n%s", err, out)
	}
	for _, unit := range []string{"revq-worker@4.service", "revq-admin-worker@4.socket", "revq-api@2.service"} {
		if state := b.Property(t, unit, "ActiveState"); state != "inactive" {
			t.Errorf("%s is %s after a look, want inactive", unit, state)
		}
	}
	b.Run(t, "systemctl", "start", "revq-api@2")
	if out, err := b.Try(t, "revq", "status"); !strings.Contains(out, "/run/revq/api@2.admin") || strings.Contains(out, "worker@4") || !strings.HasPrefix(out, "well: ") {
		t.Errorf("after a new start of the API: %v\n%s", err, out)
	}
}

// metrics scrapes the address of revq-metrics, whose first request starts it.
func (b *bootTest) metrics(t *testing.T) {
	b.Run(t, "systemctl", "start", "revq-metrics.socket")
	page := b.Run(t, "curl", "--silent", "--show-error", "--fail", "--max-time", "20", "http://127.0.0.1:8090/metrics")
	for _, want := range []string{
		`revq_up{daemon="api@1"} 1`, `revq_up{daemon="api@2"} 1`, `revq_up{daemon="socket@3"} 1`, `revq_up{daemon="worker@1"} 1`, `revq_up{daemon="worker@2"} 1`,
		`revq_api_texts_total{result="accepted",daemon="api@1"} `, `revq_socket_listeners{format="text",daemon="socket@3"} `, `revq_worker_slots{queue="reverse_text",daemon="worker@2"} `,
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	if t.Failed() {
		t.Logf("%.4000s", page)
	}
	if state := b.Property(t, "revq-metrics.service", "ActiveState"); state != "active" {
		t.Errorf("revq-metrics.service is %s", state)
	}
	b.Run(t, "systemctl", "stop", "revq-metrics.socket", "revq-metrics.service")
}

// An entry is one of the journal.
type entry struct {
	Priority string `json:"PRIORITY"`
	Message  string `json:"MESSAGE"`
}

// said returns what the processes of a unit have written to the journal since
// its last start.
func (b *bootTest) said(t *testing.T, unit string) (entries []entry) {
	t.Helper()
	out := b.Run(t, "journalctl", "--no-pager", "--output=json", "_SYSTEMD_INVOCATION_ID="+b.Property(t, unit, "InvocationID"))
	for line := range strings.Lines(out) {
		var e entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		entries = append(entries, e)
	}
	return entries
}

func (b *bootTest) journal(t *testing.T) {
	for _, unit := range daemons {
		b.Run(t, "systemctl", "restart", unit)
		await.True(t, unit+" is ready", func() bool {
			return slices.ContainsFunc(b.said(t, unit), func(e entry) bool { return e == entry{"6", "level=INFO msg=ready"} })
		})
		entries := b.said(t, unit)
		t.Logf("%s: %q", unit, entries)
		news := 0
		for _, e := range entries {
			level := map[string]string{"level=INFO": "6", "level=WARN": "4"}
			if name, _, _ := strings.Cut(e.Message, " "); e.Priority != level[name] {
				t.Errorf("%s: %q has the priority %s", unit, e.Message, e.Priority)
			}
			if e.Priority == "6" {
				news++
			}
		}
		if news > 2 {
			t.Errorf("the start of %s is %d lines besides warnings, want 2 at most", unit, news)
		}
	}
}
