package rabbit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/task"
)

func result(i int) task.Result {
	return task.Result{ID: fmt.Sprintf("task-%d", i), Text: fmt.Sprintf("result %d", i), Accepted: time.UnixMicro(int64(i)), Done: time.Now()}
}

type read struct {
	offset int64
	task.Result
}

// A follower records what a reader tells it.
type follower struct {
	before  []string // ids, until live is closed
	results chan read
	gaps    chan string
	live    chan struct{}
}

func (f *follower) Append(offset int64, r task.Result) { f.results <- read{offset, r} }
func (f *follower) Remember(r task.Result)             { f.before = append(f.before, r.ID) }
func (f *follower) AppendMark(int64, string)           {}
func (f *follower) AppendGap(reason string)            { f.gaps <- reason }
func (f *follower) GoLive()                            { close(f.live) }

// everything is more results than any test has.
const everything = 1_000_000

// follow runs reader.
func (r *rig) follow(reader *Reader) <-chan read {
	f, _ := r.followUntil(reader)
	return f.results
}

func (r *rig) followUntil(reader *Reader) (f *follower, stop func()) {
	f = &follower{results: make(chan read, 100_000), gaps: make(chan string, 100), live: make(chan struct{})}
	stop = r.run(func(ctx context.Context) { reader.Run(ctx, f) })
	return f, stop
}

// publish has results from to to-1 confirmed.
func publishResults(t testing.TB, p *Publisher, from, to int) {
	t.Helper()
	var answers []<-chan error
	for i := from; i < to; i++ {
		answers = append(answers, p.PublishResult(result(i)))
	}
	for i, answer := range answers {
		if err := receive(t, "answer", answer); err != nil {
			t.Fatalf("PublishResult(%d) = %v", from+i, err)
		}
	}
}

// inOrder fails the test unless results from to to-1 come, each once, and
// returns the last offset.
func inOrder(t testing.TB, results <-chan read, from, to int, last int64) int64 {
	t.Helper()
	for i := from; i < to; i++ {
		got := receive(t, fmt.Sprintf("result %d", i), results)
		want := result(i)
		if got.ID != want.ID || got.Text != want.Text || !got.Accepted.Equal(want.Accepted) || got.Done.IsZero() {
			t.Fatalf("result %d is %+v", i, got)
		}
		if got.offset <= last {
			t.Fatalf("offset %d comes after %d", got.offset, last)
		}
		last = got.offset
	}
	return last
}

func TestReaderFollows(t *testing.T) {
	noLeaks(t)
	r := setup(t).declared()
	p := r.publisher()
	const n = 3 * readerPrefetch // more than can be on the way without acknowledgements
	publishResults(t, p, 0, n/2)
	reader := NewReader(r.cfg, everything, r.log)
	f, stop := r.followUntil(reader)
	results := f.results
	last := inOrder(t, results, 0, n/2, -1)
	publishResults(t, p, n/2, n)
	inOrder(t, results, n/2, n, last)
	stop()
	if len(results) > 0 {
		t.Errorf("%d more results came", len(results))
	}
}

func TestReaderResumes(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	p := r.publisher()
	reader := NewReader(r.cfg, everything, r.log)
	results := r.follow(reader)
	last := int64(-1)
	const each, cuts = 500, 4
	for cut := range cuts {
		publishResults(t, p, cut*each, (cut+1)*each)
		// Sometimes in the middle, sometimes at the end.
		if cut%2 == 0 {
			last = inOrder(t, results, cut*each, (cut+1)*each, last)
			r.cut("test reader")
		} else {
			r.cut("test reader")
			last = inOrder(t, results, cut*each, (cut+1)*each, last)
		}
		r.out.Says(t, "CONNECTION_FORCED - closed by a test")
		r.ready(reader.Ready)
	}
	publishResults(t, p, cuts*each, cuts*each+1)
	inOrder(t, results, cuts*each, cuts*each+1, last)
}

func TestReaderCurrent(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 10_000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			r := setup(t).declared()
			p := r.publisher()
			for i := 0; i < n; i += 5000 {
				publishResults(t, p, i, min(i+5000, n))
			}
			reader := NewReader(r.cfg, everything, r.log)
			f, _ := r.followUntil(reader)
			receive(t, "end of the backlog", f.live)
			if len(f.results) != n {
				t.Errorf("live after %d of %d results", len(f.results), n)
			}
			r.ready(reader.Current)
		})
	}
}

func TestReaderBeginsWithTheBacklog(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	p := r.publisher()
	for i := range 100 { // one by one, so that each is a chunk
		publishResults(t, p, i, i+1)
	}
	f, _ := r.followUntil(NewReader(r.cfg, 10, r.log))
	receive(t, "end of the backlog", f.live)
	if n := len(f.results); n < 10 || n > 20 {
		t.Errorf("a backlog of %d results, want about 10", n)
	}
	before := []string{}
	for i := range 10 {
		before = append(before, result(100-len(f.results)-10+i).ID)
	}
	if !slices.Equal(f.before, before) {
		t.Errorf("remembered %q before the backlog, want %q", f.before, before)
	}
	inOrder(t, f.results, 100-len(f.results), 100, -1)
}

// recreateResults deletes the stream of results and declares it again.
func (r *rig) recreateResults() {
	r.t.Helper()
	if _, err := r.ch.QueueDelete(ResultsQueue, false, false, false); err != nil {
		r.t.Fatal(err)
	}
	if _, err := Setup(r.t.Context(), r.cfg); err != nil {
		r.t.Fatal(err)
	}
}

func TestReaderTellsOfAGap(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		after int // results in the new stream
		many  bool
	}{
		{"the stream was re-created and is empty", 0, false},
		{"the stream was re-created and is shorter", 5, false},
		{"the stream was re-created and is longer", 200, false},
		{"empty, and there are several nodes", 0, true},
		{"shorter, and there are several nodes", 5, true},
		{"longer, and there are several nodes", 200, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := setup(t).declared()
			p := r.publisher()
			publishResults(t, p, 0, 100)
			if tc.many {
				r.cfg.URLs = []string{r.url, r.url + "?heartbeat=60"} // the same node answers as another one
			}
			f, _ := r.followUntil(NewReader(r.cfg, everything, r.log))
			inOrder(t, f.results, 0, 100, -1)
			r.recreateResults()
			if tc.after > 0 {
				// RabbitMQ 3.10 may break off with an internal error what
				// publishes to a stream just after it was deleted and declared
				// again.
				eventually(t, "published", func() error { return <-p.PublishResult(result(1000)) })
				publishResults(t, p, 1001, 1000+tc.after)
			}
			if reason := receive(t, "gap", f.gaps); reason != errMissing.Error() {
				t.Errorf("gap: %s", reason)
			}
			publishResults(t, p, 1000+tc.after, 1001+tc.after)
			inOrder(t, f.results, 1000, 1001+tc.after, -1)
		})
	}
}

func TestReaderTellsWhatExpiredMeanwhile(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.cfg.Topology.ResultsMaxBytes, r.cfg.Topology.ResultsSegmentBytes = 400_000, 100_000
	r.declared()
	p := r.publisher()
	big := strings.Repeat("x", 10_000)
	publish := func(from, to int) {
		for i := from; i < to; i++ {
			result := result(i)
			result.Text = big
			if err := receive(t, "answer", p.PublishResult(result)); err != nil {
				t.Fatal(err)
			}
		}
	}
	reader := NewReader(r.cfg, everything, r.log)
	f, stop := r.followUntil(reader)
	publish(0, 10)
	for range 10 {
		receive(t, "result", f.results)
	}
	stop()
	publish(10, 500)
	f.live = make(chan struct{})
	r.run(func(ctx context.Context) { reader.Run(ctx, f) })
	if reason := receive(t, "gap", f.gaps); reason != errMissing.Error() {
		t.Errorf("gap: %s, want: %v", reason, errMissing)
	}
	for last := ""; last != result(499).ID; {
		last = receive(t, "result", f.results).ID
	}
}

// Whatever workers' clocks say, the backlog ends where the stream ended, and
// what is new is passed on.
func TestReaderAndClocks(t *testing.T) {
	t.Parallel()
	for _, off := range []time.Duration{-time.Hour, 0, time.Hour} {
		for _, backlog := range []int{0, 10} {
			t.Run(fmt.Sprintf("%v off, backlog %d", off, backlog), func(t *testing.T) {
				t.Parallel()
				r := setup(t).declared()
				p := r.publisher()
				publish := func(i int) {
					late := result(i)
					late.Done = time.Now().Add(off)
					if err := r.answered(p.PublishResult(late)); err != nil {
						t.Fatal(err)
					}
				}
				for i := range backlog {
					publish(i)
				}
				c := &counter{live: make(chan int, 1), came: make(chan string, 100)}
				r.run(func(ctx context.Context) { NewReader(r.cfg, everything, r.log).Run(ctx, c) })
				if n := receive(t, "end of the backlog", c.live); n != backlog {
					t.Errorf("live after %d results, want %d", n, backlog)
				}
				for i := range backlog + 3 {
					if i >= backlog {
						publish(i)
					}
					if id := receive(t, "result", c.came); id != result(i).ID {
						t.Errorf("result %d is %s", i, id)
					}
				}
			})
		}
	}
}

// A counter counts results until it is told to go live.
type counter struct {
	n     int
	marks []string
	live  chan int
	came  chan string
}

func (c *counter) Append(_ int64, r task.Result) {
	c.n++
	c.came <- r.ID
}
func (c *counter) Remember(task.Result)          {}
func (c *counter) AppendMark(_ int64, id string) { c.marks = append(c.marks, id) }
func (c *counter) AppendGap(string)              {}
func (c *counter) GoLive()                       { c.live <- c.n }

// A mark is a place in the stream that does not change, and no result, whatever
// is in it. What comes by the exchange of the results is no mark, whatever it
// says.
func TestMarks(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	forged := text("forged")
	forged.Headers = amqp.Table{"exchange": MarksExchange, "x-exchange": MarksExchange, "CC": []any{"elsewhere"}}
	r.enqueue(resultsKey, forged)
	disguised := text("disguised")
	disguised.Headers = amqp.Table{"exchange": Exchange, "x-exchange": Exchange}
	nameless := amqp.Publishing{MessageId: "not an\nid"}
	r.enqueueBy(MarksExchange, "", disguised, nameless)
	r.enqueue(resultsKey, text("last"))
	var ends []int64
	for range 2 {
		s, err := open(t.Context(), r.cfg, r.url, "asking")
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		end, err := s.askEnd(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, end)
	}
	if ends[0] != 4 || ends[1] != 5 {
		t.Errorf("the ends are at %v, want 4 and 5", ends)
	}
	var got []string
	over := errors.New("over")
	all := visitor{
		Result: func(offset int64, r task.Result) error {
			got = append(got, fmt.Sprint("result ", offset, " ", r.ID))
			return nil
		},
		Mark: func(offset int64, id string) error {
			got = append(got, fmt.Sprint("mark ", offset))
			if id == "disguised" {
				got = append(got, id)
			}
			return nil
		},
		End: func() error { return over },
	}
	if err := history(t.Context(), NewReader(r.cfg, 0, r.log), 0, 0, all); err != over {
		t.Fatal(err)
	}
	want := []string{"result 0 forged", "mark 100", "disguised", "result 300 last", "mark 400", "mark 500", "mark 600"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Readers of versions without marks leave a mark out as a message that they
// cannot read.
func TestMarksAreNoResultsForOlderReaders(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	s, err := open(t.Context(), r.cfg, r.url, "asking")
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if _, err := s.askEnd(t.Context()); err != nil {
		t.Fatal(err)
	}
	ch := r.channel()
	if err := ch.Qos(10, 0, false); err != nil {
		t.Fatal(err)
	}
	deliveries, err := ch.Consume(ResultsQueue, "", false, false, false, false, amqp.Table{offsetHeader: "first"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeResult(receive(t, "mark", deliveries), task.MaxText); err == nil {
		t.Error("a mark is read as a result")
	}
}

func TestReaderMayNotWriteMarks(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	cfg := r.user("socket", "^$", "^$", `^revq\.results$`) // as installed before there were marks
	reader := NewReader(cfg, everything, r.log)
	f, _ := r.followUntil(reader)
	vhost, user := cfg.Login()
	command := fmt.Sprintf(`rabbitmqctl -p '%s' set_permissions '%s' '^$' '^revq\.marks$' '^revq\.results$'`, vhost, user)
	eventually(t, "told which permission is missing", func() error {
		if err := reader.Ready(); err == nil || !strings.Contains(err.Error(), command) {
			return fmt.Errorf("Ready = %v, want %s", err, command)
		}
		return nil
	})
	err := history(t.Context(), reader, 0, 0, visitor{})
	if err == nil || !strings.Contains(err.Error(), command) {
		t.Errorf("History = %v, want %s", err, command)
	}
	if ctl, err := r.node.Ctl(t.Context(), "-p", vhost, "set_permissions", user, "^$", `^revq\.marks$`, `^revq\.results$`); err != nil {
		t.Fatal(ctl, err)
	}
	receive(t, "end of the backlog", f.live)
	r.ready(reader.Current)
}

func TestReaderWithoutTheMarksExchange(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		before func(*rig) error
		mayDo  bool
		says   string
	}{
		{"it is missing", func(r *rig) error { return r.ch.ExchangeDelete(MarksExchange, false, false) }, true, ""},
		{"it is missing and must not be declared", func(r *rig) error { return r.ch.ExchangeDelete(MarksExchange, false, false) }, false,
			"revq.marks does not exist, and this user may not declare it: run `revq setup`"},
		{"it is not bound", func(r *rig) error { return r.ch.QueueUnbind(ResultsQueue, "", MarksExchange, nil) }, true, ""},
		{"it is not bound and must not be", func(r *rig) error { return r.ch.QueueUnbind(ResultsQueue, "", MarksExchange, nil) }, false,
			errMarkLost.Error()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := setup(t).declared()
			if err := tc.before(r); err != nil {
				t.Fatal(err)
			}
			cfg := r.cfg
			if !tc.mayDo {
				cfg = r.user("socket", "^$", `^revq\.marks$`, `^revq\.results$`)
			}
			reader := NewReader(cfg, everything, r.log)
			r.follow(reader)
			if tc.says != "" {
				eventually(t, "told what is missing", func() error {
					if err := reader.Ready(); err == nil || !strings.Contains(err.Error(), tc.says) {
						return fmt.Errorf("Ready = %v, want %s", err, tc.says)
					}
					return nil
				})
				if _, err := Setup(t.Context(), r.cfg); err != nil {
					t.Fatal(err)
				}
			}
			r.ready(reader.Current)
		})
	}
}

// A listener can resume from wherever a follower stands, even in an empty
// stream.
func TestReaderTellsMarks(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	c := &counter{live: make(chan int, 1), came: make(chan string, 10)}
	stop := r.run(func(ctx context.Context) { NewReader(r.cfg, 10, r.log).Run(ctx, c) })
	receive(t, "end of the backlog", c.live)
	stop()
	if len(c.marks) != 1 || c.n != 0 {
		t.Errorf("an empty stream has the marks %q and %d results, want one and none", c.marks, c.n)
	}
}

// A visitor records what History reads.
type visitor struct {
	Result func(offset int64, r task.Result) error
	Mark   func(offset int64, id string) error
	End    func() error
}

func history(ctx context.Context, r *Reader, offset, before int64, v visitor) error {
	return r.History(ctx, offset, before, v.Result, v.Mark, v.End)
}

func TestHistory(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	p := r.publisher()
	const n = 2 * readerPrefetch
	publishResults(t, p, 0, n)
	reader := NewReader(r.cfg, 0, r.log)
	enough := errors.New("enough")
	ignore := func(int64, string) error { return nil }
	var offsets []int64
	end := 0 // how many results there were then
	all := visitor{
		Result: func(offset int64, got task.Result) error {
			if i := len(offsets); got.ID != result(i).ID || i > 0 && offset <= offsets[i-1] {
				return fmt.Errorf("got %s at %d after %v", got.ID, offset, offsets[max(0, i-1):])
			}
			offsets = append(offsets, offset)
			return nil
		},
		Mark: ignore,
		End:  func() error { end = len(offsets); return enough },
	}
	if err := history(t.Context(), reader, 0, 0, all); err != enough || end != n {
		t.Fatalf("History = %v with %d of %d results", err, end, n)
	}
	if offsets[n-1] >= places*(n-1) {
		t.Fatalf("the last of %d results has the offset %d: none of them shared a message", n, offsets[n-1])
	}
	for _, tc := range []struct{ from, before int }{{0, 0}, {0, 10}, {n / 2, 0}, {n / 2, 100}, {n/2 + 1, 1}, {n - 1, n / 4}, {n - 1, 2 * n}} {
		next := -1
		err := history(t.Context(), reader, offsets[tc.from], int64(tc.before), visitor{Result: func(offset int64, got task.Result) error {
			if next < 0 { // it may begin with others of the same message, or before
				for next = 0; offsets[next] != offset; next++ {
				}
				if next > max(0, tc.from-tc.before) {
					return fmt.Errorf("begins with result %d", next)
				}
			}
			if got.ID != result(next).ID {
				return fmt.Errorf("got %s, want %d", got.ID, next)
			}
			next++
			return nil
		}, Mark: ignore, End: func() error { return enough }})
		if err != enough || next != n {
			t.Errorf("from %d, %d before: %v after result %d", tc.from, tc.before, err, next)
		}
	}
	// From the end on: what is still to come.
	came := make(chan string, 1)
	began := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- history(t.Context(), reader, offsets[n-1], 0, visitor{Result: func(offset int64, got task.Result) error {
			if offset <= offsets[n-1] {
				return nil
			}
			came <- got.ID
			return enough
		}, Mark: ignore, End: func() error { close(began); return nil }})
	}()
	receive(t, "end of the backlog", began)
	publishResults(t, p, n, n+1)
	if got := receive(t, "result", came); got != result(n).ID {
		t.Errorf("got %s", got)
	}
	if err := receive(t, "end", ended); err != enough {
		t.Error(err)
	}
}

// History knows at once that the stream ends before an offset, even while
// results arrive.
func TestHistoryBeyondTheEnd(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	publishResults(t, r.publisher(), 0, 5)
	end := errors.New("the end")
	for _, offset := range []int64{firstOf(100), firstOf(10_000_000)} {
		err := history(t.Context(), NewReader(r.cfg, 0, r.log), offset, 1000, visitor{
			Result: func(int64, task.Result) error { return errors.New("a result came") },
			Mark:   func(int64, string) error { return errors.New("a mark came") },
			End:    func() error { return end },
		})
		if err != end {
			t.Errorf("History from %d = %v, want %v", offset, err, end)
		}
	}
}
