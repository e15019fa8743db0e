package rabbit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// A post receives what a bundler publishes, and confirms it when the test says.
type post struct {
	*bundler
	t         *testing.T
	messages  []amqp.Publishing
	confirmed []chan error // of each message
	answers   map[string]<-chan error
}

func newPost(t *testing.T) *post {
	p := &post{t: t, answers: make(map[string]<-chan error)}
	p.bundler = &bundler{maxResults: maxBundle, maxWaiting: 200, publish: func(m amqp.Publishing) <-chan error {
		p.messages = append(p.messages, m)
		c := make(chan error, 1)
		p.confirmed = append(p.confirmed, c)
		return c
	}}
	return p
}

// put adds results from to to-1.
func (p *post) put(from, to, bytes int) {
	for i := from; i < to; i++ {
		r := result(i)
		r.Text = strings.Repeat("x", bytes)
		p.answers[r.ID] = p.add(r)
	}
}

// sent fails the test unless these are the numbers of results in the messages
// that were sent, since the last time.
func (p *post) sent(want ...int) {
	p.t.Helper()
	synctest.Wait()
	p.mu.Lock() // publish is called under it
	messages := p.messages
	p.messages = nil
	p.mu.Unlock()
	var got []int
	for _, m := range messages {
		entries, err := decodeEntries(nil, amqp.Delivery{
			Headers: amqp.Table{offsetHeader: int64(7)}, ContentType: m.ContentType, MessageId: m.MessageId, Body: m.Body,
		}, task.MaxText)
		if err != nil {
			p.t.Fatal(err)
		}
		for i, e := range entries {
			if e.invalid != nil || e.offset != 7*places+int64(i) {
				p.t.Errorf("%s is at %d (%v)", e.id, e.offset, e.invalid)
			}
		}
		got = append(got, len(entries))
	}
	if !slices.Equal(got, want) {
		p.t.Errorf("messages of %v results were sent, want %v", got, want)
	}
}

// confirm answers the oldest message in flight, if there is one.
func (p *post) confirm(err error) (was bool) {
	p.mu.Lock()
	if was = len(p.confirmed) > 0; was {
		p.confirmed[0] <- err
		p.confirmed = p.confirmed[1:]
	}
	p.mu.Unlock()
	synctest.Wait()
	return was
}

// settle confirms all there is.
func (p *post) settle() {
	for p.confirm(nil) {
		<-time.After(bundleInterval)
		synctest.Wait()
	}
}

// answered fails the test unless results from to to-1 are answered with err.
func (p *post) answered(from, to int, err error) {
	p.t.Helper()
	for i := from; i < to; i++ {
		select {
		case got := <-p.answers[result(i).ID]:
			if got != err {
				p.t.Errorf("result %d is answered with %v, want %v", i, got, err)
			}
		default:
			p.t.Errorf("result %d is not answered", i)
		}
	}
}

func TestBundler(t *testing.T) {
	for name, story := range map[string]func(p *post){
		"a lone result is sent at once": func(p *post) {
			p.put(0, 1, 10)
			p.sent(1)
			<-time.After(bundleInterval)
			p.put(1, 2, 10)
			p.sent(1)
			p.confirm(nil)
			p.answered(0, 1, nil)
			p.confirm(ErrRefused) // concerns nobody else
			p.answered(1, 2, ErrRefused)
		},
		"what comes soon shares a message": func(p *post) {
			p.put(0, 4, 10)
			p.sent(1)
			<-time.After(bundleInterval - time.Nanosecond)
			p.sent()
			<-time.After(time.Nanosecond)
			p.sent(3)
			p.confirm(nil)
			p.confirm(ErrLost)
			p.answered(0, 1, nil)
			p.answered(1, 4, ErrLost)
		},
		"a full message does not wait": func(p *post) {
			p.put(0, 1+maxBundle+3, 10)
			p.sent(1, maxBundle)
			<-time.After(bundleInterval)
			p.sent(3)
		},
		"a message is full sooner if few results can wait": func(p *post) {
			p.maxResults = 2
			p.put(0, 6, 10)
			p.sent(1, 2, 2)
			<-time.After(bundleInterval)
			p.sent(1)
		},
		"long texts fill a message sooner": func(p *post) {
			p.put(0, 1, 10)
			p.put(1, 4, maxBundleBytes/3)
			p.put(4, 5, 2*maxBundleBytes) // more than one may hold is in its own
			p.sent(1, 2, 1, 1)
		},
		"messages in flight are bounded": func(p *post) {
			p.put(0, 1+maxInFlight*maxBundle, 10)
			p.sent(append([]int{1}, slices.Repeat([]int{maxBundle}, maxInFlight-1)...)...)
			<-time.After(time.Second)
			p.sent()
			p.confirm(nil)
			p.sent(maxBundle)
		},
		"so many wait at most": func(p *post) {
			p.put(0, 1+(maxInFlight-1)*maxBundle+p.maxWaiting, 10)
			if err := <-p.add(result(1000)); err != ErrBusy {
				t.Errorf("one too many is answered with %v", err)
			}
			p.settle()
			p.answered(0, len(p.answers), nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPost(t)
				story(p)
				p.settle() // or something would be left behind
			})
		})
	}
}

func TestBundleErrors(t *testing.T) {
	whole := appendRecord(appendRecord(nil, result(1)), result(2))
	for n := range len(whole) {
		results, err := decodeBundle(whole[:n])
		if n == len(appendRecord(nil, result(1))) { // cut off between the two
			if err != nil || len(results) != 1 {
				t.Errorf("%d bytes: %v, %v", n, results, err)
			}
		} else if !errors.Is(err, errGarbled) {
			t.Errorf("%d bytes of %d: %v, %v", n, len(whole), results, err)
		}
	}
	var many []byte
	for i := range places + 1 {
		many = appendRecord(many, result(i))
	}
	if _, err := decodeBundle(many); !errors.Is(err, errTooMany) {
		t.Errorf("%d results: %v", places+1, err)
	}
}

// Followers of the stream and listeners that resume are told of a result that
// cannot be sent, and get everything after it.
func TestLostResults(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	r.cfg.MaxResult = 100
	long := strings.Repeat("x", r.cfg.MaxResult+1)
	longer := fmt.Errorf("%w: 101 bytes, at most 100 are sent", task.ErrTooLong)
	bundled := func(results ...task.Result) amqp.Publishing {
		var body []byte
		for _, r := range results {
			body = appendRecord(body, r)
		}
		m := message("bundle", body, time.Now(), nil)
		m.ContentType = bundleType
		return m
	}
	garbled := message("bad", []byte("bad"), time.Now(), nil)
	garbled.ContentType = bundleType
	newer := message("newer", []byte("looks like a text"), time.Now(), nil)
	newer.ContentType = bundleType + "; version=2"
	lone := func(id, body string) amqp.Publishing { return message(id, []byte(body), time.Now(), nil) }
	now := time.Now()
	want := []struct {
		id     string // as listeners are told
		offset int64
		err    error
	}{
		{"bad", 0, errGarbled},
		{"empty", places, task.ErrNoText},
		{"long", places + 1, longer},
		{"lone-long", 2 * places, longer},
		{"binary", 3 * places, task.ErrNotUTF8},
		{"", 4 * places, wire.ErrBadID},
		{"", 5 * places, wire.ErrBadID},
		{"", 6 * places, errNewer},
	}
	r.enqueue(resultsKey, garbled,
		bundled(task.Result{ID: "empty", Done: now}, task.Result{ID: "long", Text: long, Done: now}, result(0)),
		lone("lone-long", long), lone("binary", "\xff"), lone("a line\nbreak", "x"), lone("", "x"), newer)
	publishResults(t, r.publisher(), 1, 3)
	check := func(results <-chan read) {
		t.Helper()
		for _, w := range want[:3] {
			isLost(t, receive(t, w.id, results), w.id, w.offset, w.err)
		}
		inOrder(t, results, 0, 1, places+1)
		for _, w := range want[3:] {
			isLost(t, receive(t, w.id, results), w.id, w.offset, w.err)
		}
		inOrder(t, results, 1, 3, 0)
	}
	reader := NewReader(r.cfg, everything, r.log)
	check(r.follow(reader))
	r.out.Says(t, fmt.Sprintf("offset=0 id=bad error=%q", errGarbled))
	r.out.Says(t, fmt.Sprintf("offset=%d id=empty error=%q", places, task.ErrNoText))
	history := make(chan read, 100)
	r.run(func(ctx context.Context) {
		_ = reader.History(ctx, -1, 0, func(offset int64, res task.Result) error {
			history <- read{offset, res}
			return nil
		}, func(int64, string) error { return nil }, func() error { return nil })
	})
	check(history)
}

func isLost(t *testing.T, got read, id string, offset int64, err error) {
	t.Helper()
	if got.ID != id || got.offset != offset || got.Kind != task.Lost || !strings.HasPrefix(got.Text, err.Error()) {
		t.Errorf("got %+v, want that %q at %d is lost: %v", got, id, offset, err)
	}
}

// The digest of the task's text passes through the broker with a single result
// and with several in a message. Messages without it, as other programs and
// earlier versions publish them, are read as well.
func TestDigests(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	p := r.publisher()
	results := r.follow(NewReader(r.cfg, everything, r.log))
	of := func(i int) task.Digest { return task.DigestOf(fmt.Sprint("text ", i)) }
	var answers []<-chan error
	const n = 40
	for i := range n {
		res := result(i)
		if i != 7 { // one that is not known among others
			res.Of = of(i)
		}
		answers = append(answers, p.PublishResult(res))
	}
	for _, answer := range answers {
		if err := r.answered(answer); err != nil {
			t.Fatal(err)
		}
	}
	bare := encodeBundle([]unsent{{result: result(n)}, {result: result(n + 1)}})
	delete(bare.Headers, digestHeader)
	lone := encodeResult(result(n + 2))
	short := encodeBundle([]unsent{{result: result(n + 3)}, {result: result(n + 4)}})
	short.Headers[digestHeader] = short.Headers[digestHeader].(string)[:digestDigits+1]
	strange := encodeResult(result(n + 5))
	strange.Headers[digestHeader] = int32(7)
	r.enqueue(resultsKey, bare, lone, short, strange)
	shared := 0
	for i := range n + 6 {
		got := receive(t, "result", results)
		if got.offset%places > 0 {
			shared++
		}
		want := of(i)
		if i == 7 || i >= n {
			want = 0
		}
		if got.ID != result(i).ID || got.Of != want {
			t.Errorf("result %d is %s with the digest %x, want %x", i, got.ID, got.Of, want)
		}
	}
	if shared < n/2 {
		t.Errorf("%d results only have shared a message", shared)
	}
}

// FuzzDigests reads any header that another program may set.
func FuzzDigests(f *testing.F) {
	f.Add("0123456789abcdef0123456789ABCDEF", 1)
	f.Add("0123456789abcdeg", 0)
	f.Add("+123456789abcdef", 0)
	f.Fuzz(func(t *testing.T, header string, i int) {
		if i < 0 || i >= places {
			return
		}
		d := digestAt(amqp.Table{digestHeader: header}, i)
		if d == 0 {
			return
		}
		digits := header[i*digestDigits : (i+1)*digestDigits]
		if again := string(appendDigest(nil, d)); again != strings.ToLower(digits) {
			t.Errorf("%q was read as %q", digits, again)
		}
	})
}

// FuzzEntries reads any message of the stream: each entry is a proper result,
// or a reason why not, with an id that listeners can get.
func FuzzEntries(f *testing.F) {
	two := encodeBundle([]unsent{{result: result(1)}, {result: task.Result{ID: "x", Text: strings.Repeat("x", 200), Of: 7}}})
	f.Add(two.ContentType, two.MessageId, two.Headers[digestHeader].(string), two.Body)
	f.Add("text/plain", "a", "0123456789abcdef", []byte("text"))
	f.Add(bundleType, "a b", "", []byte("bad"))
	f.Add("", "", "", []byte{0xff})
	f.Fuzz(func(t *testing.T, contentType, id, digests string, body []byte) {
		const maxLength = 100
		entries, err := decodeEntries(nil, amqp.Delivery{
			Headers:     amqp.Table{offsetHeader: int64(3), digestHeader: digests},
			ContentType: contentType, MessageId: id, Body: body,
		}, maxLength)
		if err != nil || len(entries) == 0 || len(entries) > places {
			t.Fatalf("%d entries, %v", len(entries), err)
		}
		for i, e := range entries {
			r := e.result
			switch {
			case e.offset != 3*places+int64(i):
				t.Errorf("entry %d is at %d", i, e.offset)
			case e.invalid == nil && (r.Kind == task.Lost || checkResult(r, maxLength) != nil):
				t.Errorf("a proper result is %+v", r)
			case e.invalid != nil && (r.Kind != task.Lost || r.Text == "" || r.ID != "" && wire.CheckID(r.ID) != nil):
				t.Errorf("one that is none is %+v", r)
			}
		}
	})
}

func FuzzBundle(f *testing.F) {
	f.Add([]byte{})
	f.Add(appendRecord(nil, result(1)))
	f.Add(appendRecord(appendRecord(nil, result(1)), task.Result{ID: "x", Text: strings.Repeat("x", 200), Done: time.UnixMicro(1)}))
	f.Fuzz(func(t *testing.T, body []byte) {
		results, err := decodeBundle(body)
		if (err == nil) != (len(results) > 0) {
			t.Fatalf("%d results and the error %v", len(results), err)
		}
		if err != nil {
			return
		}
		var again []byte
		for _, r := range results {
			again = appendRecord(again, r)
		}
		same, err := decodeBundle(again)
		if err != nil || !slices.Equal(same, results) {
			t.Errorf("%v became %v (%v)", results, same, err)
		}
	})
}

// Each result of a message keeps its own trace, and a message without traces
// has no header for them.
func TestTracesOfResults(t *testing.T) {
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for _, want := range [][]string{{""}, {trace}, {"", ""}, {trace, "", trace}, {"", trace}} {
		var bundle []unsent
		for i, trace := range want {
			r := result(i)
			r.Trace = trace
			bundle = append(bundle, unsent{result: r})
		}
		m := encodeBundle(bundle)
		if !slices.Contains(want, trace) && (m.Headers[traceHeader] != nil || m.Headers[tracesHeader] != nil) {
			t.Errorf("%q has the headers %v", want, m.Headers)
		}
		m.Headers[offsetHeader] = int64(7)
		entries, err := decodeEntries(nil, amqp.Delivery{Headers: m.Headers, ContentType: m.ContentType, MessageId: m.MessageId, Body: m.Body}, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range entries {
			got = append(got, e.result.Trace)
		}
		if !slices.Equal(got, want) {
			t.Errorf("the traces are %q, want %q", got, want)
		}
	}
}
