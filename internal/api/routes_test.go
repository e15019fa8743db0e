package api

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

const utf16JSON = "application/json; charset=utf-16"

func TestAccepts(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, contentType, body string
		text                    string
	}{
		{"form", typeForm, "text=abcdef", "abcdef"},
		{"form with a charset", typeForm + "; charset=UTF-8", "text=abc", "abc"},
		{"form, plus and percent", typeForm, "text=a+b%2Bc%26%c3%a9%0A", "a b+c&é\n"},
		{"form, raw UTF-8 and =", typeForm, "text=é=1;2", "é=1;2"},
		{"form, encoded name", typeForm, "te%78t=abc", "abc"},
		{"form, other fields", typeForm, "&a=1&text=abc&send=%zz&text2=x", "abc"},
		{"JSON", typeJSON, `{"text":"abcdef"}`, "abcdef"},
		{"JSON with a charset", "Application/JSON;Charset=\"utf-8\"", ` { "text" : "abc" } `, "abc"},
		{"JSON escapes", typeJSON, `{"t\u0065xt":"a\"\\\/\b\f\n\r\tЖ\ud83d\ude00\u0000é"}`, "a\"\\/\b\f\n\r\tЖ😀\x00é"},
		{"plain", typePlain, "a+b=%20\n", "a+b=%20\n"},
		{"plain UTF-8", "TEXT/Plain; charset=utf-8", "żółw", "żółw"},
		{"plain ASCII", "text/plain; charset=us-ascii", "abc", "abc"},
		{"longest", typePlain, strings.Repeat("x", task.DefaultMaxText), strings.Repeat("x", task.DefaultMaxText)},
		{"longest form", typeForm, "text=" + strings.Repeat("%7A", task.DefaultMaxText), strings.Repeat("z", task.DefaultMaxText)},
		{"longest JSON", typeJSON, `{"text":"` + strings.Repeat(`\u007a`, task.DefaultMaxText) + `"}`, strings.Repeat("z", task.DefaultMaxText)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := &broker{}
			s := setup(t, b)
			before := time.Now()
			r := s.do(t, "POST", wire.QueuePath, tc.body, "Content-Type", tc.contentType)
			if r.StatusCode != http.StatusAccepted || r.body != "Got it" {
				t.Fatalf("%d %s", r.StatusCode, r.body)
			}
			if got := r.Header.Get("Content-Type"); got != "text/plain; charset=utf-8" {
				t.Errorf("Content-Type %q", got)
			}
			got := b.only(t)
			if got.Text != tc.text {
				t.Errorf("published %.100q, want %.100q", got.Text, tc.text)
			}
			if err := wire.CheckID(got.ID); err != nil || r.Header.Get("Revq-Task-Id") != got.ID {
				t.Errorf("id %q, answered %q", got.ID, r.Header.Get("Revq-Task-Id"))
			}
			if got.Accepted.Before(before) || got.Accepted.After(time.Now()) {
				t.Errorf("accepted at %v", got.Accepted)
			}
		})
	}
}

func TestAcceptedAsJSON(t *testing.T) {
	t.Parallel()
	b := &broker{}
	s := setup(t, b)
	r := s.do(t, "POST", wire.QueuePath, `{"text":"a","id":"x\"\\y"}`, "Content-Type", typeJSON, "Accept", typeJSON)
	if want := `{"status":"accepted","message":"Got it","id":"x\"\\y"}`; r.StatusCode != 202 || r.body != want {
		t.Errorf("%d %s, want %s", r.StatusCode, r.body, want)
	}
	if got := r.Header.Get("Content-Type"); got != typeJSON {
		t.Errorf("Content-Type %q", got)
	}
}

func TestPrefersJSON(t *testing.T) {
	t.Parallel()
	for accept, want := range map[string]bool{
		"":                                    false,
		"*/*":                                 false,
		"application/json":                    true,
		"Application/JSON; indent=1":          true,
		"application/json, text/plain, */*":   true,
		"application/*":                       true,
		"text/html,application/json;q=0.9":    true,
		"text/plain, application/json":        false,
		"text/*":                              false,
		"image/png":                           false,
		"application/problem+json, image/png": false,
	} {
		if got := prefersJSON([]byte(accept)); got != want {
			t.Errorf("prefersJSON(%q) = %t", accept, got)
		}
	}
}

func TestIDs(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, key, body string
		want            string // id, or detail of a 400 if it has a space
	}{
		{"header", "order/42", `{"text":"a"}`, "order/42"},
		{"quoted header", `"order/42"`, `{"text":"a"}`, "order/42"},
		{"member", "", `{"text":"a","id":"order/42"}`, "order/42"},
		{"both, the same", `"k"`, `{"id":"k","text":"a"}`, "k"},
		{"both, different", "k1", `{"text":"a","id":"k2"}`, `and "id" differ`},
		{"header with a space", "a b", `{"text":"a"}`, "Idempotency-Key: a task id is"},
		{"header too long", strings.Repeat("k", wire.MaxIDLength+1), `{"text":"a"}`, "Idempotency-Key: a task id is"},
		{"only quotes", `""`, `{"text":"a"}`, "Idempotency-Key: a task id is"},
		{"quotes in quotes", `"a"b"`, `{"text":"a"}`, "no quotes and"},
		{"member empty", "", `{"text":"a","id":""}`, `"id": a task id is`},
		{"member not ASCII", "k", `{"text":"a","id":"é"}`, `"id": a task id is`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := &broker{}
			s := setup(t, b)
			header := []string{"Content-Type", typeJSON}
			if tc.key != "" {
				header = append(header, "Idempotency-Key", tc.key)
			}
			r := s.do(t, "POST", wire.QueuePath, tc.body, header...)
			if strings.Contains(tc.want, " ") {
				r.check(t, 400, tc.want)
			} else if got := b.only(t).ID; r.StatusCode != 202 || got != tc.want {
				t.Errorf("status %d, id %q; want id %q", r.StatusCode, got, tc.want)
			}
		})
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", task.DefaultMaxText+1)
	for _, tc := range []struct {
		name, contentType, body string
		status                  int
		detail                  string
	}{
		{"no body", "", "", 400, "there is no text"},
		{"form, no field", typeForm, "txt=abc", 400, `no "text"`},
		{"form, empty body", typeForm, "", 400, `no "text"`},
		{"form, empty text", typeForm, "text=", 400, "empty"},
		{"form, no value", typeForm, "text", 400, "empty"},
		{"form, two texts", typeForm, "text=a&text=b", 400, "more than one"},
		{"form, bad escape", typeForm, "text=100%", 400, "%25"},
		{"form, not UTF-8", typeForm, "text=%ff", 400, "not valid UTF-8"},
		{"plain, empty", typePlain, "", 400, "empty"},
		{"plain, not UTF-8", typePlain, "caf\xe9", 400, "not valid UTF-8"},
		{"JSON, empty", typeJSON, "", 400, "expected a JSON object"},
		{"JSON, array", typeJSON, `["a"]`, 400, "expected a JSON object"},
		{"JSON, no text", typeJSON, `{}`, 400, `"text" is missing`},
		{"JSON, empty text", typeJSON, `{"text":""}`, 400, "empty"},
		{"JSON, text is a number", typeJSON, `{"text":1}`, 400, `"text" must be a string`},
		{"JSON, id is null", typeJSON, `{"text":"a","id":null}`, 400, `"id" must be a string`},
		{"JSON, two texts", typeJSON, `{"text":"a","t\u0065xt":"b"}`, 400, `there is more than one "text"`},
		{"JSON, two empty ids", typeJSON, `{"id":"","id":"b","text":"a"}`, 400, `there is more than one "id"`},
		{"JSON, unknown field", typeJSON, `{"text":"a","ID":"b"}`, 400, `"ID" is not known`},
		{"JSON, long unknown field", typeJSON, `{"` + long + `":"b"}`, 400, `x…" is not known`},
		{"JSON, more after it", typeJSON, `{"text":"a"} {}`, 400, "more after the JSON object, at byte 13"},
		{"JSON, NUL after it", typeJSON, "{\"text\":\"a\"}\x00", 400, "more after"},
		{"JSON, comma at the end", typeJSON, `{"text":"a",}`, 400, "malformed JSON at byte 12"},
		{"JSON, no comma", typeJSON, `{"text":"a" "id":"b"}`, 400, "malformed JSON"},
		{"JSON, no colon", typeJSON, `{"text" "a"}`, 400, "malformed JSON"},
		{"JSON, cut", typeJSON, `{"text":"abc`, 400, "malformed JSON"},
		{"JSON, cut in an escape", typeJSON, `{"text":"abc\`, 400, "malformed JSON"},
		{"JSON, bad escape", typeJSON, `{"text":"\x41"}`, 400, "malformed JSON"},
		{"JSON, bad digits", typeJSON, `{"text":"\u00+1"}`, 400, "malformed JSON"},
		{"JSON, line break in a string", typeJSON, "{\"text\":\"a\nb\"}", 400, "malformed JSON"},
		{"JSON, half a pair", typeJSON, `{"text":"a\ud83d"}`, 400, "half of a surrogate pair"},
		{"JSON, pair reversed", typeJSON, `{"text":"\ude00\ud83d"}`, 400, "half of a surrogate pair"},
		{"JSON, not UTF-8", typeJSON, "{\"text\":\"\xff\"}", 400, "not valid UTF-8"},
		{"text too long", typePlain, long, 413, "65537 bytes, at most 65536"},
		{"JSON too long", typeJSON, `{"text":"` + long + `"}`, 413, "at most 65536"},
		{"1 MiB", typePlain, strings.Repeat("x", 1<<20), 413, "a text may have 65536 bytes"},
		{"batch over 1 MiB", typeNDJSON, strings.Repeat("\n", 1<<20+1), 413, "a batch (application/x-ndjson) 1048576 in all"},
		{"no type", "", "text=abc", 415, typeForm},
		{"multipart", "multipart/form-data; boundary=x", "--x--", 415, typeForm},
		{"XML", "application/xml", "<a/>", 415, typeJSON},
		{"1 MiB of XML", "application/xml", strings.Repeat("x", 1<<20), 415, typeJSON},
		{"other charset", utf16JSON, "{}", 415, "the only charset is utf-8"},
		{"malformed type", "text/plain; charset", "abc", 415, typePlain},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := &broker{}
			s := setup(t, b)
			var header []string
			if tc.contentType != "" {
				header = []string{"Content-Type", tc.contentType}
			}
			r := s.do(t, "POST", wire.QueuePath, tc.body, header...)
			r.check(t, tc.status, tc.detail)
			if got := r.Header.Get("Accept-Post") != ""; got != (tc.status == 415) {
				t.Errorf("Accept-Post is there: %t", got)
			}
			if len(b.tasks) > 0 {
				t.Errorf("published %v", b.tasks)
			}
		})
	}
}

func TestContentEncoding(t *testing.T) {
	t.Parallel()
	s := setup(t, &broker{})
	r := s.do(t, "POST", wire.QueuePath, "text=abc", "Content-Type", typeForm, "Content-Encoding", "gzip")
	r.check(t, 415, "without Content-Encoding")
	r = s.do(t, "POST", wire.QueuePath, "text=abc", "Content-Type", typeForm, "Content-Encoding", "Identity")
	if r.StatusCode != 202 {
		t.Errorf("identity: status %d", r.StatusCode)
	}
}

func TestRoutes(t *testing.T) {
	t.Parallel()
	s := setup(t, &broker{})
	for _, tc := range []struct {
		method, path string
		status       int
		body, allow  string
	}{
		{"GET", "/healthz", 200, "ok", ""},
		{"HEAD", "/healthz", 200, "", ""},
		{"GET", "/readyz?verbose=1", 200, "ready", ""},
		{"OPTIONS", "/readyz", 204, "", "GET, HEAD, OPTIONS"},
		{"OPTIONS", "/queue_reverse_text", 204, "", "OPTIONS, POST"},
		{"GET", "/queue_reverse_text", 405, "use OPTIONS or POST", "OPTIONS, POST"},
		{"HEAD", "/queue_reverse_text", 405, "", "OPTIONS, POST"},
		{"PUT", "/queue_reverse_text", 405, "use OPTIONS or POST", "OPTIONS, POST"},
		{"BREW", "/queue_reverse_text", 501, "no such method", ""},
		{"POST", "/healthz", 405, "use GET", "GET, HEAD, OPTIONS"},
		{"GET", "/", 404, "POST /queue_reverse_text", ""},
		{"POST", "/queue_reverse_text/", 404, "POST /queue_reverse_text", ""},
		{"OPTIONS", "/nowhere", 404, "POST /queue_reverse_text", ""},
	} {
		t.Run(tc.method+" "+tc.path, func(t *testing.T) {
			t.Parallel()
			r := s.do(t, tc.method, tc.path, "")
			switch {
			case tc.status < 300 || tc.method == "HEAD":
				if r.StatusCode != tc.status || r.body != tc.body {
					t.Errorf("%d %q", r.StatusCode, r.body)
				}
			default:
				r.check(t, tc.status, tc.body)
			}
			if got := r.Header.Get("Allow"); got != tc.allow {
				t.Errorf("Allow %q, want %q", got, tc.allow)
			}
		})
	}
}

func TestReadyzTellsWhyNot(t *testing.T) {
	t.Parallel()
	s := setup(t, &broker{ready: errDown})
	s.do(t, "GET", "/readyz", "").check(t, 503, "the broker is not connected")
	if r := s.do(t, "GET", "/healthz", ""); r.StatusCode != 200 {
		t.Errorf("healthz: %d, though only the broker is down", r.StatusCode)
	}
}

func TestNotConfirmedIs503AndNamesTheTask(t *testing.T) {
	t.Parallel()
	b := &broker{publish: func(task.Task) <-chan error { return decided(errDown) }}
	s := setup(t, b)
	r := s.do(t, "POST", wire.QueuePath, "text=abc", "Content-Type", typeForm)
	r.check(t, 503, "the broker is not connected: send the text again with this id")
	id := b.only(t).ID
	if p := checkProblem(t, r.body, 503, ""); p.ID != id || r.Header.Get("Revq-Task-Id") != id {
		t.Errorf("the problem names %q, the header %q; want %q", p.ID, r.Header.Get("Revq-Task-Id"), id)
	}
}

func TestAnswersOnlyAfterConfirm(t *testing.T) {
	t.Parallel()
	confirm, published := make(chan error, 1), make(chan string, 1)
	s := setup(t, &broker{publish: func(task.Task) <-chan error {
		published <- ""
		return confirm
	}}, func(c *Config) { c.MaxInFlight = 1 })
	w := s.dial(t)
	w.send(t, post(typePlain, "abc"))
	await.Value(t, "task", published)
	if n := s.InFlight(); n != 1 {
		t.Errorf("%d tasks in flight, want 1", n)
	}
	if n := w.r.Buffered(); n > 0 {
		t.Errorf("%d bytes of answer before the confirmation", n)
	}
	s.do(t, "POST", wire.QueuePath, "text=abc", "Content-Type", typeForm).check(t, 429, "1 texts are waiting")
	confirm <- nil
	if r := w.reply(t); r.StatusCode != 202 {
		t.Errorf("status %d after the confirmation", r.StatusCode)
	}
}

func TestPanicIs500(t *testing.T) {
	t.Parallel()
	s := setup(t, &broker{publish: func(task.Task) <-chan error { panic("a bug") }})
	s.do(t, "POST", wire.QueuePath, "text=abc", "Content-Type", typeForm).check(t, 500, "a bug in revq")
	s.do(t, "POST", wire.QueuePath, `{"text":"a"}`, "Content-Type", typeNDJSON).check(t, 500, "a bug in revq")
	if n := s.InFlight(); n != 0 {
		t.Errorf("%d tasks stay in flight", n)
	}
}

// post is a POST of a text as it goes over the wire.
func post(contentType, body string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
		wire.QueuePath, contentType, len(body), body)
}

func TestFormIsWhatBrowsersSend(t *testing.T) {
	t.Parallel()
	text := "all of it: \x00\t&=+%;\"ü漢😀"
	sub, p := parseForm([]byte(url.Values{"a": {"&text=x"}, "text": {text}}.Encode()))
	if p != nil || sub.text != text {
		t.Errorf("%q, %v", sub.text, p)
	}
}
