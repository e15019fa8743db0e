//go:build linux

package foreign

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
)

// Chromium returns the path of the browser, as Program does.
func Chromium(t *testing.T) string {
	t.Helper()
	return Program(t, "chromium")
}

// Open opens a page in a new profile of the browser, which ends with the test.
// It returns the profile's directory.
func Open(t *testing.T, chromium, url string, args ...string) (dir string) {
	t.Helper()
	group, dir := Group(t)
	cmd := exec.Command(chromium, append(args, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--user-data-dir="+dir, "--remote-debugging-port=0", url)...) // without the port it would end once the page is loaded
	cmd.Env = append(os.Environ(), "HOME="+dir)
	if _, err := group.Start(cmd); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A Report is something that a page received.
type Report struct{ Source, Kind, Data string }

// matches reports whether r is as want, whose empty fields match everything.
func (r Report) matches(want Report) bool {
	return (want.Source == "" || r.Source == want.Source) && (want.Kind == "" || r.Kind == want.Kind) && (want.Data == "" || r.Data == want.Data)
}

// A Page is one that is open in the browser.
type Page struct {
	Seen []Report // by Next and Has, in order

	reports  chan Report
	released chan struct{}
}

// OpenScript opens a page with a script, which may report something with the
// function report(source, kind, data). A GET of /wait is answered after
// Release.
func OpenScript(t *testing.T, script string) *Page {
	t.Helper()
	chromium := Chromium(t)
	p := &Page{reports: make(chan Report, 1000), released: make(chan struct{}, 1)}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/report":
			var got Report
			if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
				t.Errorf("report: %v", err)
			}
			p.reports <- got
		case "/wait":
			select {
			case <-p.released:
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
	Open(t, chromium, web.URL)
	return p
}

// Release answers a GET of /wait, or the next one.
func (p *Page) Release() { p.released <- struct{}{} }

// Next waits for the next report that is as want, whose empty fields match
// everything, and returns it.
func (p *Page) Next(t *testing.T, want Report) Report {
	t.Helper()
	for late := time.After(await.Patience); ; {
		select {
		case got := <-p.reports:
			if p.Seen = append(p.Seen, got); got.matches(want) {
				return got
			}
		case <-late:
			t.Fatalf("within %v, the page did not report %+v, but %v", await.Patience, want, p.Seen)
		}
	}
}

// Has is Next unless such a report has come already.
func (p *Page) Has(t *testing.T, want Report) {
	t.Helper()
	if !slices.ContainsFunc(p.Seen, func(r Report) bool { return r.matches(want) }) {
		p.Next(t, want)
	}
}

// Data returns the data of all reports that are as want and have been seen, in
// order.
func (p *Page) Data(want Report) []string {
	var all []string
	for _, r := range p.Seen {
		if r.matches(want) {
			all = append(all, r.Data)
		}
	}
	return all
}
