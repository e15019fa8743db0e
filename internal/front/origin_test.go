package front

import (
	"bufio"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/valyala/fasthttp"
)

func TestNormalOrigin(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ text, want, wrong string }{
		{"https://app.example", "https://app.example", ""},
		{"https://app.example/", "https://app.example", ""},
		{"HTTPS://App.Example", "https://app.example", ""},
		{"https://app.example:443", "https://app.example", ""},
		{"http://app.example:80/", "http://app.example", ""},
		{"http://app.example:443", "http://app.example:443", ""},
		{"https://app.example:8443", "https://app.example:8443", ""},
		{"http://[::1]:3000", "http://[::1]:3000", ""},
		{"http://[0:0:0:0:0:0:0:1]:80", "http://[::1]", ""},
		{"http://127.0.0.1:3000", "http://127.0.0.1:3000", ""},
		{"chrome-extension://abcdef", "chrome-extension://abcdef", ""},
		{"https://xn--bcher-kva.example", "https://xn--bcher-kva.example", ""},
		{"*", "*", ""},

		{"", "", "give scheme://host"},
		{"null", "", "give scheme://host"},
		{"app.example", "", "give scheme://host"},
		{"app.example:443", "", "give scheme://host"},
		{"//app.example", "", "give scheme://host"},
		{"https:app.example", "", "give scheme://host"},
		{"https://", "", "give scheme://host"},
		{"https:///", "", "give scheme://host"},
		{"https://:443", "", "there is no name"},
		{"https://app.example//", "", "it has a path"},
		{"https://app.example/queue", "", "it has a path"},
		{"https://app.example?", "", "it has a query"},
		{"https://app.example/?a=b", "", "it has a query"},
		{"https://app.example#", "", "it has a fragment"},
		{"https://me@app.example", "", "it has a user"},
		{"https://app.example:", "", "its port is missing"},
		{"https://app.example:99999", "", "there is no such port"},
		{"https://*.example", "", "* is no part of a name"},
		{"https://bücher.example", "", "xn--"},
		{"https://a b.example", "", "give scheme://host"},
		{"wss://app.example", "", "address of a websocket"},
	} {
		got, err := normalOrigin(tc.text)
		checkNormal(t, originPattern, tc.text, got, tc.want, err, tc.wrong)
		if tc.wrong == "" {
			if again, err := normalOrigin(got); again != got || err != nil {
				t.Errorf("%q is not normal: %q, %v", got, again, err)
			}
		}
	}
}

func TestNormalHost(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ text, want, wrong string }{
		{"queue.example", "queue.example", ""},
		{"Queue.Example/", "queue.example", ""},
		{"queue.example.", "queue.example", ""},
		{"queue_1", "queue_1", ""},
		{"[::1]", "::1", ""},
		{"192.0.2.1", "192.0.2.1", ""},

		{"", "", "there is no name"},
		{".", "", "there is no name"},
		{"*", "", "* is no part of a name"},
		{"*.example", "", "* is no part of a name"},
		{"queue.example:443", "", "without scheme and port"},
		{"[::1]:443", "", "without scheme and port"},
		{"https://queue.example", "", "without scheme and port"},
		{"queue.example/listen", "", "without scheme and port"},
		{"queue.example?", "", "without scheme and port"},
		{"bücher.example", "", "xn--"},
	} {
		got, err := normalHost(tc.text)
		checkNormal(t, hostPattern, tc.text, got, tc.want, err, tc.wrong)
	}
}

func checkNormal(t *testing.T, pattern, text, got, want string, err error, wrong string) {
	t.Helper()
	switch {
	case wrong == "" && (err != nil || got != want):
		t.Errorf("%q: %q, %v; want %q", text, got, err, want)
	case wrong != "" && (err == nil || !strings.Contains(err.Error(), wrong)):
		t.Errorf("%q: %q, %v; want an error with %q", text, got, err, wrong)
	}
	if matches := regexp.MustCompile("^(?:" + pattern + ")$").MatchString(text); wrong == "" && !matches {
		t.Errorf("%q does not match %s", text, pattern)
	}
}

func TestHostName(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		header, want string
		ok           bool
	}{
		{"queue.example", "queue.example", true},
		{"Queue.Example.:8081", "queue.example", true},
		{"queue.example:", "queue.example", true},
		{"127.0.0.1:8081", "127.0.0.1", true},
		{"[::1]", "::1", true},
		{"[::1]:8081", "::1", true},
		{"[0:0::1]:8081", "::1", true},
		{"", "", false},
		{":8081", "", false},
		{".", "", false},
		{"::1", "", false},
		{"[::1", "", false},
		{"[::1]x", "", false},
		{"[127.0.0.1]", "", false},
		{"[queue.example]", "", false},
		{"a:b", "", false},
		{"a:80:90", "", false},
		{"evil.example@localhost", "", false},
		{"localhost/", "", false},
		{"localhost localhost", "", false},
	} {
		if got, ok := hostName(tc.header); ok != tc.ok || ok && got != tc.want {
			t.Errorf("%q: %q, %t; want %q, %t", tc.header, got, ok, tc.want, tc.ok)
		}
	}
}

func TestNamesOf(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, hosts string
		want        []string
	}{
		{"Box", "", []string{"box", "box.local"}},
		{"box.example.org", "", []string{"box", "box.local", "box.example.org"}},
		{"box", "127.0.0.1 localhost\n127.0.1.1\tBox.example.org box # other\n192.0.2.7 elsewhere\n", []string{"box", "box.local", "box.example.org"}},
		{"box", "127.0.1.1 box.example.org # box", []string{"box", "box.local"}},
		{"box", "box\n\n#\n", []string{"box", "box.local"}},
	} {
		got := namesOf(tc.name, tc.hosts)
		slices.Sort(got)
		slices.Sort(tc.want)
		if got = slices.Compact(got); !slices.Equal(got, tc.want) {
			t.Errorf("%q with %q: %q, want %q", tc.name, tc.hosts, got, tc.want)
		}
	}
}

func TestDecide(t *testing.T) {
	t.Parallel()
	const (
		local  = "127.0.0.1:8081"
		public = "queue.example"
		evil   = "evil.example:8081"
	)
	var (
		readable  = verdict{readable: true}
		misnamed  = verdict{status: 421}
		misnamed2 = verdict{status: 421, readable: true} // by a page that is allowed
	)
	app := Pages{AllowOrigins: []string{"HTTPS://App.example:443/"}}
	host := Pages{AllowHosts: []string{"Queue.Example."}}
	all := Pages{AllowOrigins: []string{"*"}}
	for _, tc := range []struct {
		name  string
		pages Pages
		r     request
		want  verdict
	}{
		{"a program", Pages{}, request{method: "POST", host: evil}, passes},
		{"a program without Host", Pages{}, request{method: "POST"}, passes},

		// Which origin.
		{"a foreign page", Pages{}, request{method: "POST", origin: "https://evil.example", host: local}, foreign},
		{"a foreign page listens", Pages{}, request{method: "GET", origin: "https://evil.example", host: local}, foreign},
		{"a foreign page asks before", Pages{}, request{method: "OPTIONS", origin: "https://evil.example", host: local}, foreign},
		{"it calls itself same-origin", Pages{}, request{method: "POST", origin: "https://evil.example", site: "same-origin", host: local}, foreign},
		{"no origin of its own", Pages{}, request{method: "POST", origin: "null", host: local}, foreign},
		{"no origin of its own, same-origin", Pages{}, request{method: "POST", origin: "null", site: "same-origin", host: local}, foreign},
		{"no host", Pages{}, request{method: "POST", origin: "file://", host: local}, foreign},
		{"no URL", Pages{}, request{method: "POST", origin: "127.0.0.1", host: local}, foreign},
		{"localhost is not 127.0.0.1", Pages{}, request{method: "POST", origin: "http://localhost:3000", host: local}, foreign},
		{"same host, other port", Pages{}, request{method: "POST", origin: "http://127.0.0.1:3000", site: "same-site", host: local}, readable},
		{"same host, upper case, a dot, TLS before it", Pages{}, request{method: "POST", origin: "https://localhost", host: "LOCALHOST.:8081"}, readable},
		{"same host, IPv6", Pages{}, request{method: "POST", origin: "http://[::1]:3000", host: "[::1]:8081"}, readable},
		{"a host below", Pages{}, request{method: "POST", origin: "http://a.localhost", host: "localhost:8081"}, foreign},
		{"allowed", app, request{method: "POST", origin: "https://app.example", site: "cross-site", host: local}, readable},
		{"allowed, other scheme", app, request{method: "POST", origin: "http://app.example", host: local}, foreign},
		{"allowed, other port", app, request{method: "POST", origin: "https://app.example:8443", host: local}, foreign},
		{"allowed, below", app, request{method: "POST", origin: "https://evil.app.example", host: local}, foreign},
		{"all are allowed", all, request{method: "POST", origin: "https://evil.example", host: local}, readable},
		{"all are allowed, null", all, request{method: "POST", origin: "null", host: local}, readable},

		// Without an origin.
		{"cross-site", Pages{}, request{method: "POST", site: "cross-site", host: local}, foreign},
		{"same-site", Pages{}, request{method: "POST", site: "same-site", host: local}, foreign},
		{"same-site, navigating", Pages{}, request{method: "POST", site: "same-site", mode: "navigate", host: local}, foreign},
		{"same-origin", Pages{}, request{method: "GET", site: "same-origin", mode: "cors", host: local}, passes},
		{"by hand", Pages{}, request{method: "GET", site: "none", mode: "navigate", host: local}, passes},
		{"an image elsewhere", Pages{}, request{method: "GET", site: "cross-site", mode: "no-cors", host: local}, foreign},
		{"an image elsewhere, all are allowed", all, request{method: "GET", site: "cross-site", mode: "no-cors", host: local}, passes},
		{"a link elsewhere", Pages{}, request{method: "GET", site: "cross-site", mode: "navigate", host: local}, passes},
		{"a link elsewhere to a name that is not known", Pages{}, request{method: "GET", site: "cross-site", mode: "navigate", host: evil}, misnamed},

		// Under which name.
		{"rebinding", Pages{}, request{method: "POST", origin: "http://evil.example:8081", site: "same-origin", host: evil}, misnamed},
		{"rebinding without an origin", Pages{}, request{method: "GET", site: "same-origin", host: evil}, misnamed},
		{"rebinding without TLS", Pages{}, request{method: "GET", guess: true, host: evil}, misnamed},
		{"rebinding to another port", Pages{}, request{method: "POST", origin: "http://evil.example", host: evil}, misnamed},
		{"rebinding where all are allowed", all, request{method: "GET", guess: true, host: evil}, passes},
		{"no Host", Pages{}, request{method: "GET", site: "same-origin"}, misnamed},
		{"no proper Host", Pages{}, request{method: "GET", site: "same-origin", host: "localhost@evil.example"}, misnamed},
		{"localhost", Pages{}, request{method: "GET", guess: true, host: "LocalHost.:8083"}, passes},
		{"below localhost", Pages{}, request{method: "GET", guess: true, host: "queue.localhost"}, passes},
		{"not below localhost", Pages{}, request{method: "GET", guess: true, host: "evillocalhost"}, misnamed},
		{"IPv6", Pages{}, request{method: "GET", guess: true, host: "[2001:db8::1]:8083"}, passes},
		{"this machine", Pages{}, request{method: "GET", guess: true, host: "Box:8083"}, passes},
		{"the public name", Pages{}, request{method: "GET", site: "same-origin", host: public}, misnamed},
		{"the public name, allowed", host, request{method: "GET", site: "same-origin", host: public}, passes},
		{"the public name, allowed, with an origin", host, request{method: "POST", origin: "https://queue.example", host: public}, readable},
		{"the host of an allowed origin", app, request{method: "GET", site: "same-origin", host: "app.example"}, passes},
		{"another name, from an allowed origin", app, request{method: "POST", origin: "https://app.example", host: public}, misnamed2},
	} {
		if got := newGate(tc.pages, []string{"box"}).decide(tc.r); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

// What is taken for a browser's request, by its headers, also by a server of
// net/http.
func TestRequestOf(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, head string
		browser    bool
	}{
		{"curl", "GET /listen_results HTTP/1.1\r\nHost: evil.example\r\nUser-Agent: curl/8\r\nAccept: */*\r\n", false},
		{"Node.js", "GET /listen_results HTTP/1.1\r\nHost: evil.example\r\nUser-Agent: node\r\nAccept-Language: *\r\nSec-Fetch-Mode: cors\r\n", false},
		{"Chromium", "GET /listen_results HTTP/1.1\r\nHost: evil.example\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n", true},
		{"under a false name", "GET /listen_results HTTP/1.1\r\nHost: evil.example\r\nUser-Agent: x\r\nAccept-Language: de\r\n", true},
		{"with an empty header", "GET /listen_results HTTP/1.1\r\nHost: evil.example\r\nUser-Agent: x\r\nAccept-Language:\r\n", true},
		{"HEAD", "HEAD /listen_results HTTP/1.1\r\nHost: evil.example\r\nUser-Agent: Mozilla/5.0\r\n", true},
		{"monitoring", "GET /readyz HTTP/1.1\r\nHost: evil.example\r\nUser-Agent: Mozilla/5.0+(compatible; Robot/2.0)\r\n", false},
		{"same origin", "GET /listen_results HTTP/1.1\r\nHost: evil.example\r\nSec-Fetch-Site: same-origin\r\n", true},
		{"PowerShell posts", "POST /queue_reverse_text HTTP/1.1\r\nHost: evil.example\r\nUser-Agent: Mozilla/5.0 (Windows NT)\r\n", false},
		{"a page posts", "POST /queue_reverse_text HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://evil.example\r\n", true},
	} {
		r := requestOf(parse(t, tc.head))
		if got := newGate(Pages{}, nil).decide(r).status == 421; got != tc.browser {
			t.Errorf("%s: taken for a browser's: %t, want %t; %+v", tc.name, got, tc.browser, r)
		}
		wrapped, err := http.ReadRequest(bufio.NewReader(strings.NewReader(tc.head + "\r\n")))
		if err != nil {
			t.Fatal(err)
		}
		w, passed := httptest.NewRecorder(), false
		newGate(Pages{}, nil).Wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { passed = true })).ServeHTTP(w, wrapped)
		if passed == tc.browser || (w.Code == http.StatusMisdirectedRequest) != tc.browser {
			t.Errorf("%s: net/http: passed %t, %d; taken for a browser's: want %t", tc.name, passed, w.Code, tc.browser)
		}
	}
}

// Refusals say what to do.
func TestAdmitSays(t *testing.T) {
	t.Parallel()
	g := newGate(Pages{}, nil)
	for _, tc := range []struct {
		head   string
		status int
		want   []string
	}{
		{"Host: 127.0.0.1:8081\r\nOrigin: https://app.example\r\n", 403,
			[]string{"https://app.example", `"127.0.0.1:8081"`, "--allow-origin https://app.example ", "REVQ_ALLOW_ORIGIN", "proxy_set_header Host"}},
		{"Host: 127.0.0.1:8081\r\nOrigin: null\r\n", 403, []string{"Origin: null", "--allow-origin"}},
		{"Host: 127.0.0.1:8081\r\nSec-Fetch-Site: cross-site\r\n", 403, []string{"cross-site", "--allow-origin"}},
		{"Host: Queue.example:8081\r\nOrigin: http://queue.example:8081\r\n", 421,
			[]string{"--allow-host queue.example ", "REVQ_ALLOW_HOST", "proxy_set_header Host"}},
		{"Host: [\r\nSec-Fetch-Site: same-origin\r\n", 421, []string{"Host header"}},
	} {
		ctx := parse(t, "POST /queue_reverse_text HTTP/1.1\r\n"+tc.head)
		p := g.Admit(ctx)
		if p == nil || p.Status != tc.status {
			t.Errorf("%q: %+v, want %d", tc.head, p, tc.status)
			continue
		}
		for _, want := range tc.want {
			if !strings.Contains(p.Detail, want) {
				t.Errorf("%q: %q, want %q in it", tc.head, p.Detail, want)
			}
		}
		if got := CORSLines(ctx); got != "" {
			t.Errorf("%q: the page may read that: %q", tc.head, got)
		}
	}
}

func TestCORSLines(t *testing.T) {
	t.Parallel()
	g := newGate(Pages{AllowOrigins: []string{"https://app.example"}}, nil)
	const head = "GET /listen_results HTTP/1.1\r\nHost: localhost\r\n"
	want := "Access-Control-Allow-Origin: https://app.example\r\nAccess-Control-Expose-Headers: Revq-Task-Id, Retry-After\r\nVary: Origin\r\n"
	ctx := parse(t, head+"Origin: https://app.example\r\n")
	if p := g.Admit(ctx); p != nil || CORSLines(ctx) != want {
		t.Errorf("%+v, %q; want %q", p, CORSLines(ctx), want)
	}
	ctx.Response.Reset()
	if g.Expose(ctx); CORSLines(ctx) != want {
		t.Errorf("exposed %q, want %q", CORSLines(ctx), want)
	}
	ctx = parse(t, head)
	if p := g.Admit(ctx); p != nil || CORSLines(ctx) != "" {
		t.Errorf("%+v, %q for a program", p, CORSLines(ctx))
	}
}

// A program's request to queue a text costs nothing.
func TestAdmitAllocatesNothing(t *testing.T) {
	g := NewGate(Pages{})
	ctx := parse(t, "POST /queue_reverse_text HTTP/1.1\r\nHost: queue.example\r\nContent-Type: text/plain\r\nContent-Length: 3\r\nUser-Agent: curl/8\r\n")
	if n := testing.AllocsPerRun(100, func() { g.Admit(ctx) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// parse returns a request with a head as fasthttp hands it to a handler.
func parse(t *testing.T, head string) *fasthttp.RequestCtx {
	t.Helper()
	ctx := &fasthttp.RequestCtx{}
	if err := ctx.Request.Header.Read(bufio.NewReader(strings.NewReader(head + "\r\n"))); err != nil {
		t.Fatalf("%q: %v", head, err)
	}
	ctx.Request.SetRequestURI(string(ctx.Request.Header.RequestURI()))
	return ctx
}
