//go:build linux

package e2e

import (
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/wire"
)

// From the POST to the listeners, in every format, at every site.
func TestPipeline(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.startWorker(t)
	s.startWorker(t)
	plain, detailed := s.listen(t, "text"), s.listen(t, "json")

	// The pause is 100 ms a character.
	const pause, bound = 600 * time.Millisecond, 20 * time.Second
	began := time.Now()
	var ids []string
	for _, site := range s.apiSites {
		for _, tt := range []struct{ contentType, body string }{
			{"application/x-www-form-urlencoded", "text=abcdef"},
			{"application/json", `{"text":"abcdef"}`},
			{"text/plain", "abcdef"},
		} {
			a := post(t, site, tt.contentType, tt.body)
			if a.status != http.StatusAccepted || a.body != "Got it" {
				t.Errorf("%s: %d %q, want 202 %q", tt.contentType, a.status, a.body, "Got it")
			}
			ids = append(ids, a.header.Get(wire.TaskIDHeader))
		}
		first, third := "first-"+site, "third-"+site
		a := post(t, site, "application/x-ndjson", submission(first, "abcdef")+"\n"+`{"txt":"abcdef"}`+"\n"+submission(third, "abcdef")+"\n")
		lines := strings.Split(strings.TrimSpace(a.body), "\n")
		if a.status != http.StatusMultiStatus || len(lines) != 3 {
			t.Fatalf("NDJSON: %d %q, want 207 and three lines", a.status, a.body)
		}
		for i, want := range []string{`"status":202,"id":"` + first + `"`, `"status":400,`, `"status":202,"id":"` + third + `"`} {
			if !strings.Contains(lines[i], want) {
				t.Errorf("NDJSON line %d: %s, want %s in it", i+1, lines[i], want)
			}
		}
		ids = append(ids, first, third)
	}
	if slices.Contains(ids, "") {
		t.Errorf("an answer has no id: %q", ids)
	}
	posted := time.Since(began)
	got := detailed.collect(t, ids)
	took := time.Since(began)
	if took < pause || took > bound {
		t.Errorf("all results took %v, want %v to %v", took, pause, bound)
	}
	for _, m := range got {
		if m.Text != "fedcba" {
			t.Errorf("text %q, want fedcba", m.Text)
		}
		if d := m.Done.Sub(m.Accepted); d < pause || d > bound {
			t.Errorf("done %v after it was accepted, want %v to %v", d, pause, bound)
		}
		if m.Accepted.Before(began.Truncate(time.Microsecond)) || m.Done.After(time.Now()) {
			t.Errorf("accepted %v, done %v: not within the test, which began at %v", m.Accepted, m.Done, began)
		}
	}
	for range ids {
		if text := plain.next(t); text != "fedcba" {
			t.Errorf("text listener got %q, want fedcba", text)
		}
	}
	t.Logf("%d texts posted in %v, all results after %v, the last %v after it was accepted", len(ids),
		posted.Round(time.Millisecond), took.Round(time.Millisecond), got[len(got)-1].Done.Sub(got[len(got)-1].Accepted))

	// There is nothing else.
	detailed.drainWith(t, s, "the-end")
	if text := plain.next(t); text != "x" {
		t.Errorf("text listener got %q, want x", text)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	s := start(t)
	const form, plain = "application/x-www-form-urlencoded", "text/plain"
	for _, tt := range []struct {
		name                            string
		site                            string
		method, path, contentType, body string
		status                          int
	}{
		{"empty form field", s.apiSites[0], "POST", wire.QueuePath, form, "text=", 400},
		{"empty body", s.apiSites[1], "POST", wire.QueuePath, plain, "", 400},
		{"no text in the form", s.apiSites[0], "POST", wire.QueuePath, form, "txt=abc", 400},
		{"no JSON", s.apiSites[0], "POST", wire.QueuePath, "application/json", "abc", 400},
		{"bad UTF-8", s.apiSites[0], "POST", wire.QueuePath, plain, "abc\xff", 400},
		{"bad UTF-8 in a form", s.apiSites[0], "POST", wire.QueuePath, form, "text=%ff", 400},
		{"1 MiB", s.apiSites[0], "POST", wire.QueuePath, plain, strings.Repeat("x", 1<<20), 413},
		{"1 MiB in a form", s.apiSites[1], "POST", wire.QueuePath, form, "text=" + strings.Repeat("x", 1<<20), 413},
		{"GET", s.apiSites[0], "GET", wire.QueuePath, "", "", 405},
		{"wrong type", s.apiSites[0], "POST", wire.QueuePath, "image/png", "abc", 415},
		{"wrong path", s.apiSites[0], "POST", "/queue", plain, "abc", 404},
		{"wrong path for a listener", s.socketSite, "GET", "/listen", "", "", 404},
		{"a listener without a websocket", s.socketSite, "GET", wire.ListenPath, "", "", 426},
		{"a listener that posts", s.socketSite, "POST", "/listen_results", plain, "abc", 405},
		{"unknown format", s.socketSite, "GET", wire.ListenPath + "?format=xml", "", "", 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if err := checkProblem(request(t, tt.method, tt.site, tt.path, tt.body, "Content-Type", tt.contentType), tt.status); err != nil {
				t.Error(err)
			}
		})
	}
}

// A text that is posted again under its id, however the id is given, has one
// result at the listeners.
func TestOneIDOneResult(t *testing.T) {
	t.Parallel()
	s := start(t)
	l := s.listen(t, "json")
	s.startWorker(t, "--pause", "0s")
	const id = "order-42"
	for i := range 4 {
		a := request(t, http.MethodPost, s.apiSites[i%2], wire.QueuePath, "text=abcdef", "Content-Type", "application/x-www-form-urlencoded", wire.KeyHeader, id)
		if a.status != http.StatusAccepted || a.header.Get(wire.TaskIDHeader) != id {
			t.Errorf("%d with id %q, want 202 with %q", a.status, a.header.Get(wire.TaskIDHeader), id)
		}
		send(t, s.apiSites[i%2], id, "abcdef")
	}
	l.collect(t, []string{id})
	await.True(t, "all eight are handled", func() bool { return rabbittest.QueueLength(t, s.node, s.url, "revq.tasks") == 0 })
	l.drainWith(t, s, "the-end") // what came after the first was dropped
}

// Another text under an id that is in use is another task: what was answered
// 202 has a result, also for who resumes, and after a restart of the server.
func TestOneIDTwoTexts(t *testing.T) {
	t.Parallel()
	s := start(t)
	l := s.listen(t, "json")
	s.startWorker(t, "--pause", "0s")
	texts := []string{"abc", "xyz", "abc", "xyz"} // the last two are repetitions
	for i, text := range texts {
		send(t, s.apiSites[i%2], "order-1", text)
	}
	check := func(l *listener) {
		t.Helper()
		got := []string{l.nextResult(t).Text, l.nextResult(t).Text}
		slices.Sort(got)
		if want := []string{"cba", "zyx"}; !slices.Equal(got, want) {
			t.Errorf("listeners got %q, want %q", got, want)
		}
	}
	check(l)
	await.True(t, "all are handled", func() bool { return rabbittest.QueueLength(t, s.node, s.url, "revq.tasks") == 0 })
	l.drainWith(t, s, "the-end")
	check(s.listenAfter(t, "json", "-1"))
}

// Two workers share the tasks; the tasks of one that is killed in the middle go
// to the other.
func TestWorkerKilled(t *testing.T) {
	t.Parallel()
	s := start(t)
	l := s.listen(t, "json")
	s.startWorker(t)
	victim := s.startWorker(t)
	ids := names("task", 20)
	const pause = 3 * time.Second   // time to count the workers' tasks
	text := strings.Repeat("x", 30) // which takes that pause
	began := time.Now()
	var batch strings.Builder
	for _, id := range ids {
		batch.WriteString(submission(id, text) + "\n")
	}
	if a := post(t, s.apiSites[0], "application/x-ndjson", batch.String()); a.status != http.StatusAccepted {
		t.Fatalf("%d %s", a.status, a.body)
	}
	await.True(t, "both workers take part", func() bool { return s.workerUnacked(t) == "[10,10]" })
	victim.Signal(t, syscall.SIGKILL)
	if status := victim.Wait(t); status != -1 {
		t.Errorf("status %d after kill -9", status)
	}
	killed := time.Since(began)
	l.collect(t, ids)
	took := time.Since(began)
	if killed > pause || took < 2*pause || took > 10*pause {
		t.Errorf("killed after %v, all results after %v: want the kill in the pause of %v, and twice the pause in all", killed, took, pause)
	}
	t.Logf("kill -9 of one of two workers after %v, all 20 results, each once, after %v", killed.Round(time.Millisecond), took.Round(time.Millisecond))
	l.drainWith(t, s, "the-end")
}
