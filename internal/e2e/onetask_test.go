//go:build linux

package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// onePage is a script that listens to one task, and to a queue that has no results, and reports
// the state of each EventSource when it changes.
const onePage = `
function listen(source, query) {
	const events = new EventSource("http://%s/listen_results?" + query)
	events.onopen = () => report(source, "open", "")
	events.onerror = () => report(source, "error", events.readyState)
	events.onmessage = e => report(source, "result", JSON.parse(e.data).text)
}
listen("one", "id=mine")
listen("queue", "queue=reverse_text")
listen("none", "queue=none")
`

// In a real browser, an EventSource for one task stops by itself after the
// task's last message, and one for a queue gets that queue's results.
func TestBrowserListensToOneTask(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.startWorker(t, "--pause", "0s")
	reports, _ := openPage(t, fmt.Sprintf(onePage, s.socketSite))
	var seen []report
	await := func(what func(report) bool) {
		t.Helper()
		for late := time.After(patience); !slices.ContainsFunc(seen, what); {
			select {
			case got := <-reports:
				seen = append(seen, got)
			case <-late:
				t.Fatalf("it did not come within %v; the page got %v", patience, seen)
			}
		}
	}
	for _, source := range []string{"one", "queue", "none"} {
		await(func(r report) bool { return r.Source == source && r.Kind == "open" })
	}
	send(t, s.apiSites[0], "other", "rehto")
	send(t, s.apiSites[0], "mine", "enim")
	await(func(r report) bool { return r == report{"one", "result", "mine"} })
	await(func(r report) bool { return r == report{"one", "error", "2"} }) // CLOSED, after one reconnect
	send(t, s.apiSites[0], "later", "retal")
	await(func(r report) bool { return r == report{"queue", "result", "later"} })
	var one, queue, none []string
	for _, r := range seen {
		switch {
		case r.Kind != "result":
		case r.Source == "one":
			one = append(one, r.Data)
		case r.Source == "queue":
			queue = append(queue, r.Data)
		default:
			none = append(none, r.Data)
		}
	}
	slices.Sort(queue)
	if !slices.Equal(one, []string{"mine"}) || !slices.Equal(queue, []string{"later", "mine", "other"}) || len(none) > 0 {
		t.Errorf("the page got %v, %v and %v", one, queue, none)
	}
}
