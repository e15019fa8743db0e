package api

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// checkTask fails if what a parser took may not be published.
func checkTask(t *testing.T, sub submission) {
	t.Helper()
	s := &Server{cfg: DefaultConfig()}
	tk, p := s.newTask(sub, wire.DefaultQueue, time.Time{})
	if p != nil {
		return
	}
	if err := task.CheckText(tk.Text, s.cfg.MaxText); err != nil {
		t.Errorf("%q: %v", tk.Text, err)
	}
	if err := wire.CheckID(tk.ID); err != nil {
		t.Errorf("%q: %v", tk.ID, err)
	}
}

func FuzzForm(f *testing.F) {
	for _, s := range []string{"text=abc", "a=1&text=a+b%20c", "te%78t=%ff", "text=%", "text;=1", "=&&text", "text=a&text=b"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		sub, p := parseForm(body)
		if p == nil {
			checkTask(t, sub)
		}
		// net/url refuses more (a semicolon, a bad escape in another field), so
		// it is the judge only of what it takes.
		values, err := url.ParseQuery(string(body))
		if err != nil {
			return
		}
		texts := values["text"]
		if ok := len(texts) == 1; ok != (p == nil) || ok && texts[0] != sub.text {
			t.Errorf("%q: got %q, %v; net/url has %q", body, sub.text, p, texts)
		}
	})
}

func FuzzJSON(f *testing.F) {
	for _, s := range []string{
		`{"text":"abc"}`, `{"id":"1","text":"a\n\u00e9\ud83d\ude00"}`, `{"text":"\ud83d"}`, ` { "text" : "" } `,
		`{"text":null}`, `{"text":"a","text":"b"}`, `{"text":"a"}x`, "{\"text\":\"\xff\"}", `{}`, `{"a":{}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		sub, p := parseJSON(body)
		if p == nil {
			checkTask(t, sub)
		}
		var want map[string]*string
		err := json.Unmarshal(body, &want)
		if p == nil {
			// What is taken is JSON and means the same to encoding/json, which
			// however makes U+FFFD of what is not UTF-8.
			if err != nil || want["text"] == nil || *want["text"] != strings.ToValidUTF8(sub.text, "\ufffd") && utf8.Valid(body) {
				t.Errorf("%q: took %q, encoding/json has %v, %v", body, sub.text, want, err)
			}
			return
		}
		// What is refused is not JSON, or has one of the faults that
		// encoding/json lets pass.
		if err != nil || want["text"] == nil || !utf8.Valid(body) {
			return
		}
		delete(want, "text")
		if id := want["id"]; id != nil && wire.CheckID(*id) == nil {
			delete(want, "id")
		}
		if len(want) == 0 && !strings.Contains(p.Detail, "there is more than one") && !strings.Contains(p.Detail, "surrogate") {
			t.Errorf("%q: refused: %s", body, p.Detail)
		}
	})
}

// FuzzKey checks that an Idempotency-Key makes a valid id or none.
func FuzzKey(f *testing.F) {
	for _, s := range []string{"a", `"a"`, `"`, `""`, `"a\"b"`, "a b"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, header []byte) {
		sub := submission{text: "a"}
		if sub.takeKey(header) == nil {
			checkTask(t, sub)
		}
	})
}

// FuzzBody sends any body under any type through the whole server.
func FuzzBody(f *testing.F) {
	for _, contentType := range []string{typeForm, typeJSON, typePlain, typeNDJSON, "text/plain; charset=x", ""} {
		for _, body := range []string{"text=abc", `{"text":"abc","id":"1"}`, "{\"text\":\"a\"}\n\n1\n", "", "\xff"} {
			f.Add(contentType, body)
		}
	}
	b := &broker{}
	s := New(DefaultConfig(), b, discard)
	f.Fuzz(func(t *testing.T, contentType, body string) {
		b.tasks = nil
		ctx := request(contentType, body)
		s.front.Handle(ctx)
		switch status := ctx.Response.StatusCode(); status {
		case 202, 207, 400, 413, 415:
		default:
			t.Errorf("%q, %q: status %d", contentType, body, status)
		}
		for _, tk := range b.tasks {
			checkTask(t, submission{text: tk.Text, id: tk.ID})
			if task.CheckText(tk.Text, task.DefaultMaxText) != nil || wire.CheckID(tk.ID) != nil {
				t.Errorf("published %+v", tk)
			}
		}
		if n := s.InFlight(); n != 0 {
			t.Errorf("%d in flight", n)
		}
	})
}
