package socket

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fasthttp/websocket"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// ofQueue is result(i), of one of three queues in turn.
func ofQueue(i int) task.Result {
	r := result(i)
	r.Queue = [...]string{"a", "b", "c"}[i%3]
	return r
}

func (b *bundle) appendQueues(from, to int) {
	for i := from; i < to; i++ {
		b.feed.Append(int64(i), ofQueue(i))
	}
}

// expectQueues reads the results of queues, which are given by their letters,
// with offsets of from, … to-1.
func expectQueues(t *testing.T, c *websocket.Conn, queues string, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		want := ofQueue(i)
		if !strings.Contains(queues, want.Queue) {
			continue
		}
		var m wire.Message
		for m.Type = wire.TypeMark; m.Type == wire.TypeMark; {
			m = wire.Message{}
			if err := c.ReadJSON(&m); err != nil {
				t.Errorf("before result %d of %s: %v", i, queues, err)
				return
			}
		}
		if m.Offset != int64(i) || m.Queue != want.Queue || m.Text != want.Text {
			t.Errorf("message %+v, want result %d", m, i)
			return
		}
	}
}

func TestFilteredListeners(t *testing.T) {
	const results = 3000
	_, b, site := setupTLS(t, DefaultConfig(), feed.DefaultConfig())
	b.appendQueues(0, 100)
	var wg sync.WaitGroup
	for _, listen := range []func(*testing.T, string) *websocket.Conn{b.listen, site.listen} {
		one := listen(t, "?format=json&queue=b")
		two := listen(t, "?format=json&queue=a&queue=c&queue=a")
		none := listen(t, "?format=json&queue=d&queue=b")
		all := listen(t, "?format=json")
		resumed := listen(t, "?format=json&queue=c&after=50/id50")
		plain := listen(t, "?queue=a")
		wg.Go(func() { expectQueues(t, one, "b", 100, results) })
		wg.Go(func() { expectQueues(t, two, "ac", 100, results) })
		wg.Go(func() { expectQueues(t, none, "b", 100, results) })
		wg.Go(func() { expectQueues(t, all, "abc", 100, results) })
		wg.Go(func() { expectQueues(t, resumed, "c", 51, results) })
		wg.Go(func() {
			for i := 102; i < results; i += 3 {
				if _, text, err := plain.ReadMessage(); err != nil || string(text) != result(i).Text {
					t.Errorf("text %q, %v; want that of %d", text, err, i)
					return
				}
			}
		})
	}
	res, events := b.events(t, "?queue=b", "")
	defer res.Body.Close()
	events() // the greeting
	wg.Go(func() {
		for i := 100; i < results; i += 3 {
			if e := events(); e.id != fmt.Sprintf("%d/id%d", i, i) {
				t.Errorf("event %+v, want that of %d", e, i)
				return
			}
		}
	})
	b.appendQueues(100, results)
	wg.Wait()
}

// A listener that takes little at a time gets whole frames, and no others.
func TestAFilteredListenerThatIsSlow(t *testing.T) {
	_, b, site := setupTLS(t, DefaultConfig(), feed.DefaultConfig())
	listeners := []*websocket.Conn{b.listen(t, "?format=json&queue=a"), site.listen(t, "?format=json&queue=a")}
	big := strings.Repeat("x", 50_000)
	const results = 300 // 5 MB of each queue
	for i := range results {
		r := ofQueue(i)
		r.Text += big
		b.feed.Append(int64(i), r)
	}
	for _, c := range listeners {
		for i := 0; i < results; i += 3 {
			var m wire.Message
			if err := c.ReadJSON(&m); err != nil || m.Offset != int64(i) || len(m.Text) != len(result(i).Text)+len(big) {
				t.Fatalf("message at %d of %d bytes, %v; want result %d", m.Offset, len(m.Text), err, i)
			}
		}
	}
}

func TestAListenerToOneTask(t *testing.T) {
	progress := task.Result{Kind: task.Progress, ID: "mine", Text: "half"}
	done := task.Result{ID: "mine", Text: "done"}
	failed := task.Result{Kind: task.GivenUp, ID: "mine", Text: "broken"}
	lost := task.Result{Kind: task.Lost, ID: "mine", Text: "too long"}
	for _, tc := range []struct {
		name, query string
		told        []task.Result
		want        []string // what comes between the greeting and the end
		reason      string
	}{
		{"done", "?format=json", []task.Result{progress, done}, []string{"half", "done"}, byeOver.reason},
		{"given up", "?format=json", []task.Result{progress, failed}, []string{"half", "broken"}, byeOver.reason},
		{"lost", "?format=json", []task.Result{lost}, []string{"too long"}, byeOver.reason},
		{"done, in text", "?", []task.Result{progress, done}, []string{"done"}, byeOver.reason},
		{"given up, in text", "?", []task.Result{progress, failed}, nil, byeNoResult.reason},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, b, site := setupTLS(t, DefaultConfig(), small)
			query := tc.query + "&id=mine"
			listeners := map[string]*websocket.Conn{"plain": b.listen(t, query), "TLS": site.listen(t, query)}
			at := int64(0)
			add := func(r task.Result) {
				b.feed.Append(at, r)
				b.source.addResult(at, r)
				at++
			}
			add(result(1))
			for _, r := range tc.told {
				add(r)
				add(result(int(100 + at)))
			}
			listeners["resumed"] = b.listen(t, query+"&after=0/id1")
			listeners["late"] = b.listen(t, query) // gets the newest message only
			for name, c := range listeners {
				want := tc.want
				if name == "late" && len(want) > 1 {
					want = want[1:]
				}
				expectEnd(t, name, c, want, tc.reason)
			}
			for range 5000 {
				add(result(int(100 + at)))
			}
			expectEnd(t, "from the broker", b.listen(t, query+"&after=0/id1"), tc.want, tc.reason)
			b.source.mu.Lock()
			defer b.source.mu.Unlock()
			if b.source.history != 1 {
				t.Errorf("the broker was asked %d times", b.source.history)
			}
		})
	}
}

func expectEnd(t *testing.T, name string, c *websocket.Conn, want []string, reason string) {
	t.Helper()
	for _, text := range want {
		if _, m, err := c.ReadMessage(); err != nil || !strings.Contains(string(m), text) {
			t.Errorf("%s: message %s, %v; want %q", name, m, err, text)
		}
	}
	_, m, err := c.ReadMessage()
	if closed := new(websocket.CloseError); !errors.As(err, &closed) || closed.Code != wire.CloseNormal || closed.Text != reason {
		t.Errorf("%s: message %s, %v; want to be closed with 1000: %s", name, m, err, reason)
	}
}

// A browser's EventSource reconnects when a stream ends, and must not do so for
// ever.
func TestEventsOfOneTask(t *testing.T) {
	_, b, site := setupTLS(t, DefaultConfig(), feed.DefaultConfig())
	for name, tc := range map[string]struct {
		client *http.Client
		url    string
	}{"plain": {http.DefaultClient, "http://" + b.addr}, "TLS": {site.client, "https://" + site.addr}} {
		get := func(lastID string) *http.Response {
			req, _ := http.NewRequest("GET", tc.url+"/listen_results?id="+name, nil)
			req.Header.Set("Accept", "text/event-stream")
			req.Header.Set("Last-Event-ID", lastID)
			res, err := tc.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { res.Body.Close() })
			return res
		}
		res := get("")
		b.feed.Append(b.feed.Last().Offset+1, task.Result{Kind: task.Progress, ID: name, Text: "half"})
		b.feed.Append(b.feed.Last().Offset+1, task.Result{ID: name, Text: "done"})
		all, err := io.ReadAll(res.Body)
		if text := string(all); err != nil || !strings.Contains(text, "event: progress\n") || !strings.HasSuffix(text, "\n\nid: "+wire.EndEventID+"\n\n") {
			t.Errorf("%s: events %q, %v", name, all, err)
		}
		if res := get(wire.EndEventID); res.StatusCode != http.StatusNoContent {
			t.Errorf("%s: a reconnect is answered %s, want 204", name, res.Status)
		}
	}
}

func TestTheBacklogHasTheTask(t *testing.T) {
	b := &bundle{feed: feed.New(feed.DefaultConfig()), source: new(source)}
	s := b.start(t, DefaultConfig())
	mine, queue := b.dial(t, "?format=json&id=id7"), b.dial(t, "?format=json&queue=a")
	until(t, "both are there", func() bool { return s.Listeners() == 2 })
	b.appendQueues(0, 20)
	b.feed.GoLive()
	b.appendQueues(20, 40)
	for name, c := range map[string]*websocket.Conn{"mine": mine, "queue": queue} {
		var m wire.Message
		want := map[string]int64{"mine": 6, "queue": 19}[name]
		if err := c.ReadJSON(&m); err != nil || m.Type != wire.TypeGreeting || m.Offset != want {
			t.Errorf("%s: greeting %+v, %v; want one after %d", name, m, err, want)
		}
	}
	expectEnd(t, "mine", mine, []string{"text 7"}, byeOver.reason)
	expectQueues(t, queue, "a", 20, 40)
}

// A listener that gets nothing is told where it stands, with the pings.
func TestMarksForFilteredListeners(t *testing.T) {
	cfg := DefaultConfig()
	cfg.PingInterval = 100 * time.Millisecond
	_, b, site := setupTLS(t, cfg, feed.DefaultConfig())
	conns := []*websocket.Conn{b.listen(t, "?format=json&queue=none"), site.listen(t, "?format=json&queue=none")}
	res, events := b.events(t, "?queue=none", "")
	defer res.Body.Close()
	events()
	b.appendQueues(0, 10_000)
	last := b.feed.Last()
	schema := messageSchema(t)
	for _, c := range conns {
		for at := int64(-1); at != last.Offset; {
			var m wire.Message
			_, raw, err := c.ReadMessage()
			if err == nil {
				err = errors.Join(json.Unmarshal(raw, &m), validate(t, schema, string(raw)))
			}
			if err != nil || m.Type != wire.TypeMark || m.ID != fmt.Sprint("id", m.Offset) {
				t.Fatalf("message %s, %v; want a mark", raw, err)
			}
			at = m.Offset
		}
	}
	for id := ""; id != last.String(); {
		e := events()
		if e.end || e.data != "" || e.name != "" {
			t.Fatalf("event %+v, want a mark", e)
		}
		id = e.id
	}
}

// One that catches up is told, too, so that it need not begin again if its turn
// ends or its connection breaks.
func TestMarksWhileCatchingUp(t *testing.T) {
	const results = 2*placeEvery + 100
	_, b := setup(t, DefaultConfig(), small)
	for i := range results {
		b.source.addResult(int64(i), ofQueue(i))
	}
	b.appendQueues(0, results)
	c := b.listen(t, "?format=json&queue=none&after=5/id5")
	for _, want := range []int{5 + placeEvery, 5 + 2*placeEvery} {
		var m wire.Message
		if err := c.ReadJSON(&m); err != nil || m.Type != wire.TypeMark || m.Offset > int64(want) || m.ID != fmt.Sprint("id", m.Offset) {
			t.Errorf("message %+v, %v; want a mark at %d, or earlier where the log begins", m, err, want)
		}
	}
	b.feed.Append(results, task.Result{ID: "mine", Queue: "none", Text: "x"})
	var m wire.Message
	if err := c.ReadJSON(&m); err != nil || m.ID != "mine" {
		t.Errorf("message %+v, %v; want the one result of its queue", m, err)
	}
}

// A listener whose turn is over is told where it stands first.
func TestAFilteredTurnEnds(t *testing.T) {
	s, b := setup(t, DefaultConfig(), small)
	for i := range 5000 {
		b.source.addResult(int64(i), ofQueue(i))
	}
	b.appendQueues(6000, 10_000) // the stream has not come to what the log holds
	c := b.listen(t, "?format=json&queue=none&after=5/id5")
	until(t, "it has read all that there is", func() bool {
		s.turns.mu.Lock()
		defer s.turns.mu.Unlock()
		for turn := range s.turns.running {
			return turn.sent.Load() >= int64(len("text 0")*4000)
		}
		return false
	})
	s.turns.mu.Lock()
	for turn := range s.turns.running {
		turn.cut(errTurnOver)
	}
	s.turns.mu.Unlock()
	var m wire.Message
	if err := c.ReadJSON(&m); err != nil || m.Type != wire.TypeMark || m.Offset < 4000 {
		t.Errorf("message %+v, %v; want a mark", m, err)
	}
	if _, _, err := c.ReadMessage(); !websocket.IsCloseError(err, wire.CloseTryAgain) {
		t.Errorf("got %v, want to be closed with 1013", err)
	}
}

func TestBadFilters(t *testing.T) {
	_, b := setup(t, DefaultConfig(), feed.DefaultConfig())
	for _, query := range []string{
		"queue=", "queue=A", "queue=a&queue=%2F", "queue=a%20b", "id=", "id=a&id=b", "id=" + strings.Repeat("x", wire.MaxIDLength+1),
		strings.Repeat("queue=a&", maxQueues+1),
	} {
		_, res, err := websocket.DefaultDialer.Dial("ws://"+b.addr+"/listen_results?"+query, nil)
		if err == nil || res == nil || res.StatusCode != http.StatusBadRequest {
			t.Errorf("?%.50s: %v, want 400", query, err)
		}
	}
}

func TestResults(t *testing.T) {
	s, b := setup(t, DefaultConfig(), feed.DefaultConfig())
	get := func(path string) (status int, m wire.Message) {
		t.Helper()
		res, err := http.Get("http://" + b.addr + "/results/" + path)
		if err != nil {
			t.Error(err)
			return 0, m
		}
		defer res.Body.Close()
		if err := json.NewDecoder(bufio.NewReader(res.Body)).Decode(&m); err != nil {
			t.Error(err)
		}
		return res.StatusCode, m
	}
	b.feed.Append(1, task.Result{ID: "done", Queue: "a", Text: "text"})
	b.feed.Append(2, task.Result{Kind: task.GivenUp, ID: "failed", Text: "why"})
	b.feed.Append(3, task.Result{ID: "a/b%c?", Text: "odd"})
	for _, tc := range []struct {
		path   string
		status int
		want   wire.Message
	}{
		{"done", 200, wire.Message{Type: wire.TypeResult, Offset: 1, ID: "done", Queue: "a", Text: "text"}},
		{"done?wait=30s", 200, wire.Message{Type: wire.TypeResult, Offset: 1, ID: "done", Queue: "a", Text: "text"}},
		{"failed", 200, wire.Message{Type: wire.TypeFailed, Offset: 2, ID: "failed", Text: "why"}},
		{"a%2Fb%25c%3f", 200, wire.Message{Type: wire.TypeResult, Offset: 3, ID: "a/b%c?", Text: "odd"}},
		{"unknown", 404, wire.Message{}},
		{"unknown?wait=0.01", 404, wire.Message{}},
		{"a%20b", 400, wire.Message{}},
		{"done?wait=2m", 400, wire.Message{}},
		{"done?wait=soon", 400, wire.Message{}},
	} {
		status, m := get(tc.path)
		if tc.status != 200 {
			m = wire.Message{}
		}
		if status != tc.status || m != tc.want {
			t.Errorf("%s: %d %+v, want %d %+v", tc.path, status, m, tc.status, tc.want)
		}
	}
	got := make(chan wire.Message, 1)
	go func() {
		_, m := get("later?wait=20s")
		got <- m
	}()
	until(t, "a request waits", func() bool { return s.waiting.Load() == 1 })
	b.feed.Append(4, task.Result{Kind: task.Progress, ID: "later", Text: "half"})
	b.feed.Append(5, task.Result{ID: "later", Text: "now"})
	if m := <-got; m.Text != "now" {
		t.Errorf("got %+v", m)
	}
	s.waiting.Store(maxWaiting)
	if status, _ := get("done?wait=1"); status != 503 {
		t.Errorf("one request too many is answered %d", status)
	}
	s.waiting.Store(0)
	b.source.setReady(errors.New("the broker is away"))
	if status, _ := get("unknown"); status != 503 {
		t.Errorf("without a broker, an unknown result is answered %d", status)
	}
	go func() {
		status, _ := get("never?wait=20s")
		got <- wire.Message{Offset: int64(status)}
	}()
	until(t, "a request waits", func() bool { return s.waiting.Load() == 1 })
	s.stop()
	if m := <-got; m.Offset != 503 {
		t.Errorf("a request that waits when the server stops is answered %d", m.Offset)
	}
}
