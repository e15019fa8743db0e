package feed

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// checkEncoding fails unless m is encoded as encoding/json does it.
func checkEncoding(t *testing.T, m wire.Message) {
	t.Helper()
	want, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if got := appendJSON([]byte("before"), m); string(got) != "before"+string(want) {
		t.Errorf("%+v is %s, want %s", m, got, want)
	}
}

func TestMessagesAreEncodedAsByEncodingJSON(t *testing.T) {
	var every strings.Builder // every character that has a neighbour with another escape, and bytes that are none
	for c := range rune(0x3000) {
		every.WriteRune(c)
	}
	every.WriteString("\ufffd\uffff𝄞\U0010ffff\xff\xc3a\xed\xa0\x80\xe2\x80")
	second := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, m := range []wire.Message{
		{},
		{Type: wire.TypeGreeting, Offset: -1, Text: "hello"},
		{Type: wire.TypeFailed, Offset: 3, ID: "a", Queue: "thumbnails", Text: "exit status 1", Done: second},
		{Type: wire.TypeGap, Offset: 3, ID: "a", Text: "the stream is new"},
		{Type: wire.TypeResult, Offset: math.MaxInt64, ID: `<a&"\>`, Text: every.String(), Accepted: second, Done: second.Add(time.Nanosecond)},
		{Type: wire.TypeResult, Offset: math.MinInt64, ID: "a", Text: strings.Repeat("äx", 1000), Done: second.Add(120 * time.Millisecond)},
		{Type: wire.TypeResult, Text: "a", Done: second, Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
		{Type: wire.TypeResult, Accepted: time.UnixMicro(0).UTC(), Done: second.In(time.FixedZone("", -5400))},
	} {
		checkEncoding(t, m)
	}
}

func TestATimeThatCannotBeWrittenIsLeftOut(t *testing.T) {
	r := task.Result{ID: "a", Text: "a", Accepted: time.UnixMicro(math.MaxInt64), Done: time.UnixMicro(math.MinInt64)}
	want := `{"type":"result","offset":1,"id":"a","text":"a"}`
	if got := appendJSON(nil, resultMessage(1, r)); string(got) != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func FuzzEncode(f *testing.F) {
	f.Add("result", int64(7), "a", "fe\"dc<b>a\u2028", int64(0), int64(1_767_323_045_678_000))
	f.Add("gap", int64(-1), "", "\xff\xe2\x80\x00\x7f𝄞", int64(-1), int64(120_000_000))
	f.Fuzz(func(t *testing.T, kind string, offset int64, id, text string, accepted, done int64) {
		checkEncoding(t, wire.Message{Type: kind, Offset: offset, ID: id, Text: text, Accepted: time.Unix(0, accepted).UTC(), Done: time.Unix(0, done).UTC()})
	})
}
