package rabbit

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/task"
)

// A post takes what a bundler publishes, and confirms it when the test does.
type post struct {
	messages  chan amqp.Publishing
	confirmed []chan error // of each message, in their order
}

func newPost() (*bundler, *post) {
	p := &post{messages: make(chan amqp.Publishing, 100)}
	for range cap(p.messages) {
		p.confirmed = append(p.confirmed, make(chan error, 1))
	}
	next := make(chan chan error, len(p.confirmed))
	for _, c := range p.confirmed {
		next <- c
	}
	return &bundler{maxWaiting: 100, publish: func(m amqp.Publishing) <-chan error {
		p.messages <- m
		return <-next
	}}, p
}

// holds returns the results in a message, as a reader does.
func holds(t *testing.T, m amqp.Publishing) (ids []string) {
	t.Helper()
	entries, err := decodeEntries(nil, amqp.Delivery{
		Headers: amqp.Table{offsetHeader: int64(7)}, ContentType: m.ContentType, MessageId: m.MessageId, Body: m.Body,
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range entries {
		if e.invalid != nil || e.offset != 7*places+int64(i) {
			t.Errorf("%s is at %d (%v)", e.id, e.offset, e.invalid)
		}
		ids = append(ids, e.id)
	}
	return ids
}

func TestBundler(t *testing.T) {
	b, p := newPost()
	var answers []<-chan error
	add := func(text string, ids ...int) {
		for _, i := range ids {
			r := result(i)
			r.Text = text
			answers = append(answers, b.add(r))
		}
	}
	var want []string
	sent := func(count int) {
		t.Helper()
		got := holds(t, receive(t, "message", p.messages))
		if len(got) != count || !slices.Equal(got, want[:count]) {
			t.Errorf("a message holds %v, want %d of %v", got, count, want)
		}
		want = want[count:]
	}
	numbers := func(from, to int) (all []int) {
		for i := from; i < to; i++ {
			all = append(all, i)
			want = append(want, result(i).ID)
		}
		return all
	}

	// What comes to an idle connection goes out at once.
	add("text", numbers(0, maxUnderWay)...)
	for range maxUnderWay {
		sent(1)
	}
	// What comes meanwhile shares the next message, up to the limit.
	const more = maxBundle + 3
	add("text", numbers(maxUnderWay, maxUnderWay+more)...)
	if len(p.messages) > 0 {
		t.Fatal("too many messages are under way")
	}
	p.confirmed[0] <- nil
	sent(maxBundle)
	p.confirmed[1] <- errors.New("lost") // concerns nobody else
	sent(more - maxBundle)
	// Long texts fill a message sooner, and one that is too long has its own.
	total := maxUnderWay + more
	add(strings.Repeat("x", maxBundleBytes/3), numbers(total, total+3)...)
	add(strings.Repeat("x", 2*maxBundleBytes), numbers(total+3, total+4)...)
	p.confirmed[2] <- nil
	sent(2)
	p.confirmed[3] <- nil
	sent(1)
	p.confirmed[4] <- nil
	sent(1)
	p.confirmed[5] <- nil
	p.confirmed[6] <- ErrRefused
	for i, answer := range answers {
		switch err := receive(t, "answer", answer); {
		case i == 1 && err.Error() == "lost", i == len(answers)-1 && err == ErrRefused:
		case i == 1 || i == len(answers)-1 || err != nil:
			t.Errorf("the answer to %d is %v", i, err)
		}
	}
	// It is idle again, and refuses more than may wait.
	answers = nil
	add("text", numbers(1000, 1000+maxUnderWay+b.maxWaiting)...)
	if err := receive(t, "answer", b.add(result(2000))); err != ErrBusy {
		t.Errorf("one too many: %v", err)
	}
	for range maxUnderWay {
		sent(1)
	}
	for _, confirmed := range p.confirmed[7:] {
		confirmed <- nil
	}
	for _, answer := range answers {
		if err := receive(t, "answer", answer); err != nil {
			t.Error(err)
		}
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

// What cannot be read is left out, and everything after it is there.
func TestGarbledBundle(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	p := r.publisher()
	bad := message("bad", []byte("bad"), time.Now(), nil)
	bad.ContentType = bundleType
	noText := message("half", appendRecord(appendRecord(nil, task.Result{ID: "empty", Done: time.Now()}), result(0)), time.Now(), nil)
	noText.ContentType = bundleType
	r.enqueue(resultsKey, bad, noText)
	publishResults(t, p, 1, 3)
	results := r.follow(NewReader(r.cfg, everything, r.log))
	inOrder(t, results, 0, 3, -1)
	r.out.says(t, fmt.Sprintf("offset=0 id=bad error=%q", errGarbled))
	r.out.says(t, fmt.Sprintf("offset=%d id=empty error=%q", places, task.ErrNoText))
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
