package api

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/revq/revq/internal/task"
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
	if got := q.missing("a").Detail; !strings.HasSuffix(got, "sent tasks to b") {
		t.Error(got)
	}
	for i := range 2 * maxKnown {
		q.add(fmt.Sprint("q", i))
	}
	if n := len(*q.names.Load()); n != maxKnown {
		t.Errorf("%d names are kept, want %d", n, maxKnown)
	}
}
