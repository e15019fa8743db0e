package socket

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

func messageSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	schema, err := c.Compile("../wire/message.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

func validate(t *testing.T, schema *jsonschema.Schema, message string) error {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(message))
	if err != nil {
		t.Fatalf("message %q: %v", message, err)
	}
	return schema.Validate(v)
}

// Every kind of message that the server sends, with everything in it or as
// little as possible, in JSON and as an event, keeps to the schema.
func TestMessagesKeepToTheSchema(t *testing.T) {
	schema := messageSchema(t)
	_, b := setup(t, DefaultConfig(), feed.DefaultConfig())
	conn := b.listen(t, "?format=json") // has read the greeting
	res, next := b.events(t, "", "")
	defer res.Body.Close()
	if greeting := next(); validate(t, schema, greeting.data) != nil {
		t.Errorf("greeting %s: %v", greeting.data, validate(t, schema, greeting.data))
	}
	now := time.Now()
	results := []task.Result{
		{ID: "a", Text: "", Done: now},
		{ID: strings.Repeat("x", wire.MaxIDLength), Text: "\u2028 \\ \" \x00 ü 𝄞 \xff", Accepted: now, Done: now.Round(time.Second)},
		{ID: task.NewID(), Text: strings.Repeat("x", 100_000), Accepted: time.UnixMicro(0)},
	}
	for i, r := range results {
		b.feed.Append(int64(i), r)
	}
	b.feed.Append(100, task.Result{Kind: task.Lost, ID: "too-long", Text: "it is too long"})
	b.feed.Append(101, task.Result{Kind: task.Lost, Text: "it is no text"})
	b.feed.AppendGap("the stream is new")
	b.feed.Append(0, task.Result{ID: "b", Text: "b"})
	b.feed.AppendGap("again")
	types := make(map[string]int)
	for range len(results) + 5 {
		_, message, err := conn.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		if err := validate(t, schema, string(message)); err != nil {
			t.Errorf("message %.300s: %v", message, err)
		}
		if e := next(); e.data != string(message) {
			t.Errorf("event %.300s, want %.300s", e.data, message)
		}
		var m wire.Message
		if err := json.Unmarshal(message, &m); err != nil {
			t.Error(err)
		}
		types[m.Type]++
	}
	if types[wire.TypeResult] != len(results)+1 || types[wire.TypeGap] != 2 || types[wire.TypeLost] != 2 {
		t.Errorf("messages of the types %v", types)
	}
	again := b.jsonListener(t, "0/b")
	if _, message, err := again.ReadMessage(); err != nil || validate(t, schema, string(message)) != nil {
		t.Errorf("gap %s, %v: %v", message, err, validate(t, schema, string(message)))
	}
}

func TestTheSchemaTellsMessagesFromOthers(t *testing.T) {
	schema := messageSchema(t)
	for _, message := range []string{
		`{}`, `[]`,
		`{"type":"result","offset":1,"text":"x"}`,
		`{"type":"result","offset":-1,"id":"a","text":"x"}`,
		`{"type":"result","offset":1,"id":"a","text":"x","done":"yesterday"}`,
		`{"type":"gap","offset":"1","text":"x"}`,
		`{"type":"lost","offset":-1,"text":"x"}`,
		`{"type":"greeting","offset":-1,"text":"x","done":"2026-01-02T03:04:05Z"}`,
	} {
		if validate(t, schema, message) == nil {
			t.Errorf("%s keeps to the schema", message)
		}
	}
}
