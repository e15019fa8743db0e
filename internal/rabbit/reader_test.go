package rabbit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/task"
)

func result(i int) task.Result {
	return task.Result{ID: fmt.Sprintf("task-%d", i), Text: fmt.Sprintf("result %d", i), Accepted: time.UnixMicro(int64(i)), Done: time.Now()}
}

type read struct {
	offset int64
	task.Result
}

// A follower takes down what a reader tells it.
type follower struct {
	results chan read
	gaps    chan string
	live    chan struct{}
}

func (f *follower) Append(offset int64, r task.Result) { f.results <- read{offset, r} }
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
	f = &follower{make(chan read, 100_000), make(chan string, 100), make(chan struct{})}
	stop = r.run(func(ctx context.Context) error { return reader.Run(ctx, f) })
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
		r.out.says(t, "CONNECTION_FORCED - closed by a test")
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
			receive(t, "end of what was there", f.live)
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
	receive(t, "end of what was there", f.live)
	if n := len(f.results); n < 10 || n > 20 {
		t.Errorf("%d results of the past, want about 10", n)
	}
	inOrder(t, f.results, 100-len(f.results), 100, -1)
}

// One that has taken the stream for empty, while the broker was slow to say
// what is in it, must not take all of the past for new.
func TestReaderFindsThatTheStreamIsNotEmpty(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	p := r.publisher()
	for i := range 100 { // one by one, so that each is a chunk
		publishResults(t, p, i, i+1)
	}
	reader := NewReader(r.cfg, 10, r.log)
	reader.begun, reader.empty, reader.newest = true, true, -1
	c := &counter{live: make(chan int, 1)}
	r.run(func(ctx context.Context) error { return reader.Run(ctx, c) })
	if n := receive(t, "end of what was there", c.live); n < 10 || n > 20 {
		t.Errorf("%d results of the past, want about 10", n)
	}
	r.out.says(t, errNotEmpty.Error())
}

// The first result in a stream may be of a worker whose clock is behind.
func TestReaderPassesOnWhatSeemsOld(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	f, _ := r.followUntil(NewReader(r.cfg, everything, r.log))
	receive(t, "end of what was there", f.live)
	late := result(1)
	late.Done = time.Now().Add(-time.Hour)
	p := r.publisher()
	if err := receive(t, "answer", p.PublishResult(late)); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, "result", f.results); got.ID != late.ID {
		t.Errorf("got %+v, want %+v", got, late)
	}
	publishResults(t, p, 2, 5)
	inOrder(t, f.results, 2, 5, 0)
}

// A reader that is connected late must not take for the past what those who wait for it have to get.
func TestReaderIsLiveForWhatIsYounger(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	p := r.publisher()
	publishResults(t, p, 0, 10)
	reader := NewReader(r.cfg, everything, r.log)
	publishResults(t, p, 10, 20)
	c := &counter{live: make(chan int, 1)}
	r.run(func(ctx context.Context) error { return reader.Run(ctx, c) })
	if n := receive(t, "going live", c.live); n != 10 {
		t.Errorf("live after %d results, want the 10 that are older than the reader", n)
	}
}

// A counter counts results until it is told to go live.
type counter struct {
	n    int
	live chan int
}

func (c *counter) Append(int64, task.Result) { c.n++ }
func (c *counter) AppendGap(string)          {}
func (c *counter) GoLive()                   { c.live <- c.n }

func TestReaderTellsOfAGap(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		after int // results in the new stream
	}{
		{"the stream was made anew and is empty", 0},
		{"the stream was made anew and is shorter", 5},
		{"the stream was made anew and is longer", 200},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := setup(t).declared()
			p := r.publisher()
			publishResults(t, p, 0, 100)
			f, _ := r.followUntil(NewReader(r.cfg, everything, r.log))
			inOrder(t, f.results, 0, 100, -1)
			if _, err := r.ch.QueueDelete(ResultsQueue, false, false, false); err != nil {
				t.Fatal(err)
			}
			if _, err := Setup(t.Context(), r.cfg); err != nil {
				t.Fatal(err)
			}
			if tc.after > 0 {
				// RabbitMQ 3.10 may break off with an internal error what publishes
				// to a stream just after it was deleted and declared again.
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
	r.run(func(ctx context.Context) error { return reader.Run(ctx, f) })
	if reason := receive(t, "gap", f.gaps); reason != errMissing.Error() {
		t.Errorf("gap: %s, want: %v", reason, errMissing)
	}
	for last := ""; last != result(499).ID; {
		last = receive(t, "result", f.results).ID
	}
}

func TestHistory(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	p := r.publisher()
	const n = 2 * readerPrefetch
	publishResults(t, p, 0, n)
	reader := NewReader(r.cfg, 0, r.log)
	enough := errors.New("enough")
	noEnd := func() error { return errors.New("called the end of what has no end") }
	var offsets []int64
	err := reader.History(t.Context(), 0, 0, func(offset int64, got task.Result) error {
		if i := len(offsets); got.ID != result(i).ID || i > 0 && offset <= offsets[i-1] {
			return fmt.Errorf("got %s at %d after %v", got.ID, offset, offsets[max(0, i-1):])
		}
		if offsets = append(offsets, offset); len(offsets) == n {
			return enough
		}
		return nil
	}, noEnd)
	if err != enough {
		t.Fatal(err)
	}
	if offsets[n-1] >= places*(n-1) {
		t.Fatalf("the last of %d results has the offset %d: none of them shared a message", n, offsets[n-1])
	}
	for _, tc := range []struct{ from, before int }{{0, 0}, {0, 10}, {n / 2, 0}, {n / 2, 100}, {n/2 + 1, 1}, {n - 1, n / 4}, {n - 1, 2 * n}} {
		next := -1
		err := reader.History(t.Context(), offsets[tc.from], int64(tc.before), func(offset int64, got task.Result) error {
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
			if next++; next == n {
				return enough
			}
			return nil
		}, noEnd)
		if err != enough {
			t.Errorf("from %d, %d before: %v", tc.from, tc.before, err)
		}
	}
	// From the end on: what is still to come.
	came := make(chan string, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- reader.History(t.Context(), offsets[n-1]+places, 0, func(_ int64, got task.Result) error {
			came <- got.ID
			return enough
		}, func() error { return nil })
	}()
	publishResults(t, p, n, n+1)
	if got := receive(t, "result", came); got != result(n).ID {
		t.Errorf("got %s", got)
	}
	if err := receive(t, "end", ended); err != enough {
		t.Error(err)
	}
}
