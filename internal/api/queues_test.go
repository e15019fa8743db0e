package api

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/token"
	"github.com/revq/revq/internal/wire"
)

// has returns a broker with these named queues.
func has(names ...string) *broker {
	return &broker{publish: func(t task.Task) <-chan error {
		if slices.Contains(append(names, wire.DefaultQueue), t.Queue) {
			return decided(nil)
		}
		return decided(fmt.Errorf("publish: %w", task.ErrNoQueue))
	}}
}

func TestNamedQueue(t *testing.T) {
	t.Parallel()
	longest := strings.Repeat("x", wire.MaxQueueLength)
	for _, name := range []string{"thumbnails", wire.DefaultQueue, longest} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := has(name)
			s := setup(t, b)
			if r := s.do(t, "POST", "/queue/"+name+"?x", "abc", "Content-Type", typePlain); r.StatusCode != 202 || r.body != "Got it" {
				t.Fatalf("%d %s", r.StatusCode, r.body)
			}
			if got := b.only(t); got.Queue != name || got.Text != "abc" {
				t.Errorf("published %+v", got)
			}
			r := s.do(t, "OPTIONS", "/queue/"+name, "")
			if r.StatusCode != 204 || r.Header.Get("Allow") != "OPTIONS, POST" || r.Header.Get("Accept-Post") != acceptPost {
				t.Errorf("OPTIONS: %d %v", r.StatusCode, r.Header)
			}
			s.do(t, "GET", "/queue/"+name, "").check(t, 405, "use OPTIONS or POST")
			s.do(t, "POST", "/queue/"+name, "abc").check(t, 415, "Content-Type")
			s.do(t, "POST", "/queue/"+name, "abc", "Content-Type", typePlain, "Origin", "https://evil.example").check(t, 403, "evil.example")
		})
	}
}

func TestNoSuchQueue(t *testing.T) {
	t.Parallel()
	s := setup(t, has("thumbnails", "pages"))
	for _, name := range []string{"A", "a.b", "a%62", "-a", strings.Repeat("x", wire.MaxQueueLength+1), "thumbnails/"} {
		s.do(t, "POST", "/queue/"+name, "abc", "Content-Type", typePlain).check(t, 404, "lower-case letter")
	}
	s.do(t, "POST", "/queue/", "abc", "Content-Type", typePlain).check(t, 404, "/queue/NAME")

	unknown := func(want string) {
		t.Helper()
		r := s.do(t, "POST", "/queue/other", `{"text":"a","id":"k"}`, "Content-Type", typeJSON)
		r.check(t, 404, "there is no queue other: make it with `revq setup --queue other`"+want)
		if got := r.Header.Get(wire.TaskIDHeader); got != "k" {
			t.Errorf("answered the id %q", got)
		}
		if strings.Contains(r.body, `"id"`) {
			t.Errorf("the text is said to be queued, perhaps: %s", r.body)
		}
	}
	unknown("")
	for _, name := range []string{"thumbnails", "pages", "thumbnails"} {
		if r := s.do(t, "POST", "/queue/"+name, "abc", "Content-Type", typePlain); r.StatusCode != 202 {
			t.Fatal(r.StatusCode)
		}
	}
	unknown("; this server has sent tasks to pages, thumbnails")

	// A batch is of one queue.
	r := s.do(t, "POST", "/queue/other", `{"text":"a"}`+"\n"+`{"text":"b"}`, "Content-Type", typeNDJSON)
	if r.StatusCode != 404 || strings.Count(r.body, "there is no queue other") != 2 {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
	if r := s.do(t, "POST", "/queue/pages", `{"text":"a"}`+"\n"+`{"text":"b"}`, "Content-Type", typeNDJSON); r.StatusCode != 202 {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
}

// A queue that was removed is no longer suggested.
func TestForgottenQueue(t *testing.T) {
	t.Parallel()
	var q queues
	for _, name := range []string{"a", "b"} {
		q.add(name)
	}
	if got := q.missing("a", nil).Detail; !strings.HasSuffix(got, "sent tasks to b") {
		t.Error(got)
	}
	for _, tc := range []struct {
		permit *token.Permit
		other  bool
	}{
		{&token.Permit{}, true},
		{&token.Permit{Grant: token.Grant{Queues: token.Queues{"a", "b"}}}, true},
		{&token.Permit{Grant: token.Grant{Queues: token.Queues{"a"}}}, false},
	} {
		if got := q.missing("a", tc.permit).Detail; strings.Contains(got, "sent tasks to b") != tc.other {
			t.Errorf("with a token for %s: %s", tc.permit.Queues, got)
		}
	}
	for i := range 2 * maxKnown {
		q.add(fmt.Sprint("q", i))
	}
	if n := len(*q.names.Load()); n != maxKnown {
		t.Errorf("%d names are kept, want %d", n, maxKnown)
	}
}

// The times come in JSON, also in the lines of a batch, and in headers for the
// other bodies.
func TestTimes(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, contentType, body string
		header                  []string
		delay, expires          time.Duration
		wrong                   string // the detail of a 400
	}{
		{"none", typeJSON, `{"text":"a"}`, nil, 0, 0, ""},
		{"numbers", typeJSON, `{"delay":1.5,"text":"a","expires":90 }`, nil, 1500 * time.Millisecond, 90 * time.Second, ""},
		{"strings", typeJSON, `{"text":"a","delay":"1h30m","expires":"7200"}`, nil, 90 * time.Minute, 2 * time.Hour, ""},
		{"in a batch", typeNDJSON, `{"text":"a","delay":"2s"}`, nil, 2 * time.Second, 0, ""},
		{"headers, plain", typePlain, "a", []string{"Revq-Delay", "7m", "Revq-Expires", "600"}, 7 * time.Minute, 10 * time.Minute, ""},
		{"headers, form", typeForm, "text=a", []string{"Revq-Expires", "600"}, 0, 10 * time.Minute, ""},
		{"no delay", typeJSON, `{"text":"a","delay":0}`, nil, 0, 0, ""},
		{"longest", typeJSON, `{"text":"a","delay":"168h"}`, nil, wire.MaxDelay, 0, ""},

		{"too long", typeJSON, `{"text":"a","delay":"169h"}`, nil, 0, 0, `"delay": "169h" is no time from 0 to 168h0m0s`},
		{"no time", typeJSON, `{"text":"a","delay":"soon"}`, nil, 0, 0, `"delay": "soon" is no time`},
		{"no number", typeJSON, `{"text":"a","delay":1-2}`, nil, 0, 0, `"delay": "1-2" is no time`},
		{"negative", typeJSON, `{"text":"a","delay":-1}`, nil, 0, 0, `"delay" must be a number of seconds or a string`},
		{"negative string", typeJSON, `{"text":"a","delay":"-1s"}`, nil, 0, 0, `is no time`},
		{"null", typeJSON, `{"text":"a","expires":null}`, nil, 0, 0, `"expires" must be a number`},
		{"twice", typeJSON, `{"text":"a","delay":1,"delay":1}`, nil, 0, 0, `more than one "delay"`},
		{"a number as text", typeJSON, `{"text":1}`, nil, 0, 0, `"text" must be a string`},
		{"expires at once", typeJSON, `{"text":"a","expires":0}`, nil, 0, 0, `must be more than 0`},
		{"expires too early", typeJSON, `{"text":"a","delay":5,"expires":5}`, nil, 0, 0, "would expire after 5s, before its delay of 5s"},
		{"header, wrong", typePlain, "a", []string{"Revq-Delay", "soon"}, 0, 0, `Revq-Delay: "soon" is no time`},
		{"headers too early", typePlain, "a", []string{"Revq-Delay", "5", "Revq-Expires", "4"}, 0, 0, "would expire"},
		{"header with JSON", typeJSON, `{"text":"a"}`, []string{"Revq-Delay", "5"}, 0, 0, `send "delay" in the object`},
		{"header with a batch", typeNDJSON, `{"text":"a"}`, []string{"Revq-Expires", "5"}, 0, 0, `send "expires" in the object`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := &broker{}
			s := setup(t, b)
			r := s.do(t, "POST", wire.QueuePath, tc.body, append(tc.header, "Content-Type", tc.contentType)...)
			if tc.wrong != "" {
				r.check(t, 400, tc.wrong)
				return
			}
			if r.StatusCode != 202 {
				t.Fatalf("%d %s", r.StatusCode, r.body)
			}
			got := b.only(t)
			for _, at := range []struct {
				name string
				time time.Time
				want time.Duration
			}{{"delay", got.NotBefore, tc.delay}, {"expires", got.Expires, tc.expires}} {
				if at.want == 0 && !at.time.IsZero() || at.want > 0 && !at.time.Equal(got.Accepted.Add(at.want)) {
					t.Errorf("%s: %v, accepted at %v, want %v later", at.name, at.time, got.Accepted, at.want)
				}
			}
		})
	}
}
