package feed

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/task"
)

func TestAppendFramesInEveryFormat(t *testing.T) {
	f := New(DefaultConfig())
	accepted := time.Date(2026, 1, 2, 3, 4, 5, 678_000, time.UTC)
	f.Append(7, task.Result{ID: "a", Text: "fe\"dc<b>a", Accepted: accepted, Done: accepted.Add(time.Second)})

	text, err := f.Log(Text).Read(0)
	if want := "\x81\x09fe\"dc<b>a"; err != nil || string(text) != want {
		t.Errorf("text log = %q, %v; want %q", text, err, want)
	}
	frame, err := f.Log(JSON).Read(0)
	if err != nil || len(frame) < 4 || frame[0] != 0x81 || frame[1] != 126 {
		t.Fatalf("JSON log = %q, %v; want one text frame with a 16 bit length", frame, err)
	}
	var m Message
	if err := json.Unmarshal(frame[4:], &m); err != nil {
		t.Fatal(err)
	}
	want := Message{Type: "result", Offset: 7, ID: "a", Text: "fe\"dc<b>a", Accepted: accepted, Done: accepted.Add(time.Second)}
	if m != want {
		t.Errorf("JSON message = %+v, want %+v", m, want)
	}
}

func TestAppendDropsRepetitionsWithinTheWindow(t *testing.T) {
	f := New(Config{MaxBytes: 1 << 20, Window: 3})
	for i, id := range []string{"a", "b", "a", "c", "b", "d", "a"} { // the last a is out of the window
		f.Append(int64(i), task.Result{ID: id, Text: id})
	}
	got, _ := f.Log(Text).Read(0)
	if want := "\x81\x01a\x81\x01b\x81\x01c\x81\x01d\x81\x01a"; string(got) != want {
		t.Errorf("log = %q, want %q", got, want)
	}
	if n := len(f.seen.ids); n != 3 {
		t.Errorf("%d ids are remembered, want 3", n)
	}
}

func TestJoinBeginsBehindTheNewest(t *testing.T) {
	f := New(DefaultConfig())
	greet := func() Message {
		t.Helper()
		_, frame := f.Join(JSON, "hello")
		var m Message
		if err := json.Unmarshal(frame[2:], &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	if m, want := greet(), (Message{Type: "greeting", Offset: -1, Text: "hello"}); m != want {
		t.Errorf("first greeting %+v, want %+v", m, want)
	}
	f.Append(5, task.Result{ID: "a", Text: "a"})
	if m := greet(); m.Offset != 5 {
		t.Errorf("greeting after the result 5 has offset %d", m.Offset)
	}
	from, frame := f.Join(Text, "hello")
	if string(frame) != "\x81\x05hello" {
		t.Errorf("greeting frame = %q", frame)
	}
	f.Append(6, task.Result{ID: "b", Text: "b"})
	if got, _ := f.Log(Text).Read(from); string(got) != "\x81\x01b" {
		t.Errorf("the listener gets %q, want only what came after it", got)
	}
}

func TestAppendWakes(t *testing.T) {
	f := New(DefaultConfig())
	woken := 0
	f.OnAppend(func() { woken++ })
	f.Append(0, task.Result{ID: "a", Text: "a"})
	f.Append(1, task.Result{ID: "a", Text: "a"})
	if woken != 1 {
		t.Errorf("woken %d times, want once: the second result is a repetition", woken)
	}
}

func TestAppendFrameLengths(t *testing.T) {
	for _, tc := range []struct {
		length int
		head   string
	}{
		{0, "\x81\x00"},
		{125, "\x81\x7d"},
		{126, "\x81\x7e\x00\x7e"},
		{65535, "\x81\x7e\xff\xff"},
		{65536, "\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"},
	} {
		payload := bytes.Repeat([]byte("x"), tc.length)
		if got := AppendFrame(nil, OpText, payload); string(got) != tc.head+string(payload) {
			t.Errorf("frame of %d bytes begins %q, want %q", tc.length, got[:min(len(got), 10)], tc.head)
		}
	}
	if got, want := string(AppendClose(nil, 1012, "bye")), "\x88\x05\x03\xf4bye"; got != want {
		t.Errorf("close frame = %q, want %q", got, want)
	}
}

func TestParseFormat(t *testing.T) {
	for name, want := range map[string]Format{"": Text, "text": Text, "json": JSON} {
		if got, err := ParseFormat(name); got != want || err != nil {
			t.Errorf("ParseFormat(%q) = %v, %v", name, got, err)
		}
	}
	if _, err := ParseFormat("xml"); err == nil || !strings.Contains(err.Error(), `"xml"`) {
		t.Errorf("ParseFormat(xml) = %v, want an error that names it", err)
	}
}

func BenchmarkAppend(b *testing.B) {
	f := New(DefaultConfig())
	ids := make([]string, 1<<18)
	for i := range ids {
		ids[i] = fmt.Sprintf("0190b9f4-0000-7000-8000-%012d", i)
	}
	text := strings.Repeat("x", 100)
	now := time.Now()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		f.Append(int64(i), task.Result{ID: ids[i%len(ids)], Text: text, Accepted: now, Done: now})
	}
}
