package feed

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// reading is a listener with a filter, as the socket server has it.
type reading struct {
	*View
	log  *Log
	pos  Position
	got  []byte
	over *Run
}

func (f *Feed) reading(t *testing.T, format Format, filter *Filter, after *wire.Mark) *reading {
	t.Helper()
	r := &reading{View: f.View(filter, format), log: f.Log(format)}
	if after == nil {
		r.pos, _ = r.Join()
		return r
	}
	var verdict Verdict
	if r.pos, verdict = r.Find(*after); verdict != Here {
		t.Fatalf("Find(%v) = %v", after, verdict)
	}
	return r
}

// read reads at most n bytes, and returns whether there were any.
func (r *reading) read(t *testing.T, n int) bool {
	t.Helper()
	run, err := r.Next(r.pos)
	if err != nil {
		t.Fatal(err)
	}
	r.pos = run.From
	switch {
	case run.Over:
		r.over = &run
		return false
	case run.From == run.To:
		return false
	}
	b, err := r.log.Read(run.From)
	if err != nil {
		t.Fatal(err)
	}
	n = min(n, len(b), int(run.To-run.From))
	r.got = append(r.got, b[:n]...)
	r.pos += Position(n)
	return true
}

func (r *reading) all(t *testing.T) string {
	t.Helper()
	for r.over == nil && r.read(t, 1<<30) {
	}
	return string(r.got)
}

// Whatever is appended, and however little of it a listener takes at once, it
// gets exactly what its filter lets pass, in order, and every gap.
func TestFiltersSelectExactly(t *testing.T) {
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 1))
		f := New(Config{MaxBytes: 4 << 20, Window: 10})
		f.GoLive()
		queues := []string{"a", "b", "c", ""}
		var listeners []*reading
		var want [][]byte
		var filters []*Filter
		for format := range formats {
			for _, filter := range []*Filter{NewFilter([]string{"a"}, ""), NewFilter([]string{"a", "c", "c"}, ""),
				NewFilter([]string{"none"}, ""), NewFilter(nil, "id7"), NewFilter([]string{"b"}, "id8")} {
				listeners = append(listeners, f.reading(t, format, filter, nil))
				filters = append(filters, filter)
			}
		}
		want = make([][]byte, len(listeners))
		add := func(frame func(dst []byte, format Format) []byte, passes func(*Filter) bool) {
			for i, l := range listeners {
				if passes(filters[i]) {
					want[i] = frame(want[i], l.format)
				}
			}
		}
		for i := range 3000 {
			switch random.IntN(40) {
			case 0:
				f.AppendMark(int64(i), fmt.Sprint("mark", i))
			case 1:
				last := f.Last()
				f.AppendGap("why")
				add(func(dst []byte, format Format) []byte { return AppendGap(dst, format, last, "why") }, func(*Filter) bool { return true })
			default:
				r := task.Result{ID: fmt.Sprint("id", random.IntN(100)), Queue: queues[random.IntN(4)], Of: task.Digest(i), Kind: task.Progress,
					Text: strings.Repeat("x", random.IntN(300))}
				if !strings.HasSuffix(r.ID, "7") && !strings.HasSuffix(r.ID, "8") {
					r.Kind = task.Kind(random.IntN(4))
				}
				if r.Kind == task.Lost && random.IntN(2) == 0 {
					r.ID = ""
				}
				f.Append(int64(i), r)
				add(func(dst []byte, format Format) []byte { return AppendResult(dst, format, int64(i), r) }, func(f *Filter) bool { return f.Wants(r) })
			}
			l := listeners[random.IntN(len(listeners))]
			_, l.pos, _ = l.Mark(l.pos)
			for range random.IntN(20) {
				l.read(t, 1+random.IntN(500))
			}
		}
		for i, l := range listeners {
			if l.all(t); !bytes.Equal(l.got, want[i]) {
				t.Fatalf("seed %d, listener %d of format %d got %d bytes, want %d: it differs", seed, i, l.format, len(l.got), len(want[i]))
			}
		}
	}
}

func TestTheViewOfOneTaskEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		kind    task.Kind
		formats []Format
		without bool
	}{
		"done":              {task.Done, []Format{Text, JSON, Events}, false},
		"given up":          {task.GivenUp, []Format{JSON, Events}, false},
		"given up, in text": {task.GivenUp, []Format{Text}, true},
		"lost":              {task.Lost, []Format{JSON, Events}, false},
		"lost, in text":     {task.Lost, []Format{Text}, true},
	} {
		for _, format := range tc.formats {
			for _, before := range []bool{false, true} { // it was told before the listener came
				f := New(DefaultConfig())
				f.GoLive()
				f.Append(1, task.Result{ID: "other", Text: "x"})
				filter := NewFilter(nil, "mine")
				var l *reading
				if !before {
					l = f.reading(t, format, filter, nil)
				}
				f.Append(2, task.Result{Kind: task.Progress, ID: "mine", Text: "half"})
				f.Append(3, task.Result{ID: "another", Text: "y"})
				if !before {
					if l.all(t); l.over != nil {
						t.Fatalf("%s: it is over after progress", name)
					}
				}
				f.Append(4, task.Result{Kind: tc.kind, ID: "mine", Text: "end"})
				f.Append(5, task.Result{ID: "mine", Text: "of another text", Of: 1})
				if before {
					l = f.reading(t, format, filter, &wire.Mark{Offset: 1, ID: "other"})
				}
				got := l.all(t)
				if l.over == nil || l.over.Without != tc.without {
					t.Errorf("%s, format %d: over: %+v", name, format, l.over)
				}
				if want := format != Text; strings.Contains(got, "half") != want {
					t.Errorf("%s, format %d: got %q", name, format, got)
				}
				if strings.Contains(got, "end") == tc.without || strings.Contains(got, "another") {
					t.Errorf("%s, format %d: got %q", name, format, got)
				}
			}
		}
	}
}

// A listener that wants one task and says nothing else begins at the newest
// message about it.
func TestAViewOfOneTaskBeginsAtItsNewestMessage(t *testing.T) {
	f := New(Config{MaxBytes: 3 * segmentBytes, Window: 10})
	f.Append(0, task.Result{ID: "mine", Text: "first", Of: 1})
	f.Append(1, task.Result{Kind: task.Progress, ID: "mine", Text: "a half"})
	f.Append(2, task.Result{ID: "x", Text: "x"})
	view := f.View(NewFilter(nil, "mine"), JSON)
	if pos, _ := view.Join(); pos != Pending {
		t.Errorf("before the feed is live, it begins at %d", pos)
	}
	if pos, _ := view.Live(); pos != Pending {
		t.Errorf("before the feed is live, it begins at %d", pos)
	}
	f.GoLive()
	f.Append(3, task.Result{ID: "y", Text: "y"})
	_, at := view.Live()
	if _, joined := view.Join(); at != joined || at != (wire.Mark{Offset: 0}) {
		t.Errorf("it begins after %v, and %v", at, joined)
	}
	l := f.reading(t, JSON, view.filter, nil)
	if got := l.all(t); !strings.Contains(got, "a half") || strings.Contains(got, "first") || l.over != nil {
		t.Errorf("got %q", got)
	}
	// One that the log has released is not found, even if many more come into
	// the same bucket.
	for i := range 60_000 {
		f.Append(int64(10+i), task.Result{ID: fmt.Sprint("n", i), Text: "x"})
	}
	if _, ok := f.latest(nameOf("mine")); ok || f.first == 0 {
		t.Errorf("a message is found that was released; the first record is %d", f.first)
	}
	for i := 59_000; i < 60_000; i++ {
		if n, ok := f.latest(nameOf(fmt.Sprint("n", i))); !ok || f.at(n).offset != int64(10+i) {
			t.Fatalf("message %d is not found: %d, %t", i, n, ok)
		}
	}
	if _, err := l.Next(l.pos); !errors.Is(err, ErrGone) {
		t.Errorf("a listener that is too slow gets %v", err)
	}
}

// A listener that was sent nothing for a while learns where it stands, once.
func TestMarksForViews(t *testing.T) {
	f := New(DefaultConfig())
	f.GoLive()
	l := f.reading(t, JSON, NewFilter([]string{"a"}, ""), nil)
	mark := func() string {
		at, pos, ok := l.Mark(l.pos)
		l.pos = pos
		if !ok {
			return ""
		}
		return at.String()
	}
	f.Append(1, task.Result{ID: "1", Queue: "a", Text: "x"})
	if got := mark(); got != "" {
		t.Errorf("mark %s while there is something to send", got)
	}
	l.all(t)
	if got := mark(); got != "" {
		t.Errorf("mark %s after a message", got)
	}
	for i := range 3 * recordsAtOnce {
		f.Append(int64(2+i), task.Result{ID: fmt.Sprint(2 + i), Queue: "b", Text: "x"})
	}
	if got := mark(); got != "" {
		t.Errorf("mark %s in front of more than one lock's records", got)
	}
	l.all(t)
	if got, want := mark(), f.Last().String(); got != want {
		t.Errorf("mark %q, want %s", got, want)
	}
	if got := mark(); got != "" {
		t.Errorf("mark %s twice", got)
	}
	at := f.Last()
	f.Append(100_000, task.Result{ID: "z", Queue: "a", Text: "wanted"})
	if again := f.reading(t, JSON, l.filter, &at); again.all(t) == "" {
		t.Error("a listener that resumes after a mark does not get what follows")
	}
}

func TestAppendPlace(t *testing.T) {
	m := wire.Mark{Offset: 7, ID: "a"}
	if got := AppendPlace(nil, Text, m); len(got) > 0 {
		t.Errorf("text %q", got)
	}
	if got, want := string(AppendPlace(nil, JSON, m)[2:]), `{"type":"mark","offset":7,"id":"a","text":""}`; got != want {
		t.Errorf("JSON %s, want %s", got, want)
	}
	if got, want := string(AppendPlace(nil, Events, m)), "9\r\nid: 7/a\n\n\r\n"; got != want {
		t.Errorf("event %q, want %q", got, want)
	}
}

func TestAwait(t *testing.T) {
	f := New(DefaultConfig())
	decode := func(data []byte) (m wire.Message) {
		if err := json.Unmarshal(data, &m); err != nil && data != nil {
			t.Error(err)
		}
		return m
	}
	none, cancel := context.WithCancel(context.Background())
	cancel()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for i, size := range []int{1, 200, 70_000} {
		id := fmt.Sprint("task", i)
		if data := f.Await(none, id); data != nil {
			t.Fatalf("got %s before the result", data)
		}
		got := make(chan []byte)
		for range 2 {
			go func() { got <- f.Await(ctx, id) }()
		}
		for ready := false; !ready; {
			f.mu.RLock()
			a := f.awaited[nameOf(id)]
			ready = a != nil && a.waiters == 2
			f.mu.RUnlock()
		}
		text := strings.Repeat("x", size)
		f.Append(int64(10*i), task.Result{ID: "other" + id, Text: "x"})
		f.Append(int64(10*i+1), task.Result{Kind: task.Progress, ID: id, Text: "half"})
		f.Append(int64(10*i+2), task.Result{ID: id, Text: text})
		for range 2 {
			if m := decode(await.Value(t, "message", got)); m.ID != id || m.Text != text || m.Type != wire.TypeResult {
				t.Errorf("told %.100v", m)
			}
		}
		if m := decode(f.Await(none, id)); m.ID != id || m.Text != text {
			t.Errorf("later %.100v", m)
		}
	}
	f.Append(100, task.Result{Kind: task.GivenUp, ID: "failing", Text: "why"})
	if m := decode(f.Await(none, "failing")); m.Type != wire.TypeFailed || m.Text != "why" {
		t.Errorf("told %+v", m)
	}
	f.Append(101, task.Result{Kind: task.Progress, ID: "failing", Text: "again"})
	if m := decode(f.Await(none, "failing")); m.Type != "" {
		t.Errorf("told %+v of a task that was requeued", m)
	}
	short, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if data := f.Await(short, "unknown"); data != nil || len(f.awaited) > 0 {
		t.Errorf("told %s of an unknown task; %d are awaited", data, len(f.awaited))
	}
}

// BenchmarkView is what a listener with a filter costs for each result: one that
// is not for it, one that is, and those that it looks through when it resumes.
func BenchmarkView(b *testing.B) {
	const results = 100_000
	f := New(DefaultConfig())
	for i := range results {
		f.Append(int64(i), task.Result{ID: fmt.Sprint(i), Queue: "a", Text: "0123456789"})
	}
	f.GoLive()
	for name, queue := range map[string]string{"skip": "b", "send": "a"} {
		b.Run(name, func(b *testing.B) {
			v := f.View(NewFilter([]string{queue}, ""), JSON)
			v.Join()
			begin := f.begin(f.end()-1, JSON)
			b.ReportAllocs()
			for b.Loop() {
				v.next = f.end() - 1
				if _, err := v.Next(begin); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("resume100000", func(b *testing.B) {
		v := f.View(NewFilter([]string{"b"}, ""), JSON)
		for b.Loop() {
			pos, _ := v.Find(wire.Mark{Offset: 0})
			if _, err := v.Next(pos); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("latest", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, ok := f.latest(nameOf("50000")); !ok {
				b.Fatal("not found")
			}
		}
	})
}
