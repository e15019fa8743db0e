//go:build linux

package e2e

import (
	"fmt"
	"slices"
	"testing"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/e2e/foreign"
	"github.com/revq/revq/internal/wire"
)

// page is a script that listens as any web page can, and reports everything that it receives, in
// order.
const page = `
const site = %q
const events = new EventSource("http://" + site + "/listen_results")
events.onopen = () => report("events", "open", "")
events.onerror = () => report("events", "error", "")
events.onmessage = e => report("events", "result", e.data)
events.addEventListener("greeting", e => report("events", "greeting", e.data))
events.addEventListener("gap", e => report("events", "gap", e.data))
const socket = new WebSocket("ws://" + site + "/listen_results")
socket.onmessage = e => report("socket", "message", e.data)
socket.onclose = e => report("socket", "close", e.code)
`

// In a real browser, EventSource resumes by itself when the socket server is
// restarted. It misses nothing, receives nothing twice, and is told of a gap.
func TestBrowser(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.startWorker(t, "--pause", "0s")

	p := foreign.OpenScript(t, fmt.Sprintf(page, s.socketSite))
	next := func(source, kind string) string {
		t.Helper()
		return p.Next(t, foreign.Report{Source: source, Kind: kind}).Data
	}
	results := func() (ids []string) { // as the EventSource received them
		for _, data := range p.Data(foreign.Report{Source: "events", Kind: "result"}) {
			ids = append(ids, parse(t, data).ID)
		}
		return ids
	}
	awaitResult := func(id string) {
		t.Helper()
		for !slices.Contains(results(), id) {
			next("events", "result")
		}
	}

	if m := parse(t, next("events", "greeting")); m.Text != wire.Greeting {
		t.Errorf("the page was greeted with %q", m.Text)
	}
	p.Has(t, foreign.Report{Source: "socket"})
	ids := names("before", 10)
	for _, id := range ids {
		send(t, s.apiSites[0], id, "abcdef")
	}
	awaitResult("before-9")
	p.Has(t, foreign.Report{Source: "socket", Data: "fedcba"})

	s.socket.Terminate(t)
	if got := next("socket", "close"); got != "1012" {
		t.Errorf("the websocket was closed with %s, want 1012", got)
	}
	for _, id := range names("meanwhile", 10) {
		ids = append(ids, id)
		send(t, s.apiSites[0], id, "abcdef")
	}
	s.socket = s.startDaemon(t, "revq-socket", s.socketSockets)
	s.socket.WaitReady(t)
	ids = append(ids, "after")
	send(t, s.apiSites[0], "after", "abcdef")
	awaitResult("after")
	slices.Sort(ids)
	got := slices.Sorted(slices.Values(results()))
	if !slices.Equal(got, ids) {
		t.Errorf("the page got the results %v, want each of %v once", got, ids)
	}

	ctx := await.Context(t)
	if _, err := s.node.Ctl(ctx, "delete_queue", "-p", s.vhost, "revq.results"); err != nil {
		t.Fatal(err)
	}
	send(t, s.apiSites[0], "again", "abcdef") // the worker declares the stream, which was deleted
	if m := parse(t, next("events", "gap")); m.Type != wire.TypeGap || m.Text == "" {
		t.Errorf("gap %+v", m)
	}
	awaitResult("again")
}
