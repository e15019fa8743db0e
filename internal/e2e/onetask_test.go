//go:build linux

package e2e

import (
	"fmt"
	"slices"
	"testing"

	"github.com/revq/revq/internal/e2e/foreign"
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
	p := foreign.OpenScript(t, fmt.Sprintf(onePage, s.socketSite))
	for _, source := range []string{"one", "queue", "none"} {
		p.Has(t, foreign.Report{Source: source, Kind: "open"})
	}
	send(t, s.apiSites[0], "other", "rehto")
	send(t, s.apiSites[0], "mine", "enim")
	p.Has(t, foreign.Report{Source: "one", Kind: "result", Data: "mine"})
	p.Has(t, foreign.Report{Source: "one", Kind: "error", Data: "2"}) // CLOSED, after one reconnect
	send(t, s.apiSites[0], "later", "retal")
	p.Has(t, foreign.Report{Source: "queue", Kind: "result", Data: "later"})
	results := func(source string) []string { return p.Data(foreign.Report{Source: source, Kind: "result"}) }
	one, queue, none := results("one"), results("queue"), results("none")
	slices.Sort(queue)
	if !slices.Equal(one, []string{"mine"}) || !slices.Equal(queue, []string{"later", "mine", "other"}) || len(none) > 0 {
		t.Errorf("the page got %v, %v and %v", one, queue, none)
	}
}
