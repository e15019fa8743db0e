package api

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

func TestBatch(t *testing.T) {
	t.Parallel()
	refuse := func(task.Task) <-chan error { return decided(errDown) }
	for _, tc := range []struct {
		name, body string
		publish    func(task.Task) <-chan error
		status     int
		want       []string // each line: the id, or "LINE STATUS DETAIL"
	}{
		{"one", `{"text":"a","id":"1"}`, nil, 202, []string{"1"}},
		{"several, in order", "{\"text\":\"a\",\"id\":\"2\"}\r\n\n \t\n{\"id\":\"1\",\"text\":\"b\"}\n", nil, 202, []string{"2", "1"}},
		{"bad ones do not stop others", "{\"text\":1}\n{\"text\":\"a\",\"id\":\"1\"}\n\n{\"text\":\"\xff\"}\n" +
			`{"text":"` + strings.Repeat("x", task.DefaultMaxText+1) + `"}`, nil, 207,
			[]string{`1 400 "text" must be`, "1", "4 400 not valid UTF-8", "5 413 at most"}},
		{"all bad", "1\n2", nil, 400, []string{"1 400 expected", "2 400 expected"}},
		{"all refused", "{\"text\":\"a\"}\n{\"text\":\"b\"}", refuse, 503, []string{"1 503 not connected", "2 503 not connected"}},
		{"some refused", "{\"text\":\"a\"}\n{", refuse, 207, []string{"1 503 not connected", "2 400 malformed"}},
		{"an id and its text again", "{\"text\":\"a\",\"id\":\"1\"}\n{\"text\":\"b\",\"id\":\"2\"}\n{\"text\":\"a\",\"id\":\"1\"}", nil, 202, []string{"1", "2", "1"}},
		{"another text under an id", "{\"text\":\"a\",\"id\":\"1\"}\n{\"text\":\"b\",\"id\":\"1\"}\n{\"text\":\"a\",\"id\":\"1\"}", nil, 207,
			[]string{"1", "2 422 another text under the id", "1"}},
		{"an id again that was not confirmed", "{\"text\":\"a\",\"id\":\"1\"}\n{\"text\":\"a\",\"id\":\"1\"}", refuse, 503, []string{"1 503 not connected", "2 503 not connected"}},
		{"a bad line does not take an id", "{\"text\":\"\",\"id\":\"1\"}\n{\"text\":\"a\",\"id\":\"1\"}", nil, 207, []string{"1 400 empty", "1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := setup(t, &broker{publish: tc.publish})
			r := s.do(t, "POST", wire.QueuePath, tc.body, "Content-Type", typeNDJSON)
			if r.StatusCode != tc.status || r.Header.Get("Content-Type") != typeNDJSON {
				t.Fatalf("%d %s: %s", r.StatusCode, r.Header.Get("Content-Type"), r.body)
			}
			if got, want := r.Header.Get("Retry-After") != "", tc.publish != nil; got != want {
				t.Errorf("Retry-After is there: %t", got)
			}
			got := strings.Split(strings.TrimSuffix(r.body, "\n"), "\n")
			if len(got) != len(tc.want) {
				t.Fatalf("%d lines of answer, want %d: %s", len(got), len(tc.want), r.body)
			}
			for i, want := range tc.want {
				if !strings.Contains(want, " ") {
					if want = fmt.Sprintf(`{"status":202,"id":%q}`, want); got[i] != want {
						t.Errorf("%s, want %s", got[i], want)
					}
					continue
				}
				var line, status int
				if _, err := fmt.Sscan(want, &line, &status); err != nil {
					t.Fatal(err)
				}
				detail := strings.SplitN(want, " ", 3)[2]
				if p := checkProblem(t, got[i], status, detail); p.Line != line || (p.ID != "") != (status == 503) {
					t.Errorf("%s: want line %d, and an id only with 503", got[i], line)
				}
			}
		})
	}
}

func TestBatchRefusedWhole(t *testing.T) {
	t.Parallel()
	s := setup(t, &broker{})
	s.do(t, "POST", wire.QueuePath, " \n\r\n", "Content-Type", typeNDJSON).check(t, 400, "the batch is empty")
	s.do(t, "POST", wire.QueuePath, "", "Content-Type", typeNDJSON).check(t, 400, "the batch is empty")
	s.do(t, "POST", wire.QueuePath, strings.Repeat("\n", maxLines+1), "Content-Type", typeNDJSON).check(t, 413, "10000 lines")
	s.do(t, "POST", wire.QueuePath, `{"text":"a"}`, "Content-Type", typeNDJSON, "Idempotency-Key", "k").
		check(t, 400, "its own")
}

// A batch has as many lines as the limit says, with a last line break or
// without.
func TestBatchLines(t *testing.T) {
	t.Parallel()
	s := setup(t, &broker{})
	for _, tc := range []struct {
		lines  int
		end    string
		status int
	}{{maxLines, "", 202}, {maxLines, "\n", 202}, {maxLines, "\r\n", 202}, {maxLines + 1, "", 413}, {maxLines + 1, "\n", 413}} {
		body := strings.Repeat("{\"text\":\"a\"}\n", tc.lines-1) + `{"text":"a"}` + tc.end
		if r := s.do(t, "POST", wire.QueuePath, body, "Content-Type", typeNDJSON); r.StatusCode != tc.status {
			t.Errorf("%d lines that end with %q: %d, want %d", tc.lines, tc.end, r.StatusCode, tc.status)
		}
	}
}

// The text under an id is published once, however often the batch has it.
func TestBatchPublishesARepetitionOnce(t *testing.T) {
	t.Parallel()
	published := make(chan string, 10)
	s := setup(t, &broker{publish: func(tk task.Task) <-chan error {
		published <- tk.ID + tk.Text
		return decided(nil)
	}}, func(c *Config) { c.MaxInFlight = 1 })
	s.do(t, "POST", wire.QueuePath, strings.Repeat("{\"text\":\"a\",\"id\":\"1\"}\n", 3)+"{\"text\":\"a\"}\n{\"text\":\"a\"}", "Content-Type", typeNDJSON)
	if len(published) != 3 || <-published != "1a" {
		t.Errorf("%d texts were published, want one under the id and two without", len(published))
	}
}

// All lines are on their way before any is confirmed.
func TestBatchIsPipelined(t *testing.T) {
	t.Parallel()
	const lines = 100
	confirm := make(chan error)
	published := make(chan string, lines)
	s := setup(t, &broker{publish: func(tk task.Task) <-chan error {
		published <- tk.Text
		return confirm
	}})
	w := s.dial(t)
	w.send(t, post(typeNDJSON, strings.Repeat("{\"text\":\"a\"}\n", lines)))
	for range lines {
		await.Value(t, "task", published)
	}
	if n := s.InFlight(); n != lines {
		t.Errorf("%d in flight, want %d", n, lines)
	}
	close(confirm)
	if r := w.reply(t); r.StatusCode != 202 || strings.Count(r.body, "\n") != lines {
		t.Errorf("%d, %d lines", r.StatusCode, strings.Count(r.body, "\n"))
	}
}

// A batch larger than MaxInFlight goes through in MaxInFlight places.
func TestBatchLargerThanMaxInFlight(t *testing.T) {
	t.Parallel()
	const places, lines = 3, 50
	var s *site
	highest := 0
	s = setup(t, &broker{publish: func(task.Task) <-chan error {
		highest = max(highest, s.InFlight())
		return decided(nil)
	}}, func(c *Config) { c.MaxInFlight = places })
	r := s.do(t, "POST", wire.QueuePath, strings.Repeat("{\"text\":\"a\"}\n", lines), "Content-Type", typeNDJSON)
	if r.StatusCode != http.StatusAccepted || strings.Count(r.body, "202") < lines {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
	if highest != places {
		t.Errorf("at most %d were in flight, want %d", highest, places)
	}
}

// A batch that has no place at all waits for nobody.
func TestBatchWithoutPlaces(t *testing.T) {
	t.Parallel()
	confirm, published := make(chan error, 1), make(chan string, 1)
	s := setup(t, &broker{publish: func(tk task.Task) <-chan error {
		published <- tk.Text
		return confirm
	}}, func(c *Config) { c.MaxInFlight = 1 })
	w := s.dial(t)
	w.send(t, post(typePlain, "abc"))
	await.Value(t, "task", published)
	r := s.do(t, "POST", wire.QueuePath, "{\"text\":\"a\"}\n{\"text\":\"b\"}", "Content-Type", typeNDJSON)
	if r.StatusCode != 429 || r.Header.Get("Retry-After") == "" || strings.Count(r.body, "texts are waiting") != 2 {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
	confirm <- nil
	w.reply(t)
}
