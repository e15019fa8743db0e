package feed

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
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
	var m wire.Message
	if err := json.Unmarshal(frame[4:], &m); err != nil {
		t.Fatal(err)
	}
	want := wire.Message{Type: "result", Offset: 7, ID: "a", Text: "fe\"dc<b>a", Accepted: accepted, Done: accepted.Add(time.Second)}
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

// Only the same id with the same text is a repetition.
func TestWindow(t *testing.T) {
	abc, xyz := task.DigestOf("abc"), task.DigestOf("xyz")
	w := NewWindow(10)
	for _, tc := range []struct {
		name string
		r    task.Result
		new  bool
	}{
		{"the first", task.Result{ID: "order-1", Of: abc}, true},
		{"the same again, though it became another text", task.Result{ID: "order-1", Of: abc, Text: "other"}, false},
		{"another text under the same id", task.Result{ID: "order-1", Of: xyz}, true},
		{"that again", task.Result{ID: "order-1", Of: xyz}, false},
		{"the first text again", task.Result{ID: "order-1", Of: abc}, false},
		{"the same text under another id", task.Result{ID: "order-2", Of: abc}, true},
		{"no digest, as from other programs", task.Result{ID: "order-1"}, true},
		{"again none", task.Result{ID: "order-1"}, false},
	} {
		if got := w.Add(tc.r); got != tc.new {
			t.Errorf("%s: Add = %t, want %t", tc.name, got, tc.new)
		}
	}
}

// A lost result is reported in every format that can say so, and each time,
// since it may have no id.
func TestLostResults(t *testing.T) {
	f := New(DefaultConfig())
	for offset := range int64(2) {
		f.Append(offset, task.Result{Kind: task.Lost, Text: "it is no text"})
	}
	f.Append(2, task.Result{ID: "a", Text: "a"})
	for format, want := range map[Format][]string{
		Text:   {"\x81\x01a"},
		JSON:   {`{"type":"lost","offset":0,"text":"it is no text"}`, `{"type":"lost","offset":1,"text":"it is no text"}`, `"a"`},
		Events: {"event: lost\nid: 0\ndata: {", "event: lost\nid: 1\ndata: {", "id: 2/a\n"},
	} {
		got, _ := f.Log(format).Read(0)
		for _, part := range want {
			before, after, found := strings.Cut(string(got), part)
			if !found || format == Text && before+after != "" {
				t.Fatalf("format %d has %q, want %q", format, got, want)
			}
			got = []byte(after)
		}
	}
	if pos, verdict := f.Find(Text, wire.Mark{Offset: 1}); verdict != Here || pos != 0 {
		t.Errorf("the place after a lost result is %d, %v", pos, verdict)
	}
}

// The longest result fits into each log, whatever characters it has, and uses
// no memory once it has been released.
func TestLongestResult(t *testing.T) {
	cfg := Config{MaxBytes: 1 << 20, Window: 10}
	f := New(cfg)
	id := strings.Repeat("x", wire.MaxIDLength)
	now := time.Now()
	f.Append(math.MaxInt64-1, task.Result{ID: id, Text: strings.Repeat("\x01", cfg.LongestResult()), Accepted: now, Done: now})
	for format := range formats {
		if n := int(f.Log(format).End()); n > cfg.MaxBytes {
			t.Errorf("the frame of format %d has %d bytes, more than the log of %d", format, n, cfg.MaxBytes)
		}
	}
	if cap(f.data) > segmentBytes || cap(f.frame) > segmentBytes {
		t.Errorf("%d and %d bytes are kept for the next one", cap(f.data), cap(f.frame))
	}
	if n := (Config{MaxBytes: minBytes}).LongestResult(); n < task.DefaultMaxText {
		t.Errorf("the smallest log takes results of %d bytes, and the API texts of %d", n, task.DefaultMaxText)
	}
	if n := DefaultConfig().LongestResult(); n < 1<<20 {
		t.Errorf("results of at most %d bytes are sent, and workers handle more", n)
	}
}

func TestJoinBeginsBehindTheNewest(t *testing.T) {
	f := New(DefaultConfig())
	if from, m := f.Join(Text); from != Pending || m.Offset != -1 {
		t.Errorf("Join before the feed is live = %v, %v", from, m)
	}
	f.Append(4, task.Result{ID: "a", Text: "a"})
	f.GoLive()
	from, m := f.Join(Text)
	if want := (wire.Mark{Offset: 4, ID: "a"}); m != want {
		t.Errorf("mark %v, want %v", m, want)
	}
	if live, at := f.Log(Text).Live(); from != live || at != m {
		t.Errorf("position %d, want %d, where the feed went live", from, live)
	}
	f.Append(6, task.Result{ID: "b", Text: "b"})
	if got, _ := f.Log(Text).Read(from); string(got) != "\x81\x01b" {
		t.Errorf("the listener gets %q, want only what came after it", got)
	}
	f.GoLive()
	if live, _ := f.Log(Text).Live(); live != from {
		t.Error("the feed went live twice")
	}
}

// A listener may stand at a mark without a result, before, between and after
// results.
func TestMarks(t *testing.T) {
	f := New(DefaultConfig())
	f.AppendMark(100, "first")
	f.GoLive()
	from, m := f.Join(Text)
	if want := (wire.Mark{Offset: 100, ID: "first"}); m != want {
		t.Errorf("an empty feed stands at %v, want %v", m, want)
	}
	f.Append(200, task.Result{ID: "a", Text: "a"})
	f.AppendMark(300, "second")
	f.Append(400, task.Result{ID: "b", Text: "b"})
	f.AppendMark(500, "third")
	const a, b = "\x81\x01a", "\x81\x01b"
	for _, tc := range []struct {
		mark    wire.Mark
		verdict Verdict
		next    string
	}{
		{m, Here, a + b},
		{wire.Mark{Offset: 200, ID: "a"}, Here, b},
		{wire.Mark{Offset: 300, ID: "second"}, Here, b},
		{wire.Mark{Offset: 300, ID: ""}, Here, b},
		{wire.Mark{Offset: 400, ID: "b"}, Here, ""},
		{wire.Mark{Offset: 500, ID: "third"}, Here, ""},
		{wire.Mark{Offset: 100, ID: "another"}, Foreign, ""},
		{wire.Mark{Offset: 500, ID: "another"}, Foreign, ""},
		{wire.Mark{Offset: 600, ID: "fourth"}, Ahead, ""},
	} {
		pos, verdict := f.Find(Text, tc.mark)
		if got, _ := f.Log(Text).Read(pos); verdict != tc.verdict || verdict == Here && string(got) != tc.next {
			t.Errorf("Find(%v) = %v, before %q; want %v, before %q", tc.mark, verdict, got, tc.verdict, tc.next)
		}
	}
	if got, _ := f.Log(Text).Read(from); string(got) != a+b {
		t.Errorf("who joined first gets %q", got)
	}
}

// If only marks arrive, not all are kept, and one that is not kept is never
// taken for another.
func TestMarksAreBounded(t *testing.T) {
	f := New(DefaultConfig())
	f.GoLive()
	const n = 10 * marksInARow
	mark := func(i int) wire.Mark { return wire.Mark{Offset: int64(100 * i), ID: fmt.Sprint("mark", i)} }
	for i := range n {
		f.AppendMark(mark(i).Offset, mark(i).ID)
	}
	if len(f.records) > marksInARow+1 {
		t.Errorf("%d records are kept of %d marks", len(f.records), n)
	}
	for i, want := range map[int]Verdict{0: Here, n - 2: Older, n - 1: Here} {
		if _, verdict := f.Find(JSON, mark(i)); verdict != want {
			t.Errorf("mark %d of %d: %v, want %v", i, n, verdict, want)
		}
	}
	if got := f.Last(); got != mark(n-1) {
		t.Errorf("Last = %v", got)
	}
}

func TestFind(t *testing.T) {
	f := New(Config{MaxBytes: 3 * segmentBytes, Window: 10})
	big := strings.Repeat("x", segmentBytes/2)
	for i := range 20 { // offsets 0, 2, … 38; the oldest are released
		f.Append(int64(2*i), task.Result{ID: fmt.Sprint("id", i), Text: big})
	}
	for _, tc := range []struct {
		name    string
		mark    wire.Mark
		verdict Verdict
		next    int // the number of the next result, if Here
	}{
		{"newest", wire.Mark{Offset: 38, ID: ""}, Here, 20},
		{"newest, with its id", wire.Mark{Offset: 38, ID: "id19"}, Here, 20},
		{"one before", wire.Mark{Offset: 36, ID: "id18"}, Here, 19},
		{"between two", wire.Mark{Offset: 37, ID: ""}, Here, 19},
		{"between two, with an id", wire.Mark{Offset: 37, ID: "whatever"}, Older, 0},
		{"another id", wire.Mark{Offset: 36, ID: "id17"}, Foreign, 0},
		{"released", wire.Mark{Offset: 2, ID: "id1"}, Older, 0},
		{"the beginning", wire.Mark{Offset: -1, ID: ""}, Older, 0},
		{"not there yet", wire.Mark{Offset: 39, ID: ""}, Ahead, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pos, verdict := f.Find(JSON, tc.mark)
			if verdict != tc.verdict {
				t.Fatalf("verdict %v, want %v", verdict, tc.verdict)
			}
			if verdict != Here {
				return
			}
			got, err := f.Log(JSON).Read(pos)
			want := ""
			if tc.next < 20 {
				want = fmt.Sprintf(`"id":"id%d"`, tc.next)
			}
			if err != nil || !strings.Contains(string(got[:min(len(got), 100)]), want) || want == "" && len(got) > 0 {
				t.Errorf("continues with %.100q, %v; want %s", got, err, want)
			}
		})
	}
	if n := len(f.records); n > 8 {
		t.Errorf("%d records are kept, of which %d are of results that no log holds", n, f.gone)
	}
	for i := range 10_000 { // short texts take far less room as such than in JSON
		f.Append(int64(100+i), task.Result{ID: fmt.Sprint("short", i), Text: "x"})
	}
	if n, limit := len(f.records), 4*segmentBytes/len(`{"type":"result","offset":100,"id":"short0","text":"x"}`); n > limit {
		t.Errorf("%d records of short texts are kept, want %d at most", n, limit)
	}
	if _, verdict := New(DefaultConfig()).Find(Text, wire.Mark{Offset: -1}); verdict != Older {
		t.Errorf("an empty feed says %v to the beginning, want Older: the stream may know more", verdict)
	}
}

func TestAppendGapTellsEveryFormat(t *testing.T) {
	f := New(DefaultConfig())
	f.Append(3, task.Result{ID: "a", Text: "a"})
	from := make(map[Format]Position)
	for format := range formats {
		from[format] = f.Log(format).End()
	}
	f.AppendGap("the stream is new")
	f.Append(0, task.Result{ID: "b", Text: "b"})
	for format, want := range map[Format]string{
		Text:   "\x88\x28\x0f\xa0results are missing: the stream is new\x81\x01b",
		JSON:   `{"type":"gap","offset":3,"id":"a","text":"the stream is new"}`,
		Events: "event: gap\nid: -1\ndata: {\"type\":\"gap\"",
	} {
		if got, _ := f.Log(format).Read(from[format]); !strings.Contains(string(got), want) {
			t.Errorf("format %d got %q, want %q", format, got, want)
		}
	}
	if _, verdict := f.Find(JSON, wire.Mark{Offset: 3, ID: "a"}); verdict != Ahead {
		t.Errorf("a mark from before the gap is %v, want Ahead", verdict)
	}
}

func TestEventsAreChunksOfServerSentEvents(t *testing.T) {
	f := New(DefaultConfig())
	f.Append(7, task.Result{ID: "a", Text: "two\nlines"})
	got, _ := f.Log(Events).Read(0)
	want := "id: 7/a\ndata: {\"type\":\"result\",\"offset\":7,\"id\":\"a\",\"text\":\"two\\nlines\"}\n\n"
	if want = fmt.Sprintf("%x\r\n%s\r\n", len(want), want); string(got) != want {
		t.Errorf("event %q, want %q", got, want)
	}
	greeting := string(AppendGreeting(nil, Events, wire.Mark{Offset: -1}, "hello"))
	if want := "event: greeting\nid: -1\ndata: {\"type\":\"greeting\",\"offset\":-1,\"text\":\"hello\"}\n\n"; !strings.Contains(greeting, want) {
		t.Errorf("greeting %q, want %q", greeting, want)
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
	long := strings.Repeat("x", maxReason-1)
	if got, want := string(AppendClose(nil, 1012, long+"äöü")), "\x88\x7c\x03\xf4"+long; got != want {
		t.Errorf("close frame with a long reason = %q, want %q", got, want)
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
