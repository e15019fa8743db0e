//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/e2e/foreign"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/token"
)

// echo is a handler that returns its text, and gives up those that begin with
// "bad".
var echo = []string{"--handler", "filter", "--", "/bin/sh", "-c", `text=$(cat; echo .); case $text in bad*) exit 65;; esac; printf %s "${text%.}"`}

// startLive starts a system whose live page sends to its API.
func startLive(t *testing.T, args ...string) *system {
	t.Helper()
	s := prepare(t, rabbittest.Shared(t))
	s.startLiveFronts(t, args...)
	return s
}

func (s *system) startLiveFronts(t *testing.T, args ...string) {
	t.Helper()
	s.api = s.startDaemon(t, "revq-api", s.apiSockets, args...)
	s.startLiveSocket(t, args...)
	s.api.WaitReady(t)
	s.awaitReadyz(t, http.StatusOK)
}

func (s *system) startLiveSocket(t *testing.T, args ...string) {
	t.Helper()
	_, port, err := net.SplitHostPort(s.apiSites[0])
	if err != nil {
		t.Fatal(err)
	}
	s.socket = s.startDaemon(t, "revq-socket", s.socketSockets, append(args, "--api-url", ":"+port)...)
	s.socket.WaitReady(t)
}

// texts returns what the page shows, the newest first.
func texts(t *testing.T, p *foreign.Tab) (texts []string) {
	t.Helper()
	all, _ := p.Eval(`JSON.stringify(Array.from(document.querySelectorAll("#rows .text"), e => e.textContent))`).(string)
	if err := json.Unmarshal([]byte(all), &texts); err != nil {
		t.Fatal(err)
	}
	return texts
}

// sendText posts a text under an id of its own.
func (s *system) sendText(t *testing.T, text string) {
	t.Helper()
	if a := post(t, s.apiSites[0], "text/plain", text); a.status != http.StatusAccepted {
		t.Fatalf("POST: %d %s", a.status, a.body)
	}
}

const isConnected = `document.getElementById("state").textContent == "Connected"`

// The live page sends by keyboard, shows each result once, and misses none when
// the server is restarted. It shows foreign texts as texts.
func TestLivePage(t *testing.T) {
	t.Parallel()
	s := startLive(t)
	s.startWorker(t, echo...)
	// Chromium itself reports requests that fail while the server is away.
	p := foreign.OpenTab(t, "http://"+s.socketSite+"/", "ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE")
	p.Size(1000, 760)
	p.Await(isConnected)
	p.Shoot("empty-light")

	p.Press("Tab", 9, 0)
	if got := p.Eval("document.activeElement.id"); got != "text" {
		t.Errorf("the first Tab leads to %v, want to the text", got)
	}
	p.Write("typed by hand")
	p.Press("Enter", 13, 2)
	p.Await(`document.getElementById("said").textContent.startsWith("Your result has come")`)
	p.Await(`document.querySelector("#rows .own .text")?.textContent == "typed by hand"`)
	p.Await(`document.getElementById("spoken").textContent == "1 new result: typed by hand"`)

	want := []string{"typed by hand"}
	for i := range 5 {
		text := fmt.Sprintf("before the restart %d", i)
		want = append(want, text)
		s.sendText(t, text)
	}
	p.Await(`document.querySelectorAll("#rows li").length == 6`)
	s.socket.Terminate(t)
	p.Await(`document.getElementById("state").textContent != "Connected"`)
	for i := range 5 {
		text := fmt.Sprintf("while it was away %d", i)
		want = append(want, text)
		s.sendText(t, text)
	}
	p.Await(`document.getElementById("state").textContent == "Disconnected"`)
	p.Shoot("disconnected-light")
	s.startLiveSocket(t)
	p.Await(isConnected)
	want = append(want, "after it")
	s.sendText(t, "after it")
	p.Await(`document.querySelector("#rows .text").textContent == "after it"`)
	got := texts(t, p)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the page shows %q, want %q", got, want)
	}
	p.Await(`document.getElementById("count").textContent == "12"`)

	for text, shown := range map[string]string{
		`<img src=x onerror="document.title='hacked'"><script>alert(1)</script>`: `<img src=x onerror="document.title='hacked'"><script>alert(1)</script>`,
		"red \x1b[31mred\x07":       `red \e[31mredU+0007`,
		"right \u202eot tfel":       "right U+202Eot tfel",
		"one\ntwo\tthree":           `one\ntwo\tthree`,
		"nothing\u200b\ufeffhere":   "nothingU+200BU+FEFFhere",
		"thumb \U0001f44d äöü שלום": "thumb \U0001f44d äöü שלום",
	} {
		s.sendText(t, text)
		await.True(t, fmt.Sprintf("the page shows %q", shown), func() bool { return texts(t, p)[0] == shown })
	}
	s.sendText(t, "bad picture")
	p.Await(`document.querySelector("#rows .failed .text")?.textContent.includes("exit status 65") === true`)
	p.Await(`document.getElementById("count").textContent.endsWith(", 1 failed")`)
	if got := p.Eval(`document.querySelectorAll("#rows img, #rows script, #rows b").length + document.title`); got != "0revq" {
		t.Errorf("a text became HTML: %v", got)
	}
	long := strings.Repeat("long ", 10_000)
	s.sendText(t, long)
	await.True(t, "the page shows the long text", func() bool { return strings.HasPrefix(texts(t, p)[0], "long long") })
	p.Eval(`document.querySelector("#rows summary").click()`)
	p.Await(`document.querySelector("#rows dl")?.textContent.includes("the first 4,096 of 50,000 characters")`)
	s.sendText(t, "while a row is open")
	p.Await(`document.getElementById("count").textContent.includes("held, 1 more")`)
	p.Shoot("rows-light")
	p.Prefer("dark")
	p.Shoot("rows-dark")
	p.Size(360, 740)
	if got := p.Eval("document.documentElement.scrollWidth"); got != 360.0 {
		t.Errorf("the page is %v wide in a window of 360", got)
	}
	p.Shoot("rows-narrow-dark")
	p.Prefer("light")
	p.Eval(`document.querySelector("#rows summary").click()`)
	p.Await(`document.querySelector("#rows .text").textContent == "while a row is open"`)
	p.Shoot("rows-narrow-light")
}

// At a thousand results a second, the page stays small, and calm.
func TestLivePageUnderLoad(t *testing.T) {
	t.Parallel()
	s := startLive(t)
	s.startWorker(t, "--pause", "0s", "--concurrency", "100")
	p := foreign.OpenTab(t, "http://"+s.socketSite+"/")
	p.Size(1000, 760)
	p.Await(isConnected)
	const batches, lines, every = 80, 100, 100 * time.Millisecond
	var body strings.Builder
	for i := range lines {
		fmt.Fprintf(&body, "{\"text\": \"a text that is one of very many, number %d\"}\n", i)
	}
	p.Eval(`let spoke = 0; new MutationObserver(() => spoke++).observe(document.getElementById("spoken"), {childList: true, characterData: true, subtree: true})`)
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	began := time.Now()
	for i := range batches {
		<-ticker.C
		if a := post(t, s.apiSites[0], "application/x-ndjson", body.String()); a.status != http.StatusAccepted {
			t.Fatalf("%d %.200s", a.status, a.body)
		}
		if i == batches-5 {
			p.Shoot("load-light")
			p.Prefer("dark")
			p.Shoot("load-dark")
		}
	}
	took := time.Since(began)
	p.Await(fmt.Sprintf("total == %d", batches*lines))
	t.Logf("%d results at %.0f a second; the page spoke %v times", batches*lines, batches*lines/took.Seconds(), p.Eval("spoke"))
	p.Await(`document.getElementById("count").textContent == "8,000" && document.querySelectorAll("#rows li").length == limits.rows`)
	if got := p.Eval("fresh.length + own.size + running.size"); got != 0.0 {
		t.Errorf("%v things are kept", got)
	}
	if got, _ := p.Eval("spoke").(float64); got > 2+took.Seconds()/5 {
		t.Errorf("the page spoke %v times", got)
	}
	p.Eval(`document.getElementById("pause").click()`)
	for range 10 {
		post(t, s.apiSites[0], "application/x-ndjson", body.String())
	}
	p.Await(`document.getElementById("count").textContent == "9,000 · held, 1,000 more"`)
	if got, _ := p.Eval("fresh.length").(float64); got > 400 {
		t.Errorf("%v results are kept while the page is paused", got)
	}
}

// With tokens, the page asks for them, says what is wrong with one, and keeps
// them nowhere.
func TestLivePageTokens(t *testing.T) {
	t.Parallel()
	listening, hash := token.New()
	sending, hash2 := token.New()
	file := filepath.Join(t.TempDir(), "tokens")
	lines := token.Grant{Scope: token.Listen}.Line(hash) + "\n" + token.Grant{Scope: token.Send}.Line(hash2) + "\n"
	if err := os.WriteFile(file, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startLive(t, "--tokens", file)
	s.startWorker(t, "--pause", "0s")
	p := foreign.OpenTab(t, "http://"+s.socketSite+"/", "status of 401", "status of 403")
	p.Size(1000, 760)
	p.Await(`document.getElementById("state").textContent == "Token needed" && document.activeElement.id == "listen-token"`)
	p.Shoot("token-light")
	p.Write("revq_wrong")
	p.Press("Enter", 13, 0)
	p.Await(`document.getElementById("state").textContent == "Token refused"`)
	p.Write(listening)
	p.Press("Enter", 13, 0)
	p.Await(isConnected)
	p.Eval(`document.getElementById("text").focus()`)
	p.Write("abc")
	p.Press("Enter", 13, 2)
	p.Await(`document.activeElement.id == "send-token" && document.getElementById("said").classList.contains("bad")`)
	p.Write(sending)
	p.Press("Enter", 13, 0)
	p.Await(`document.querySelector("#rows .own .text")?.textContent == "cba"`)
	if got := p.Eval(`document.cookie + localStorage.length + sessionStorage.length + document.documentElement.outerHTML.includes("revq_") + Array.from(document.querySelectorAll("input[type=password]"), e => e.value).join()`); got != "00false," {
		t.Errorf("the page keeps a token: %v", got)
	}
}

// The page's policy lets nothing in but the page itself, and --page=false turns
// it off.
func TestLivePageHeaders(t *testing.T) {
	t.Parallel()
	s := startLive(t)
	a := get(t, s.socketSite, "/")
	if a.status != http.StatusOK || !strings.Contains(a.header.Get("Content-Security-Policy"), "default-src 'none'; script-src 'sha256-") || a.header.Get("Cache-Control") != "no-store" {
		t.Errorf("GET /: %d %v", a.status, a.header)
	}
	if a := request(t, http.MethodHead, s.socketSite, "/", ""); a.status != http.StatusOK || a.body != "" || a.header.Get("Content-Security-Policy") == "" {
		t.Errorf("HEAD /: %d %v", a.status, a.header)
	}
	if a := get(t, s.socketSite, "/more"); a.status != http.StatusNotFound {
		t.Errorf("GET /more: %d", a.status)
	}
	s.socket.Terminate(t)
	s.startLiveSocket(t, "--page=false")
	if err := checkProblem(get(t, s.socketSite, "/"), http.StatusNotFound); err != nil {
		t.Errorf("GET / with --page=false: %v", err)
	}
}
