//go:build linux

package e2e

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/revq/revq/internal/wire"
)

const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// postTraced posts a body with traceparent headers.
func (s *system) postTraced(t *testing.T, contentType, body string, traceparents ...string) {
	t.Helper()
	header := []string{"Content-Type", contentType}
	for _, traceparent := range traceparents {
		header = append(header, wire.TraceparentHeader, traceparent)
	}
	if a := request(t, http.MethodPost, s.apiSites[0], wire.QueuePath, body, header...); a.status != http.StatusAccepted {
		t.Fatalf("POST: %d %s", a.status, a.body)
	}
}

// A traceparent goes from the POST to the handler, through a retry, and to the
// listeners, also of a task that is given up; a wrong one goes nowhere.
func TestTraceparent(t *testing.T) {
	t.Parallel()
	s := start(t)
	// It answers with its TRACEPARENT at the second attempt.
	s.startWorker(t, "--", "/bin/sh", "-c", `case $(cat) in bad) exit 65; esac; [ "$REVQ_ATTEMPT" -gt 1 ] || exit 1; printf %s "${TRACEPARENT-none}"`)
	l := s.listen(t, "json")
	events := s.events(t, "")
	for _, tc := range []struct {
		what, body string
		headers    []string
		want       string
		kind       string
	}{
		{"a good one", "good", []string{traceparent}, traceparent, wire.TypeResult},
		{"of a later version", "good", []string{"01" + traceparent[2:] + "-more"}, traceparent, wire.TypeResult},
		{"none", "good", nil, "", wire.TypeResult},
		{"a wrong one", "good", []string{traceparent + "0"}, "", wire.TypeResult},
		{"two", "good", []string{traceparent, traceparent}, "", wire.TypeResult},
		{"of a task that is given up", "bad", []string{traceparent}, traceparent, wire.TypeFailed},
	} {
		s.postTraced(t, "text/plain", tc.body, tc.headers...)
		m := parse(t, l.next(t))
		if m.Type != tc.kind || m.Traceparent != tc.want {
			t.Errorf("%s: got %+v, want the traceparent %q", tc.what, m, tc.want)
		}
		if said := strings.TrimPrefix(m.Text, "none"); tc.kind == wire.TypeResult && said != tc.want {
			t.Errorf("%s: the handler got %q", tc.what, m.Text)
		}
		for { // the first event is the greeting
			if _, e := events(); e.ID == m.ID {
				if e.Traceparent != tc.want {
					t.Errorf("%s: the event is %+v", tc.what, e)
				}
				break
			}
		}
	}
}

// A persistent program gets the traceparent of each line of a batch.
func TestTraceparentOfABatch(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.startWorker(t, "--handler", "persistent", "--concurrency", "1", "--", "python3", "-c", `
import json, sys
print('{"revq":1}', flush=True)
sys.stdin.readline()
for line in sys.stdin:
    task = json.loads(line)
    print(json.dumps({"id": task["id"], "text": json.dumps(task.get("traceparent"))}), flush=True)
`)
	l := s.listen(t, "json")
	s.postTraced(t, "application/x-ndjson", strings.Repeat(`{"text":"a"}`+"\n", 60), traceparent)
	s.postTraced(t, "application/x-ndjson", strings.Repeat(`{"text":"a"}`+"\n", 60))
	with := 0
	for range 120 {
		m := l.nextResult(t)
		want, err := json.Marshal(m.Traceparent)
		if err != nil {
			t.Fatal(err)
		}
		if m.Traceparent == traceparent {
			with++
		} else {
			want = []byte("null")
		}
		if m.Text != string(want) {
			t.Errorf("the program got %s, the listener %q", m.Text, m.Traceparent)
		}
	}
	if with != 60 {
		t.Errorf("%d results have the traceparent, want 60", with)
	}
}
