package api

import (
	"strings"
	"testing"

	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// What a page can have a browser send queues nothing unless the page is known.
// (The cases that package front tells apart are its own tests.)
func TestPages(t *testing.T) {
	t.Parallel()
	const app = "https://app.example"
	for _, tc := range []struct {
		name    string
		pages   front.Pages
		media   string
		body    string
		headers []string
		status  int
		cors    string // origin that may read the answer
	}{
		{"a form elsewhere", front.Pages{}, typeForm, "text=x", []string{"Origin", app, "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"}, 403, ""},
		{"a form of plain text elsewhere", front.Pages{}, typePlain, "text=x", []string{"Origin", app, "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"}, 403, ""},
		{"fetch, beacon elsewhere", front.Pages{}, typePlain, "x", []string{"Origin", app, "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "no-cors"}, 403, ""},
		{"a sandboxed frame", front.Pages{}, typePlain, "x", []string{"Origin", "null"}, 403, ""},
		{"without Origin", front.Pages{}, typePlain, "x", []string{"Sec-Fetch-Site", "same-site"}, 403, ""},
		{"a batch elsewhere", front.Pages{}, typeNDJSON, `{"text":"x"}`, []string{"Origin", app}, 403, ""},
		{"rebinding", front.Pages{}, typePlain, "x", []string{"Host", "evil.example:8081", "Origin", "http://evil.example:8081"}, 421, ""},
		{"this host, other port", front.Pages{}, typePlain, "x", []string{"Origin", "http://127.0.0.1:3000", "Sec-Fetch-Site", "same-site"}, 202, "http://127.0.0.1:3000"},
		{"allowed", front.Pages{AllowOrigins: []string{"HTTPS://App.example/"}}, typeForm, "text=x", []string{"Origin", app}, 202, app},
		{"allowed, with a problem", front.Pages{AllowOrigins: []string{app}}, typePlain, "", []string{"Origin", app}, 400, app},
		{"allowed, with another media type", front.Pages{AllowOrigins: []string{app}}, "a/b", "x", []string{"Origin", app}, 415, app},
		{"allowed, too big", front.Pages{AllowOrigins: []string{app}}, typePlain, strings.Repeat("x", 1<<20), []string{"Origin", app}, 413, app},
		{"allowed by all names", front.Pages{AllowHosts: []string{"queue.example"}}, typePlain, "x",
			[]string{"Host", "Queue.example:8081", "Origin", "https://queue.example"}, 202, "https://queue.example"},
		{"a program, under any name", front.Pages{}, typePlain, "x", []string{"Host", "evil.example:8081"}, 202, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := &broker{}
			s := setup(t, b, func(c *Config) { c.Pages = tc.pages })
			r := s.do(t, "POST", wire.QueuePath, tc.body, append(tc.headers, "Content-Type", tc.media)...)
			if r.StatusCode != tc.status || len(b.tasks) > 0 != (tc.status == 202) {
				t.Errorf("%d %q, want %d; %d tasks were published", r.StatusCode, r.body, tc.status, len(b.tasks))
			}
			checkReadable(t, r, tc.cors)
		})
	}
}

func TestPagesReadWhatIsWrong(t *testing.T) {
	t.Parallel()
	s := setup(t, &broker{ready: errDown, publish: func(task.Task) <-chan error { panic("a bug") }})
	const page = "http://127.0.0.1"
	for _, r := range []reply{
		s.do(t, "GET", "/readyz", "", "Origin", page),
		s.do(t, "GET", "/", "", "Origin", page),
		s.do(t, "GET", wire.QueuePath, "", "Origin", page),
		s.do(t, "POST", wire.QueuePath, "text=abc", "Content-Type", typeForm, "Origin", page),
	} {
		if r.StatusCode < 400 {
			t.Errorf("status %d", r.StatusCode)
		}
		checkReadable(t, r, page)
	}
}

// checkReadable reports an answer that another page than that of origin may
// read.
func checkReadable(t *testing.T, r reply, origin string) {
	t.Helper()
	want := map[string]string{}
	if origin != "" {
		want = map[string]string{
			"Access-Control-Allow-Origin":   origin,
			"Access-Control-Expose-Headers": "Revq-Task-Id, Retry-After",
			"Vary":                          "Origin",
		}
	}
	for _, name := range []string{"Access-Control-Allow-Origin", "Access-Control-Expose-Headers", "Vary"} {
		if got := r.Header.Values(name); strings.Join(got, "|") != want[name] {
			t.Errorf("%d with %s %q, want %q", r.StatusCode, name, got, want[name])
		}
	}
}

// Browsers ask before they send what no form can.
func TestPreflight(t *testing.T) {
	t.Parallel()
	s := setup(t, &broker{})
	ask := []string{"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "content-type,idempotency-key"}
	r := s.do(t, "OPTIONS", wire.QueuePath, "", append(ask, "Origin", "http://127.0.0.1:3000")...)
	if r.StatusCode != 204 {
		t.Errorf("status %d", r.StatusCode)
	}
	checkReadable(t, r, "http://127.0.0.1:3000")
	for name, want := range map[string]string{
		"Access-Control-Allow-Methods": "OPTIONS, POST",
		"Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, Revq-Delay, Revq-Expires, traceparent, Accept, Last-Event-ID",
		"Access-Control-Max-Age":       "600",
		"Allow":                        "OPTIONS, POST",
	} {
		if got := r.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	r = s.do(t, "OPTIONS", wire.QueuePath, "", append(ask, "Origin", "https://evil.example")...)
	r.check(t, 403, "--allow-origin https://evil.example")
	checkReadable(t, r, "")
	r = s.do(t, "OPTIONS", wire.QueuePath, "")
	if got := r.Header.Get("Access-Control-Allow-Methods"); r.StatusCode != 204 || got != "" {
		t.Errorf("to a program: %d, Access-Control-Allow-Methods %q", r.StatusCode, got)
	}
}
