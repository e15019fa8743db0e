//go:build linux

package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/token"
	"github.com/revq/revq/internal/wire/wiretest"
)

// The real servers answer as the OpenAPI document says, with tokens and without.
func TestOpenAPI(t *testing.T) {
	t.Parallel()
	doc := wiretest.Open(t)
	secret, hash := token.New()
	file := filepath.Join(t.TempDir(), "tokens")
	line := token.Grant{Scope: token.Send | token.Listen, Queues: token.Queues{"reverse_text"}}.Line(hash)
	if err := os.WriteFile(file, []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	open, closed := start(t), prepare(t, rabbittest.Shared(t))
	closed.api = closed.startDaemon(t, "revq-api", closed.apiSockets, "--tokens", file)
	closed.socket = closed.startDaemon(t, "revq-socket", closed.socketSockets, "--tokens", file)
	open.startWorker(t, "--pause", "0s")
	closed.awaitReadyz(t, http.StatusOK)
	long := strings.Repeat("x", 70_000)
	for _, tc := range []struct {
		s            *system
		method, path string // as the document writes it
		at           string // its parameters, if it has some
		header, body string // NAME: VALUE, with semicolons between them
		status       int
	}{
		{open, "POST", "/queue_reverse_text", "", "Content-Type: application/x-www-form-urlencoded", "text=abc", 202},
		{open, "POST", "/queue_reverse_text", "", "Content-Type: text/plain", "abc", 202},
		{open, "POST", "/queue_reverse_text", "", "Content-Type: application/json; Accept: application/json", `{"text":"abc","id":"an-id","delay":0.1,"expires":"2h"}`, 202},
		{open, "POST", "/queue/{name}", "/queue/reverse_text", "Content-Type: application/x-ndjson", `{"text":"abc"}` + "\n" + `{"text":"abc","id":"batch"}`, 202},
		{open, "POST", "/queue/{name}", "/queue/reverse_text", "Content-Type: application/x-ndjson", `{"text":"abc","id":"one"}` + "\n" + `{"text":"other","id":"one"}`, 207},
		{open, "POST", "/queue/{name}", "/queue/reverse_text", "Content-Type: application/x-ndjson", `{"text":""}`, 400},
		{open, "POST", "/queue/{name}", "/queue/reverse_text", "Content-Type: application/x-ndjson", `{"text":"` + long + `"}`, 413},
		{open, "POST", "/queue/{name}", "/queue/none", "Content-Type: application/x-ndjson", `{"text":"abc"}`, 404},
		{open, "POST", "/queue/{name}", "/queue/none", "Content-Type: text/plain", "abc", 404},
		{open, "POST", "/queue/{name}", "/queue/None", "Content-Type: text/plain", "abc", 404},
		{open, "POST", "/queue_reverse_text", "", "Content-Type: text/plain", "", 400},
		{open, "POST", "/queue_reverse_text", "", "Content-Type: text/plain; Origin: https://example.org", "abc", 403},
		{open, "POST", "/queue_reverse_text", "", "Content-Type: text/plain", long, 413},
		{open, "POST", "/queue_reverse_text", "", "Content-Type: image/png", "abc", 415},
		{open, "GET", "/queue_reverse_text", "", "", "", 405},
		{open, "GET", "/healthz", "", "", "", 200},
		{open, "HEAD", "/healthz", "", "", "", 200},
		{open, "GET", "/readyz", "", "", "", 200},
		{open, "HEAD", "/readyz", "", "", "", 200},
		{open, "GET", "/", "", "", "", 200},
		{open, "HEAD", "/", "", "", "", 200},
		{open, "GET", "/listen_results", "", "", "", 426},
		{open, "GET", "/listen_results", "/listen_results?format=xml", "", "", 400},
		{open, "GET", "/listen_results", "", "Accept: text/event-stream; Last-Event-ID: end", "", 204},
		{open, "GET", "/results/{id}", "/results/an-id?wait=30s", "", "", 200},
		{open, "GET", "/results/{id}", "/results/none", "", "", 404},
		{open, "GET", "/results/{id}", "/results/%00", "", "", 400},
		{open, "POST", "/ticket", "", "", "", 404},
		{closed, "POST", "/queue_reverse_text", "", "Content-Type: text/plain", "abc", 401},
		{closed, "POST", "/queue/{name}", "/queue/other", "Content-Type: text/plain; Authorization: Bearer " + secret, "abc", 403},
		{closed, "GET", "/listen_results", "", "Accept: text/event-stream", "", 401},
		{closed, "GET", "/results/{id}", "/results/an-id", "Authorization: Bearer wrong", "", 401},
		{closed, "POST", "/ticket", "", "", "", 401},
		{closed, "POST", "/ticket", "", "Authorization: Bearer " + secret, "", 200},
	} {
		site := tc.s.socketSite
		if strings.HasPrefix(tc.path, "/queue") {
			site = tc.s.apiSites[0]
		}
		at := tc.at
		if at == "" {
			at = tc.path
		}
		var header []string
		for line := range strings.SplitSeq(tc.header, "; ") {
			if name, value, ok := strings.Cut(line, ": "); ok {
				header = append(header, name, value)
			}
		}
		a := request(t, tc.method, site, at, tc.body, header...)
		what := tc.method + " " + at + " " + tc.header
		if a.status != tc.status {
			t.Errorf("%s: %d %.300s, want %d", what, a.status, a.body, tc.status)
		}
		if err := doc.CheckAnswer(t, tc.method, tc.path, a.status, a.header, []byte(a.body)); err != nil {
			t.Errorf("%s: %d %.300s: %v", what, a.status, a.body, err)
		}
	}
}
