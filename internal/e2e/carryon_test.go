//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/revq/revq/internal/e2e/foreign"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/wire"
)

// A browser that finds the server full is told, and gets in by itself when a
// place is free.
func TestEventSourceWaitsForAPlace(t *testing.T) {
	t.Parallel()
	foreign.Chromium(t)
	const places = 3
	s := prepare(t, rabbittest.Shared(t))
	s.socket = s.startDaemon(t, "revq-socket", s.socketSockets, "--max-listeners", fmt.Sprint(places))
	s.socket.WaitReady(t)
	var others []*listener
	for range places {
		others = append(others, s.listen(t, "json"))
	}
	p := foreign.OpenScript(t, fmt.Sprintf(`
const events = new EventSource("http://%s/listen_results")
events.addEventListener("unavailable", e => report("events", "unavailable", e.data))
events.addEventListener("greeting", e => report("events", "greeting", e.data))`, s.socketSite))
	var problem wire.Problem
	if got := p.Next(t, foreign.Report{Kind: "unavailable"}); json.Unmarshal([]byte(got.Data), &problem) != nil || problem.Status != http.StatusServiceUnavailable {
		t.Errorf("the page was told %q", got.Data)
	}
	p.Next(t, foreign.Report{Kind: "unavailable"}) // again, by itself
	others[0].conn.Close()
	p.Next(t, foreign.Report{Kind: "greeting"})
}

// The functions that the documentation offers carry on where they were stopped,
// and when the server is restarted.
func TestDocumentedFunctionsCarryOn(t *testing.T) {
	t.Parallel()
	foreign.Chromium(t)
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
			p := foreign.OpenScript(t, functions+fmt.Sprintf(`
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
			p.Next(t, foreign.Report{Kind: "began"})
			sendAll := func(ids ...string) (all []string) {
				for _, id := range ids {
					send(t, s.apiSites[0], id, "abc")
				}
				return ids
			}
			s.socket.WaitState(t, "STATUS=ready; 1 listeners")
			var want []string
			want = append(want, sendAll("first", "stop")...)
			if mark := p.Next(t, foreign.Report{Kind: "stopped"}).Data; !strings.HasSuffix(mark, "/stop") {
				t.Errorf("stopped at %q", mark)
			}
			want = append(want, sendAll("meanwhile", "more")...)
			p.Release()
			p.Next(t, foreign.Report{Kind: "result", Data: "more"})

			s.socket.Terminate(t)
			want = append(want, sendAll("between")...)
			s.socket = s.startDaemon(t, "revq-socket", s.socketSockets)
			s.socket.WaitReady(t)
			want = append(want, sendAll("last")...)
			p.Next(t, foreign.Report{Kind: "result", Data: "last"})
			slices.Sort(want)
			got := slices.Sorted(slices.Values(p.Data(foreign.Report{Kind: "result"})))
			if !slices.Equal(got, want) {
				t.Errorf("the page got %v, want each of %v once", got, want)
			}
		})
	}
}
