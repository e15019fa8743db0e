//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/e2e/foreign"
	"github.com/revq/revq/internal/rabbit/rabbittest"
)

// trickPage does whatever a page can do to have texts queued and to listen.
// Each request has its name as the query.
const trickPage = `<!doctype html><title>revq</title>
<iframe name="sink"></iframe><iframe name="sink2"></iframe>
<form id="form" method="post" target="sink"><input name="text" value="form"></form>
<form id="form-plain" method="post" target="sink2" enctype="text/plain"><input name="text" value="form-plain"></form>
<script>
const site = %q
const queue = name => "http://" + site + "/queue_reverse_text?" + name
const listen = name => "//" + site + "/listen_results?" + name
function report(source, kind, data) {
	fetch("/report", {method: "POST", body: JSON.stringify({source, kind, data: String(data)})})
}
function read(name, options) {
	fetch(queue(name), options).then(
		async r => report(name, "answer", r.status + " " + r.headers.get("Revq-Task-Id") + " " + await r.text()),
		() => report(name, "error", ""))
}
for (const form of document.forms) {
	form.action = queue(form.id)
	form.submit()
}
read("fetch", {method: "POST", body: "fetch"})
read("fetch-json", {method: "POST", body: '{"text": "fetch-json"}', headers: {"Content-Type": "application/json", "Idempotency-Key": "json-1"}})
read("fetch-nothing", {method: "POST", body: ""})
fetch(queue("no-cors"), {method: "POST", mode: "no-cors", body: "no-cors"})
navigator.sendBeacon(queue("beacon"), "beacon")
const socket = new WebSocket("ws:" + listen("socket"))
socket.onmessage = e => report("socket", "message", e.data)
socket.onerror = () => report("socket", "error", "")
const events = new EventSource("http:" + listen("events"))
events.onmessage = e => report("events", "message", JSON.parse(e.data).text)
events.onerror = () => report("events", "error", "")
fetch("http:" + listen("fetch-events"), {headers: {Accept: "text/event-stream", "Last-Event-ID": "-1"}}).then(
	r => report("fetch-events", "answer", r.status), () => report("fetch-events", "error", ""))
</script>`

// A trickSite serves trickPage, and hands what it asks for to a system, as DNS
// that was made to point there does.
type trickSite struct {
	port    string
	answers chan string // METHOD NAME STATUS
	reports chan foreign.Report
}

// startTrickSite starts a site whose page asks the site itself, under the name
// host.
func startTrickSite(t *testing.T, s *system, host string) *trickSite {
	t.Helper()
	site := &trickSite{answers: make(chan string, 100), reports: make(chan foreign.Report, 1000)}
	proxy := &httputil.ReverseProxy{
		ErrorLog: log.New(io.Discard, "", 0), // of connections that end with the browser
		Rewrite: func(r *httputil.ProxyRequest) {
			target := s.apiSites[0]
			if strings.HasPrefix(r.In.URL.Path, "/listen") {
				target = s.socketSite
			}
			r.SetURL(&url.URL{Scheme: "http", Host: target})
			r.Out.Host = r.In.Host
		},
		ModifyResponse: func(r *http.Response) error {
			site.answers <- fmt.Sprintf("%s %s %d", r.Request.Method, r.Request.URL.RawQuery, r.StatusCode)
			return nil
		},
	}
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/":
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprintf(w, trickPage, host+":"+site.port)
		case "/report":
			var got foreign.Report
			if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
				t.Errorf("report: %v", err)
			}
			site.reports <- got
		case "/favicon.ico":
		default:
			proxy.ServeHTTP(w, r)
		}
	}))
	_, site.port, _ = net.SplitHostPort(web.Listener.Addr().String())
	web.Start()
	t.Cleanup(web.CloseClientConnections)
	return site
}

// await waits until all that trickPage asks for has been answered: posts with
// one status, listening with another. With preflights, browsers ask before some
// of it, and get that status.
func (s *trickSite) await(t *testing.T, posts, listens, preflights int) {
	t.Helper()
	open := make(map[string]bool)
	expect := func(method string, status int, names ...string) {
		for _, name := range names {
			open[fmt.Sprintf("%s %s %d", method, name, status)] = true
		}
	}
	if preflights != 0 {
		expect("OPTIONS", preflights, "fetch-json", "fetch-events")
	}
	if preflights < 400 {
		expect("POST", posts, "fetch-json")
		expect("GET", listens, "fetch-events")
	}
	expect("POST", posts, "form", "form-plain", "fetch", "no-cors", "beacon")
	if posts < 400 {
		expect("POST", http.StatusBadRequest, "fetch-nothing")
	} else {
		expect("POST", posts, "fetch-nothing")
	}
	if listens < 400 {
		expect("GET", http.StatusSwitchingProtocols, "socket")
	} else {
		expect("GET", listens, "socket")
	}
	expect("GET", listens, "events")
	wanted := maps.Clone(open) // Chromium retries, once, after a 421
	for late := time.After(await.Patience); len(open) > 0; {
		select {
		case a := <-s.answers:
			if !wanted[a] {
				t.Fatalf("a request was answered: %s; want %v", a, open)
			}
			delete(open, a)
		case <-late:
			t.Fatalf("not answered within %v: %v", await.Patience, open)
		}
	}
}

// Of a page that is not known, a browser gets nothing queued, and nothing to
// hear.
func TestForeignPages(t *testing.T) {
	t.Parallel()
	browser := foreign.Chromium(t)
	s := start(t)
	s.startWorker(t, "--pause", "0s")
	l := s.listen(t, "json")
	for _, tc := range []struct {
		name, page, target string
		status, preflights int
	}{
		{"of another host", "foreign.localhost", "127.0.0.1", http.StatusForbidden, http.StatusForbidden},
		{"whose name was pointed here", "evil.example", "evil.example", http.StatusMisdirectedRequest, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			site := startTrickSite(t, s, tc.target)
			foreign.Open(t, browser, "http://"+tc.page+":"+site.port+"/", "--host-resolver-rules=MAP evil.example 127.0.0.1")
			site.await(t, tc.status, tc.status, tc.preflights)
			l.drainWith(t, s, "after-"+tc.page) // nothing else was queued
			for len(site.reports) > 0 {
				if r := <-site.reports; r.Kind == "message" {
					t.Errorf("the page heard %+v", r)
				}
			}
		})
	}
}

// A page of an allowed origin can do all of that, and reads the answers.
func TestAllowedPage(t *testing.T) {
	t.Parallel()
	browser := foreign.Chromium(t)
	s := prepare(t, rabbittest.Shared(t))
	site := startTrickSite(t, s, "127.0.0.1")
	allow := "--allow-origin=HTTP://Foreign.localhost:" + site.port + "/"
	s.api = s.startDaemon(t, "revq-api", s.apiSockets, allow)
	s.socket = s.startDaemon(t, "revq-socket", s.socketSockets, allow)
	s.api.WaitReady(t)
	s.socket.WaitReady(t)
	l := s.listen(t, "json")
	foreign.Open(t, browser, "http://foreign.localhost:"+site.port+"/")
	site.await(t, http.StatusAccepted, http.StatusOK, http.StatusNoContent)
	s.startWorker(t, "--pause", "0s") // now that the page listens

	want := map[string]bool{"mrof": true, "hctef": true, "nosj-hctef": true, "sroc-on": true, "nocaeb": true}
	missing := map[string]map[string]bool{"events": maps.Clone(want), "socket": maps.Clone(want)}
	answers := map[string]string{"fetch": "202 ", "fetch-json": "202 json-1 Got it", "fetch-nothing": "400 null {", "fetch-events": "200"}
	for late := time.After(await.Patience); len(missing["events"])+len(missing["socket"])+len(answers) > 0; {
		select {
		case r := <-site.reports:
			if r.Kind == "error" {
				t.Errorf("the page got %+v", r)
			}
			delete(missing[r.Source], r.Data)
			if prefix, ok := answers[r.Source]; ok {
				if !strings.HasPrefix(r.Data, prefix) {
					t.Errorf("the page read %+v, want %q", r, prefix)
				}
				delete(answers, r.Source)
			}
		case <-late:
			t.Fatalf("within %v the page did not hear %v or read %v", await.Patience, missing, answers)
		}
	}
	// Browsers send a form of plain text as name=value.
	for range len(want) + 1 {
		got := l.nextResult(t).Text
		if !want[got] && !strings.HasSuffix(got, "nialp-mrof=txet") {
			t.Errorf("%q was queued", got)
		}
		delete(want, got)
	}
}
