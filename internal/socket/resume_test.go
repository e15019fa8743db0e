package socket

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fasthttp/websocket"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// small makes a feed that holds only the newest of a few thousand results.
var small = feed.Config{MaxBytes: 256 << 10, Window: 100_000}

// jsonListener connects and returns what follows the greeting.
func (b *bundle) jsonListener(t *testing.T, after string) *websocket.Conn {
	t.Helper()
	return b.listen(t, "?format=json&after="+after)
}

func expectMessages(t *testing.T, c *websocket.Conn, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		var m wire.Message
		if err := c.ReadJSON(&m); err != nil || m.Type != wire.TypeResult || m.Offset != int64(i) || m.ID != fmt.Sprint("id", i) {
			t.Fatalf("message %+v, %v; want result %d", m, err, i)
		}
	}
}

func TestResumeFromTheLog(t *testing.T) {
	_, b := setup(t, DefaultConfig(), feed.DefaultConfig())
	b.append(0, 100)
	for _, after := range []string{"49", "49/id49"} {
		c := b.jsonListener(t, after)
		expectMessages(t, c, 50, 100)
	}
	if b.source.history > 0 {
		t.Error("the broker was asked for what the log holds")
	}
	c := b.listen(t, "?after=97")
	expect(t, c, 98, 100)
}

func TestResumeFromTheStreamAndGoOnLive(t *testing.T) {
	const results = 20_000 // several times what the log holds
	_, b := setup(t, DefaultConfig(), small)
	b.source.add(0, results)
	b.append(0, results)
	c := b.jsonListener(t, "5/id5")
	expectMessages(t, c, 6, results)
	b.append(results, results+10)
	expectMessages(t, c, results, results+10)
	if b.source.history != 1 {
		t.Errorf("the broker was asked %d times, want once", b.source.history)
	}
}

func TestResumeFromTheBeginning(t *testing.T) {
	_, b := setup(t, DefaultConfig(), small)
	c := b.jsonListener(t, "-1") // of an empty stream
	b.source.add(0, 100)
	b.append(0, 100)
	expectMessages(t, c, 0, 100)
	b.source.add(100, 10_000)
	b.append(100, 10_000)
	expectMessages(t, b.jsonListener(t, "-1"), 0, 10_000)
}

func TestResumeUnderLoadHasNoHoleAndNoRepetition(t *testing.T) {
	const results = 30_000
	_, b := setup(t, DefaultConfig(), small)
	go func() {
		for i := 0; i < results; i += 100 {
			b.source.add(i, i+100)
			b.append(i, i+100)
		}
	}()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			next, after := 0, "-1"
			for next < results {
				c, _, err := websocket.DefaultDialer.Dial("ws://"+b.addr+"/listen_results?format=json&after="+after, nil)
				if err != nil {
					t.Error(err)
					return
				}
				c.SetReadDeadline(time.Now().Add(patience))
				for quota := rand.IntN(3000); quota > 0 && next < results; quota-- {
					var m wire.Message
					if err := c.ReadJSON(&m); err != nil {
						if websocket.IsCloseError(err, wire.ClosePolicy, wire.CloseTryAgain, websocket.CloseAbnormalClosure) {
							break // too slow, at times for a frame that it has received in part: resume
						}
						t.Error(err)
						return
					}
					if m.Type == wire.TypeGreeting {
						continue
					}
					if m.Type != wire.TypeResult || m.Offset != int64(next) {
						t.Errorf("message %+v, want result %d", m, next)
						return
					}
					next, after = next+1, wire.Mark{Offset: m.Offset, ID: m.ID}.String()
				}
				c.Close()
			}
		})
	}
	wg.Wait()
}

func TestRepetitionsInTheStreamAreNotSentAgain(t *testing.T) {
	_, b := setup(t, DefaultConfig(), small)
	b.source.add(0, 8000)
	b.source.stream[100].result = result(40)         // before the mark
	b.source.stream[3000].result = result(10)        // after the mark, repeats one before it
	b.source.stream[3001].result = result(500)       // after the mark, repeats one after it
	b.source.stream[3002].result.ID = result(501).ID // another text under the same id
	b.source.stream[3002].result.Of = task.DigestOf("another")
	for _, e := range b.source.stream {
		b.feed.Append(e.offset, e.result)
	}
	c := b.jsonListener(t, "200")
	expectMessages(t, c, 201, 3000)
	var m wire.Message
	if err := c.ReadJSON(&m); err != nil || m.Offset != 3002 || m.ID != result(501).ID {
		t.Errorf("got %+v, %v; want the result of another text under an id that was there before", m, err)
	}
	expectMessages(t, c, 3003, 8000)
}

// A listener that resumes from the stream also learns of results that cannot be
// sent, except where frames hold only results.
func TestLostResultsInTheStream(t *testing.T) {
	_, b := setup(t, DefaultConfig(), small)
	b.source.add(0, 8000)
	b.source.stream[1001].result = task.Result{Kind: task.Lost, Text: "it is no text"}
	b.source.stream[1002].result = task.Result{Kind: task.Lost, Text: "it is no text"}
	for _, e := range b.source.stream {
		b.feed.Append(e.offset, e.result)
	}
	c := b.jsonListener(t, "1000")
	for offset := range int64(2) {
		var m wire.Message
		if err := c.ReadJSON(&m); err != nil || m.Type != wire.TypeLost || m.Offset != 1001+offset || m.Text != "it is no text" {
			t.Errorf("got %+v, %v; want that %d is lost", m, err, 1001+offset)
		}
	}
	expectMessages(t, c, 1003, 8000)
	plain := b.listen(t, "?after=1000")
	if _, text, err := plain.ReadMessage(); err != nil || string(text) != result(1003).Text {
		t.Errorf("got %q, %v; want the next result", text, err)
	}
}

func TestGaps(t *testing.T) {
	for _, tc := range []struct {
		name, after string
		first       int // offset of the first result that the stream keeps
		reason      string
	}{
		{"too old", "3/id3", 1000, "too old"},
		{"of another stream, in the log", "9990/x", 0, "re-created"},
		{"of another stream, out of the log", "1500/x", 0, "re-created"},
		{"in the future", "20000", 0, "re-created"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			_, b := setup(t, DefaultConfig(), small)
			b.source.add(tc.first, 10_000)
			b.append(tc.first, 10_000)

			c := b.jsonListener(t, tc.after)
			var m wire.Message
			if err := c.ReadJSON(&m); err != nil || m.Type != wire.TypeGap || !strings.Contains(m.Text, tc.reason) {
				t.Fatalf("message %+v, %v; want a gap: %s", m, err, tc.reason)
			}
			expectMessages(t, c, tc.first, 10_000) // all that there is

			c = b.listen(t, "?after="+tc.after)
			_, _, err := c.ReadMessage()
			if closed := new(websocket.CloseError); !errors.As(err, &closed) || closed.Code != wire.CloseGap || !strings.Contains(closed.Text, tc.reason) {
				t.Errorf("plain text listener: %v, want to be closed with 4000: %s", err, tc.reason)
			}

			res, events := b.events(t, "", tc.after)
			defer res.Body.Close()
			for _, want := range []string{"greeting", "gap", ""} {
				if e := events(); e.name != want || want == "gap" && !strings.Contains(e.data, tc.reason) {
					t.Errorf("event %+v, want %q", e, want)
				}
			}
		})
	}
}

func TestListenersThatJoinWhileTheBacklogIsReadGetOnlyWhatIsNew(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxResuming = 1
	b := &bundle{feed: feed.New(feed.DefaultConfig()), source: new(source)}
	s := b.start(t, cfg)
	defer s.takePlace(t)() // who waits for the backlog takes no place
	first := b.dial(t, "?format=json")
	events := make(chan func() event, 1)
	go func() {
		res, next := b.events(t, "", "")
		t.Cleanup(func() { res.Body.Close() })
		events <- next
	}()
	resumed := make(chan *websocket.Conn, 1)
	go func() { resumed <- b.jsonListener(t, "4") }() // waits for the feed
	until(t, "all are there", func() bool { return s.Listeners() == 3 })
	b.append(0, 20)
	b.feed.GoLive()
	b.append(20, 30)
	// The greeting says where they stand.
	var m wire.Message
	if err := first.ReadJSON(&m); err != nil || m.Type != wire.TypeGreeting || m.Offset != 19 || m.ID != "id19" {
		t.Errorf("greeting %+v, %v; want one after result 19", m, err)
	}
	expectMessages(t, first, 20, 30)
	next := <-events
	if e := next(); e.name != "greeting" || e.id != "19/id19" {
		t.Errorf("greeting %+v, want one after result 19", e)
	}
	if e := next(); e.id != "20/id20" {
		t.Errorf("event %+v, want result 20", e)
	}
	expectMessages(t, <-resumed, 5, 30)
}

// A listener that is not greeted for long is sent to another site.
func TestListenersWhoseSiteHasNoBroker(t *testing.T) {
	cfg := DefaultConfig()
	cfg.PingInterval = time.Second
	b := &bundle{feed: feed.New(feed.DefaultConfig()), source: new(source)}
	s := b.start(t, cfg)
	c := b.dial(t, "?format=json")
	_, _, err := c.ReadMessage()
	if closed := new(websocket.CloseError); !errors.As(err, &closed) || closed.Code != wire.CloseTryAgain || !strings.Contains(closed.Text, "broker") {
		t.Errorf("%v, want to be closed with 1013 for the broker", err)
	}
	res, next := b.events(t, "", "")
	defer res.Body.Close()
	for said := false; ; {
		e := next()
		if e.end {
			if !said {
				t.Error("the events end without a word")
			}
			break
		}
		said = said || strings.Contains(e.data, "broker")
	}
	until(t, "they are gone", func() bool { return s.Listeners() == 0 })
}

// Whatever state the feed is in, a greeted listener gets all results after the
// greeting.
func TestEveryGreetingCanBeResumedFrom(t *testing.T) {
	for _, tc := range []struct {
		name   string
		before func(*bundle)
	}{
		{"an empty stream", func(b *bundle) {
			b.source.addMark(700, "mark")
			b.feed.AppendMark(700, "mark")
		}},
		{"a result", func(b *bundle) {
			b.source.addResult(700, result(7))
			b.feed.Append(700, result(7))
		}},
		{"a mark after a result", func(b *bundle) {
			b.source.addResult(600, result(6))
			b.feed.Append(600, result(6))
			b.source.addMark(700, "mark")
			b.feed.AppendMark(700, "mark")
		}},
		{"just after a gap", func(b *bundle) {
			b.feed.Append(100_000, result(1))
			b.feed.AppendGap("the stream was re-created")
		}},
	} {
		for _, format := range []string{"json", "events"} {
			for _, forgotten := range []bool{false, true} { // by the feed, in between
				t.Run(fmt.Sprintf("%s, %s, forgotten %t", tc.name, format, forgotten), func(t *testing.T) {
					t.Parallel()
					b := &bundle{feed: feed.New(small), source: new(source)}
					tc.before(b)
					b.feed.GoLive()
					b.start(t, DefaultConfig())
					var mark string
					if format == "json" {
						c := b.dial(t, "?format=json")
						var m wire.Message
						if err := c.ReadJSON(&m); err != nil {
							t.Fatal(err)
						}
						mark = wire.Mark{Offset: m.Offset, ID: m.ID}.String()
						c.Close()
					} else {
						res, next := b.events(t, "", "")
						mark = next().id
						res.Body.Close()
					}
					n := 1003
					if forgotten {
						n = 10_000
					}
					b.source.add(1000, n)
					b.append(1000, n)
					expectMessages(t, b.jsonListener(t, mark), 1000, n)
					res, next := b.events(t, "", mark)
					defer res.Body.Close()
					next() // the greeting
					for i := 1000; i < 1003; i++ {
						if e := next(); e.id != fmt.Sprintf("%d/id%d", i, i) {
							t.Fatalf("event %+v, want result %d", e, i)
						}
					}
				})
			}
		}
	}
}

// A mark of a stream that was re-created leads to a gap, also while results
// arrive.
func TestMarkAheadOfAGrowingStream(t *testing.T) {
	t.Parallel()
	s, b := setup(t, DefaultConfig(), small)
	b.source.add(0, 100)
	b.append(0, 100)
	ctx, cancel := context.WithCancel(t.Context())
	var growing sync.WaitGroup
	growing.Go(func() {
		for i := 100; ctx.Err() == nil; i++ {
			b.source.add(i, i+1)
			b.append(i, i+1)
			<-time.After(10 * time.Millisecond)
		}
	})
	defer growing.Wait()
	defer cancel()
	began := time.Now()
	res, next := b.events(t, "", "150000/nowhere")
	defer res.Body.Close()
	next() // the greeting
	if e := next(); e.name != "gap" || e.id != "-1" {
		t.Errorf("event %+v, want a gap from which one can resume", e)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the gap was told after %v", took)
	}
	next()
	until(t, "its place is free", func() bool { return s.turns.count() == 0 })
}

func TestTheNumberOfCatchUpsIsBounded(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxResuming = 1
	s, b := setup(t, cfg, small)
	defer s.takePlace(t)()
	b.append(0, 10_000)
	c := b.jsonListener(t, "1")
	if _, _, err := c.ReadMessage(); !websocket.IsCloseError(err, wire.CloseTryAgain) {
		t.Errorf("second catch-up: %v, want close 1013", err)
	}
}

// takePlace takes one of the places of those who catch up, and returns what
// frees it.
func (s *Server) takePlace(t *testing.T) (giveBack func()) {
	t.Helper()
	turn, err := s.turns.begin(t.Context(), swallow{})
	if err != nil {
		t.Fatal(err)
	}
	return func() { s.turns.finish(turn) }
}

// A handshake may not be complete when the server stops: the listener that
// comes of it is told to reconnect, too.
func TestNobodyBeginsToCatchUpWhenTheServerStops(t *testing.T) {
	s, b := setup(t, DefaultConfig(), small)
	b.append(0, 10_000)
	var late sync.WaitGroup
	for range 2 * s.cfg.MaxResuming {
		late.Go(func() {
			for s.stopped.Err() == nil {
				s.resume(&listener{conn: swallow{}, dialect: websocketDialect{}, log: s.feed.Log(feed.JSON)}, wanted{format: feed.JSON}, wire.Mark{Offset: 99_999})
			}
		})
	}
	until(t, "some catch up", func() bool { return s.turns.count() > 0 })
	s.Shutdown(t.Context())
	late.Wait()
	l := &listener{dialect: websocketDialect{}, log: s.feed.Log(feed.JSON)}
	s.resume(l, wanted{format: feed.JSON}, wire.Mark{Offset: 1})
	if bye := (websocketDialect{}).appendBye(nil, byeRestart); !l.leaving || !bytes.HasSuffix(l.control, bye) {
		t.Errorf("its last words are %q, want %q", l.control, bye)
	}
}

// swallow is a connection that takes everything.
type swallow struct{ net.Conn }

func (swallow) Write(b []byte) (int, error)      { return len(b), nil }
func (swallow) SetWriteDeadline(time.Time) error { return nil }
func (swallow) Close() error                     { return nil }
