//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/wire"
)

// openPage opens a page with a script in Chromium, and returns what it reports,
// with the function report(source, kind, data). A GET of /wait is answered when
// something comes of the second channel.
func openPage(t *testing.T, script string) (<-chan report, chan<- struct{}) {
	t.Helper()
	browser := findBrowser(t)
	reports, released := make(chan report, 1000), make(chan struct{})
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/report":
			var got report
			if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
				t.Errorf("report: %v", err)
			}
			reports <- got
		case "/wait":
			select {
			case <-released:
			case <-r.Context().Done():
			}
		case "/":
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprintf(w, `<!doctype html><title>revq</title><script>
let last = Promise.resolve()
function report(source, kind, data) {
	last = last.then(() => fetch("/report", {method: "POST", body: JSON.stringify({source, kind, data: String(data)})}))
}
%s
</script>`, script)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(web.Close)
	startBrowser(t, browser, web.URL)
	return reports, released
}

func awaitReport(t *testing.T, reports <-chan report, kind string) report {
	t.Helper()
	var seen []report
	for late := time.After(patience); ; {
		select {
		case got := <-reports:
			if seen = append(seen, got); got.Kind == kind {
				return got
			}
		case <-late:
			t.Fatalf("no %s came within %v; the page got %v", kind, patience, seen)
		}
	}
}

// A browser that finds the server full is told, and gets in by itself when a
// place is free.
func TestEventSourceWaitsForAPlace(t *testing.T) {
	t.Parallel()
	findBrowser(t)
	const places = 3
	s := prepare(t, rabbittest.Node(t))
	s.socket = s.startDaemon(t, "revq-socket", s.socketSockets, "--max-listeners", fmt.Sprint(places))
	s.socket.WaitReady(t)
	var others []*listener
	for range places {
		others = append(others, s.listen(t, "json"))
	}
	reports, _ := openPage(t, fmt.Sprintf(`
const events = new EventSource("http://%s/listen_results")
events.addEventListener("unavailable", e => report("events", "unavailable", e.data))
events.addEventListener("greeting", e => report("events", "greeting", e.data))`, s.socketSite))
	var p wire.Problem
	if got := awaitReport(t, reports, "unavailable"); json.Unmarshal([]byte(got.Data), &p) != nil || p.Status != http.StatusServiceUnavailable {
		t.Errorf("the page was told %q", got.Data)
	}
	awaitReport(t, reports, "unavailable") // again, by itself
	others[0].conn.Close()
	awaitReport(t, reports, "greeting")
}

// The functions that the documentation offers carry on where they were stopped,
// and when the server is restarted.
func TestDocumentedFunctionsCarryOn(t *testing.T) {
	t.Parallel()
	findBrowser(t)
	doc, err := os.ReadFile("../socket/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(doc), "<!-- test -->\n```js\n")
	functions, _, ok := strings.Cut(after, "\nconst stop = ")
	if !ok {
		t.Fatal("the documentation has no functions")
	}
	for source, call := range map[string]string{"events": "listenEvents, 'http://%s'", "socket": "listenSocket, 'ws://%s'"} {
		t.Run(source, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			s.startWorker(t, "--pause", "0s")
			s.awaitReadyz(t, http.StatusOK)
			reports, released := openPage(t, functions+fmt.Sprintf(`
async function run(listen, site) {
	let stop
	async function receive(m) {
		report("", "result", m.id)
		if (m.id != "stop") return
		const mark = stop()
		report("", "stopped", mark)
		await fetch("/wait")
		stop = listen(site, receive, mark)
	}
	stop = listen(site, receive)
	report("", "began", "")
}
run(%s)`, fmt.Sprintf(call, s.socketSite)))
			var got []string
			await := func(kind, data string) string {
				t.Helper()
				for {
					select {
					case r := <-reports:
						if r.Kind == "result" {
							got = append(got, r.Data)
						}
						if r.Kind == kind && (data == "" || data == r.Data) {
							return r.Data
						}
					case <-time.After(patience):
						t.Fatalf("no %s %s came within %v, but %v", kind, data, patience, got)
					}
				}
			}
			await("began", "")
			sendAll := func(ids ...string) (all []string) {
				for _, id := range ids {
					send(t, s.apiSites[0], id, "abc")
				}
				return ids
			}
			s.socket.WaitState(t, "STATUS=ready; 1 listeners")
			var want []string
			want = append(want, sendAll("first", "stop")...)
			if mark := await("stopped", ""); !strings.HasSuffix(mark, "/stop") {
				t.Errorf("stopped at %q", mark)
			}
			want = append(want, sendAll("meanwhile", "more")...)
			released <- struct{}{}
			await("result", "more")

			s.socket.Terminate(t)
			want = append(want, sendAll("between")...)
			s.socket = s.startDaemon(t, "revq-socket", s.socketSockets)
			s.socket.WaitReady(t)
			want = append(want, sendAll("last")...)
			await("result", "last")
			slices.Sort(want)
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Errorf("the page got %v, want each of %v once", got, want)
			}
		})
	}
}
