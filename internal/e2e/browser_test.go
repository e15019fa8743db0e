//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/revq/revq/internal/proc"
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

// A report is something that the page received.
type report struct{ Source, Kind, Data string }

// In a real browser, EventSource resumes by itself when the socket server is
// restarted. It misses nothing, receives nothing twice, and is told of a gap.
func TestBrowser(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.startWorker(t, "--pause", "0s")

	reports, _ := openPage(t, fmt.Sprintf(page, s.socketSite))

	var results []string // ids, as the EventSource received them
	var seen []report
	await := func(source, kind string) report {
		t.Helper()
		for late := time.After(patience); ; {
			select {
			case got := <-reports:
				seen = append(seen, got)
				if got.Source == "events" && got.Kind == "result" {
					results = append(results, parse(t, got.Data).ID)
				}
				if got.Source == source && got.Kind == kind {
					return got
				}
			case <-late:
				t.Fatalf("no %s came to %s within %v; the page got %v", kind, source, patience, seen)
			}
		}
	}
	awaitResult := func(id string) {
		t.Helper()
		for !slices.Contains(results, id) {
			await("events", "result")
		}
	}

	if m := parse(t, await("events", "greeting").Data); m.Text != wire.Greeting {
		t.Errorf("the page was greeted with %q", m.Text)
	}
	if !slices.ContainsFunc(seen, func(r report) bool { return r.Source == "socket" }) {
		await("socket", "message")
	}
	ids := names("before", 10)
	for _, id := range ids {
		send(t, s.apiSites[0], id, "abcdef")
	}
	awaitResult("before-9")
	for !slices.ContainsFunc(seen, func(r report) bool { return r.Source == "socket" && r.Data == "fedcba" }) {
		await("socket", "message")
	}

	s.socket.Terminate(t)
	if got := await("socket", "close"); got.Data != "1012" {
		t.Errorf("the websocket was closed with %s, want 1012", got.Data)
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
	got := slices.Sorted(slices.Values(results))
	if !slices.Equal(got, ids) {
		t.Errorf("the page got the results %v, want each of %v once", got, ids)
	}

	ctx, cancel := timeout(t)
	defer cancel()
	if _, err := s.node.Ctl(ctx, "delete_queue", "-p", s.vhost, "revq.results"); err != nil {
		t.Fatal(err)
	}
	send(t, s.apiSites[0], "again", "abcdef") // the worker declares the stream, which was deleted
	if m := parse(t, await("events", "gap").Data); m.Type != wire.TypeGap || m.Text == "" {
		t.Errorf("gap %+v", m)
	}
	awaitResult("again")
}

// findBrowser returns the path of Chromium. It skips the test if there is none.
func findBrowser(t *testing.T) string {
	t.Helper()
	return findProgram(t, "chromium")
}

// findProgram returns the path of a program that is no part of revq. It skips
// the test if there is none.
func findProgram(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) {
		path, err = exec.LookPath("/usr/sbin/" + name) // Debian has servers there, and not every user has it in the PATH
	}
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist) && os.Getenv("CI") == "":
		t.Skipf("install %s to see what it does: %v", name, err)
	default:
		t.Fatal(err)
	}
	return path
}

// newGroup returns a group for other programs, which end with the test, and a
// directory for them.
func newGroup(t *testing.T) (*proc.Group, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "revq-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	group, err := proc.NewGroup(dir)
	if err != nil {
		t.Fatal(errors.Join(err, os.RemoveAll(dir)))
	}
	t.Cleanup(func() {
		if err := group.Close(); err != nil {
			t.Error(err)
		}
	})
	return group, dir
}

// startBrowser opens a page in a new profile of the browser, which ends with
// the test.
func startBrowser(t *testing.T, path, url string, args ...string) {
	t.Helper()
	group, dir := newGroup(t)
	cmd := exec.Command(path, append(args, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--user-data-dir="+dir, "--remote-debugging-port=0", url)...) // without the port it would end once the page is loaded
	cmd.Env = append(os.Environ(), "HOME="+dir)
	if _, err := group.Start(cmd); err != nil {
		t.Fatal(err)
	}
}
