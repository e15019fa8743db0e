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
<iframe name="form-sink"></iframe><iframe name="form-plain-sink"></iframe><iframe name="form-named-sink"></iframe>
<form id="form" method="post" target="form-sink"><input name="text" value="form"></form>
<form id="form-plain" method="post" target="form-plain-sink" enctype="text/plain"><input name="text" value="form-plain"></form>
<form id="form-named" method="post" target="form-named-sink"><input name="text" value="form-named"></form>
<script>
const site = "//" + %q
const at = (path, name) => "http:" + site + path + "?" + name
const queue = name => at(name.includes("named") ? "/queue/reverse_text" : "/queue_reverse_text", name)
function report(source, kind, data) {
	fetch("/report", {method: "POST", body: JSON.stringify({source, kind, data: String(data)})})
}
function read(name, url, options) {
	fetch(url, options).then(
		async r => report(name, "answer", r.status + " " + r.headers.get("Revq-Task-Id") + " " + await r.text()),
		() => report(name, "error", ""))
}
for (const form of document.forms) {
	form.action = queue(form.id)
	form.submit()
}
read("fetch", queue("fetch"), {method: "POST", body: "fetch"})
read("fetch-named", queue("fetch-named"), {method: "POST", body: "fetch-named"})
read("fetch-json", queue("fetch-json"), {method: "POST", body: '{"text": "fetch-json"}', headers: {"Content-Type": "application/json", "Idempotency-Key": "json-1"}})
read("fetch-cookies", queue("fetch-cookies"), {method: "POST", body: "fetch-cookies", credentials: "include"})
read("fetch-nothing", queue("fetch-nothing"), {method: "POST", body: ""})
fetch(queue("no-cors"), {method: "POST", mode: "no-cors", body: "no-cors"})
navigator.sendBeacon(queue("beacon"), "beacon")
read("result", at("/results/nobody-knows", "result"))
new Image().src = at("/results/nobody-knows", "image")
read("ticket", at("/ticket", "ticket"), {method: "POST", headers: {Authorization: "Bearer revq_guessed"}})
const socket = new WebSocket("ws:" + site + "/listen_results?socket")
socket.onmessage = e => report("socket", "message", e.data)
socket.onerror = () => report("socket", "error", "")
for (const [name, withCredentials] of [["events", false], ["events-cookies", true]]) {
	const events = new EventSource(at("/listen_results", name), {withCredentials})
	events.onmessage = e => report(name, "message", JSON.parse(e.data).text)
	events.onerror = () => report(name, "error", "")
}
fetch(at("/listen_results", "fetch-events"), {headers: {Accept: "text/event-stream", "Last-Event-ID": "-1"}}).then(
	r => report("fetch-events", "answer", r.status), () => report("fetch-events", "error", ""))
const frame = document.createElement("iframe") // of the live page, which would listen at once
frame.onload = () => report("frame", "loaded", "")
frame.src = at("/", "frame")
document.body.append(frame)
</script>`

// tricks are the requests of trickPage, and how those of an allowed page are
// answered.
var tricks = []struct {
	method    string
	status    int
	names     []string
	preflight bool // browsers ask before they send it
}{
	{"POST", http.StatusAccepted, []string{"form", "form-plain", "form-named", "fetch", "fetch-named", "fetch-cookies", "no-cors", "beacon"}, false},
	{"POST", http.StatusAccepted, []string{"fetch-json"}, true},
	{"POST", http.StatusBadRequest, []string{"fetch-nothing"}, false},
	{"GET", http.StatusOK, []string{"events", "events-cookies"}, false},
	{"GET", http.StatusOK, []string{"fetch-events"}, true},
	{"GET", http.StatusSwitchingProtocols, []string{"socket"}, false},
	{"GET", http.StatusNotFound, []string{"result"}, false},
	{"GET", http.StatusForbidden, []string{"image"}, false}, // without CORS, so it could be of any page
	{"POST", http.StatusNotFound, []string{"ticket"}, true}, // there are no tokens
}

// trickPath is where a trickSite has its page.
const trickPath = "/trick"

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
			target := s.socketSite
			if strings.HasPrefix(r.In.URL.Path, "/queue") {
				target = s.apiSites[0]
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
		case trickPath:
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

// await waits until all that trickPage asks for has been answered: with refused,
// or if that is 0, as an allowed page is answered. With preflights, browsers ask
// before some of it, and get that status. The frame gets a status of its own,
// since any page may have a link to the live page.
func (s *trickSite) await(t *testing.T, refused, preflights, frame int) {
	t.Helper()
	open := map[string]bool{fmt.Sprintf("GET frame %d", frame): true}
	for _, trick := range tricks {
		for _, name := range trick.names {
			if trick.preflight && preflights != 0 {
				open[fmt.Sprintf("OPTIONS %s %d", name, preflights)] = true
			}
			if trick.preflight && preflights >= 400 {
				continue
			}
			status := trick.status
			if refused != 0 {
				status = refused
			}
			open[fmt.Sprintf("%s %s %d", trick.method, name, status)] = true
		}
	}
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

// checkFrame fails the test if the live page was shown in the frame, which has
// been loaded: it would have begun to listen.
func (s *trickSite) checkFrame(t *testing.T) {
	t.Helper()
	for len(s.answers) > 0 {
		if a := <-s.answers; strings.HasPrefix(a, "GET  ") {
			t.Errorf("the live page was shown in a frame, where it asked for something: %s", a)
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
		name, page, target        string
		status, preflights, frame int
	}{
		{"of another host", "foreign.localhost", "127.0.0.1", http.StatusForbidden, http.StatusForbidden, http.StatusOK},
		{"whose name was pointed here", "evil.example", "evil.example", http.StatusMisdirectedRequest, 0, http.StatusMisdirectedRequest},
	} {
		t.Run(tc.name, func(t *testing.T) {
			site := startTrickSite(t, s, tc.target)
			foreign.Open(t, browser, "http://"+tc.page+":"+site.port+trickPath, "--host-resolver-rules=MAP evil.example 127.0.0.1")
			site.await(t, tc.status, tc.preflights, tc.frame)
			l.drainWith(t, s, "after-"+tc.page) // nothing else was queued
			for late := time.After(await.Patience); ; {
				var r foreign.Report
				select {
				case r = <-site.reports:
				case <-late:
					t.Fatal("the frame was not loaded")
				}
				if r.Kind == "message" || r.Kind == "answer" && tc.status == http.StatusForbidden {
					t.Errorf("the page got %+v", r)
				}
				if r.Source == "frame" {
					break
				}
			}
			site.checkFrame(t)
		})
	}
}

// A page of an allowed origin can do all of that, and reads the answers, except
// those to what it sent with cookies. It cannot show the live page in a frame.
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
	foreign.Open(t, browser, "http://foreign.localhost:"+site.port+trickPath)
	site.await(t, 0, http.StatusNoContent, http.StatusOK)
	s.startWorker(t, "--pause", "0s") // now that the page listens

	want := map[string]bool{
		"mrof": true, "deman-mrof": true, "hctef": true, "deman-hctef": true, "nosj-hctef": true, "seikooc-hctef": true, "sroc-on": true, "nocaeb": true,
	}
	missing := map[string]map[string]bool{"events": maps.Clone(want), "socket": maps.Clone(want)}
	answers := map[string]string{
		"fetch": "202 ", "fetch-named": "202 ", "fetch-json": "202 json-1 Got it", "fetch-nothing": "400 null {", "fetch-events": "200",
		"result": "404 null {", "ticket": "404 null {", "fetch-cookies": "", "events-cookies": "", "frame": "",
	}
	for late := time.After(await.Patience); len(missing["events"])+len(missing["socket"])+len(answers) > 0; {
		select {
		case r := <-site.reports:
			if unreadable := strings.HasSuffix(r.Source, "-cookies"); unreadable != (r.Kind == "error") {
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
	site.checkFrame(t)
	// Browsers send a form of plain text as name=value.
	for range len(want) + 1 {
		got := l.nextResult(t).Text
		if !want[got] && !strings.HasSuffix(got, "nialp-mrof=txet") {
			t.Errorf("%q was queued", got)
		}
		delete(want, got)
	}
}
