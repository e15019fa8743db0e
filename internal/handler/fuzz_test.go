package handler

import (
	"encoding/json"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
	"github.com/revq/revq/internal/worker"
)

// What a program may write: nothing of it upsets a worker, and what is taken
// for an answer is one.
func FuzzReply(f *testing.F) {
	for _, s := range []string{
		`{"revq":1}`, `{"revq":2}`, `{"id":"a","text":"b"}`, `{"id":"a","text":null}`, `{"id":"a","error":"b","retry":"later"}`,
		`{"id":"a","error":"b","retry":"never"}`, `{"id":"a","progress":{"done":1}}`, `{"id":"a","progress":null}`, `{"id":1,"text":"b"}`,
		`{"id":"a","text":"b"} {}`, `[]`, `null`, ``, "debug: begin", "{\"id\":\"a\",\"text\":\"\xff\"}", `{"id":"a","text":"\ud800"}`, `{"ID":"a","Text":"b"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := parseReply(line)
		if err != nil {
			return
		}
		if !json.Valid(line) || !utf8.Valid(line) {
			t.Errorf("%q is no JSON in UTF-8, and was taken", line)
		}
		if !utf8.ValidString(r.text) || !utf8.ValidString(r.id) {
			t.Errorf("%q: %+v is not UTF-8", line, r)
		}
		if r.kind == isError && r.retry != worker.Failed && r.retry != worker.Later && r.retry != worker.Never {
			t.Errorf("%q: outcome %d", line, r.retry)
		}
	})
}

// What a worker may send to `revq handle`, and what others do. What is taken
// reads the same once it is written again.
func FuzzJob(f *testing.F) {
	f.Add([]byte(`{"id":"a","queue":"reverse_text","text":"abc","attempt":1,"last_attempt":false,"deadline":1764162398.123}`))
	f.Add([]byte(`{"id":"a","text":"abc","deadline":1e300}`))
	f.Add([]byte(`{"id":"a","text":"abc","deadline":0}`))
	f.Add([]byte(`{"id":"a b","text":"abc","deadline":1}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		j, err := parseJob(line)
		if err != nil {
			return
		}
		if wire.CheckID(j.id) != nil || task.CheckText(j.text, task.MaxText) != nil {
			t.Errorf("%q: %+v", line, j)
		}
		again, err := parseJob(encodeJob(j))
		if err != nil || again != j {
			t.Errorf("%q: %+v reads as %+v, %v", line, j, again, err)
		}
	})
}

func TestEncodeReply(t *testing.T) {
	t.Parallel()
	for _, wrong := range []*worker.Error{nil, verdict(worker.Failed, "a"), verdict(worker.Never, "b"), verdict(worker.Later, "c"), verdict(worker.Misconfigured, "d")} {
		r, err := parseReply(encodeReply("id", "te\nxt", wrong))
		switch {
		case err != nil || r.id != "id":
			t.Errorf("%v: %+v, %v", wrong, r, err)
		case wrong == nil:
			if r.kind != isResult || r.text != "te\nxt" {
				t.Errorf("a result reads as %+v", r)
			}
		default:
			want := wrong.Outcome
			if want == worker.Misconfigured {
				want = worker.Later // the worker cannot do more about it
			}
			if r.kind != isError || r.text != wrong.Error() || r.retry != want {
				t.Errorf("%v reads as %+v", wrong, r)
			}
		}
	}
}

// Lines of a program that writes too much of its standard error.
func TestStderr(t *testing.T) {
	t.Parallel()
	out := &record{}
	s := newStderr(textLog(out))
	now := time.Unix(0, 0)
	s.now = func() time.Time { return now }
	v := &voice{to: s, id: "task-1"}
	for range 10 * lineBurst {
		v.Write([]byte("a line\n"))
	}
	if n := out.count(`line="a line"`); n != lineBurst {
		t.Errorf("%d lines at once, want %d", n, lineBurst)
	}
	now = now.Add(time.Second)
	for range 10 * lineBurst {
		v.Write([]byte("a line\n"))
	}
	if n := out.count(`line="a line"`); n != lineBurst+lineRate {
		t.Errorf("%d lines after a second, want %d", n, lineBurst+lineRate)
	}
	if out.count("lines=1800") != 1 {
		t.Error("it does not say how many lines were left out")
	}
	now = now.Add(time.Minute)
	v.begin("task-2")
	v.Write(make([]byte, 10*maxLine))
	v.Write([]byte("half"))
	v.Write([]byte(" a line\r\nthe end"))
	said := v.end()
	if len(said) != maxSaid || said[len(said)-7:] != "the end" {
		t.Errorf("it keeps %d bytes that end with %q", len(said), said[len(said)-7:])
	}
	if out.count(`task=task-2 line="the end"`) != 1 || out.count("…") != 1 {
		t.Errorf("the log: %s", out)
	}
}
