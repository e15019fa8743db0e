package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/revq/revq/internal/api"
	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/task"
)

// A broker is what the API publishes to.
type broker struct {
	// confirm returns what the nth publication (from 1) of a text comes to;
	// nil confirms all.
	confirm func(t task.Task, n int) error

	mu  sync.Mutex
	got []task.Task
}

func (b *broker) Ready() error { return nil }

func (b *broker) PublishTask(t task.Task) <-chan error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.got = append(b.got, t)
	n := 0
	for _, other := range b.got {
		if other.Text == t.Text {
			n++
		}
	}
	confirmed := make(chan error, 1)
	go func() {
		var err error
		if b.confirm != nil {
			err = b.confirm(t, n)
		}
		confirmed <- err
	}()
	return confirmed
}

// published returns the ids under which a text was published.
func (b *broker) published(text string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var ids []string
	for _, t := range b.got {
		if t.Text == text {
			ids = append(ids, t.ID)
		}
	}
	return ids
}

// A dropper is a listener whose connections can be cut.
type dropper struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func (d *dropper) Accept() (net.Conn, error) {
	c, err := d.Listener.Accept()
	if err == nil {
		d.mu.Lock()
		d.conns = append(d.conns, c)
		d.mu.Unlock()
	}
	return c, err
}

func (d *dropper) drop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.conns {
		c.Close()
	}
	d.conns = nil
}

// serveAPI runs the real API at an address until stop or the test ends.
func serveAPI(t *testing.T, address string, cfg api.Config, b *broker) (ln *dropper, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	ln = &dropper{Listener: l}
	server := api.New(cfg, b, slog.New(slog.DiscardHandler))
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	stop = sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		server.Shutdown(ctx) // a test may leave a request without an answer
		if err := <-served; err != nil {
			t.Error("serve:", err)
		}
	})
	t.Cleanup(stop)
	return ln, stop
}

// A trip notes the attempts to post.
type trip struct {
	after func(status int, err error) // called after each

	mu       sync.Mutex
	statuses []int // 0 for none
	times    []time.Time
}

func (tr *trip) RoundTrip(req *http.Request) (*http.Response, error) {
	began := time.Now()
	res, err := http.DefaultTransport.RoundTrip(req)
	status := 0
	if err == nil {
		status = res.StatusCode
	}
	tr.mu.Lock()
	tr.statuses, tr.times = append(tr.statuses, status), append(tr.times, began)
	tr.mu.Unlock()
	if tr.after != nil {
		tr.after(status, err)
	}
	return res, err
}

// setup returns a Sender to the real API, and what is around it.
func setup(t *testing.T, b *broker) (*Sender, *trip, *dropper) {
	t.Helper()
	ln, _ := serveAPI(t, "127.0.0.1:0", api.DefaultConfig(), b)
	tr := new(trip)
	return &Sender{URL: "http://" + ln.Addr().String(), Timeout: time.Minute, HTTP: &http.Client{Transport: tr}}, tr, ln
}

func tasks(texts ...string) []task.Task {
	var all []task.Task
	for _, text := range texts {
		all = append(all, task.Task{ID: task.NewID(), Text: text})
	}
	return all
}

// send sends texts and fails the test if that ends early.
func send(t *testing.T, s *Sender, tasks []task.Task) []error {
	t.Helper()
	answers, err := s.Send(t.Context(), tasks)
	if err != nil {
		t.Fatal(err)
	}
	if len(answers) != len(tasks) {
		t.Fatalf("%d answers to %d tasks", len(answers), len(tasks))
	}
	return answers
}

func TestSendAccepted(t *testing.T) {
	t.Parallel()
	b := new(broker)
	s, tr, _ := setup(t, b)
	for _, sent := range [][]task.Task{
		tasks("abcdef"),
		tasks("a", "<b> & \"c\"\u2028\n\x00", "ü"),
		nil,
	} {
		for i, answer := range send(t, s, sent) {
			if answer != nil {
				t.Errorf("%q: %v", sent[i].Text, answer)
			}
			if ids := b.published(sent[i].Text); !slices.Equal(ids, []string{sent[i].ID}) {
				t.Errorf("%q was published with the ids %q, not %q", sent[i].Text, ids, sent[i].ID)
			}
		}
	}
	if want := []int{202, 202}; !slices.Equal(tr.statuses, want) {
		t.Errorf("answers %v, want %v", tr.statuses, want)
	}
}

// What may pass is retried, always with the same id.
func TestSendRetries(t *testing.T) {
	t.Parallel()
	const text = "abc"

	t.Run("503", func(t *testing.T) {
		t.Parallel()
		for _, others := range []int{0, 2} { // alone, and in a batch of which nothing is accepted at first
			b := &broker{confirm: func(_ task.Task, n int) error {
				if n < 2 {
					return errors.New("the broker is not connected")
				}
				return nil
			}}
			s, tr, _ := setup(t, b)
			sent := tasks(append([]string{text}, []string{"d", "e"}[:others]...)...)
			for i, answer := range send(t, s, sent) {
				if answer != nil {
					t.Error(answer)
				}
				if ids := b.published(sent[i].Text); !slices.Equal(ids, []string{sent[i].ID, sent[i].ID}) {
					t.Errorf("%d others: published with %q, want %q twice", others, ids, sent[i].ID)
				}
			}
			if want := []int{503, 202}; !slices.Equal(tr.statuses, want) {
				t.Errorf("%d others: answers %v, want %v", others, tr.statuses, want)
			}
			if waited := tr.times[1].Sub(tr.times[0]); waited < time.Second {
				t.Errorf("retried after %v; Retry-After asked for a second", waited)
			}
		}
	})

	t.Run("429", func(t *testing.T) {
		t.Parallel()
		taken, free := make(chan struct{}), make(chan struct{})
		b := &broker{confirm: func(t task.Task, _ int) error {
			if t.Text == "first" {
				close(taken)
				<-free
			}
			return nil
		}}
		cfg := api.DefaultConfig()
		cfg.MaxInFlight = 1
		ln, _ := serveAPI(t, "127.0.0.1:0", cfg, b)
		url := "http://" + ln.Addr().String()
		first := make(chan error, 1)
		go func() {
			answers, err := (&Sender{URL: url, Timeout: time.Minute}).Send(t.Context(), tasks("first"))
			first <- errors.Join(append(answers, err)...)
		}()
		await.Value(t, "task", taken)
		tr := &trip{after: func(status int, _ error) {
			if status == http.StatusTooManyRequests {
				close(free)
			}
		}}
		s := &Sender{URL: url, Timeout: time.Minute, HTTP: &http.Client{Transport: tr}}
		sent := tasks(text)
		if answer := send(t, s, sent)[0]; answer != nil {
			t.Error(answer)
		}
		if want := []int{429, 202}; !slices.Equal(tr.statuses, want) {
			t.Errorf("answers %v, want %v", tr.statuses, want)
		}
		if err := <-first; err != nil {
			t.Error(err)
		}
	})

	t.Run("the connection is lost before the answer", func(t *testing.T) {
		t.Parallel()
		var ln *dropper
		b := &broker{confirm: func(_ task.Task, n int) error {
			if n == 1 {
				ln.drop()
			}
			return nil
		}}
		s, _, l := setup(t, b)
		ln = l
		sent := tasks(text)
		if answer := send(t, s, sent)[0]; answer != nil {
			t.Error(answer)
		}
		if ids := b.published(text); !slices.Equal(ids, []string{sent[0].ID, sent[0].ID}) {
			t.Errorf("published with %q, want %q twice", ids, sent[0].ID)
		}
	})

	t.Run("the API is restarted", func(t *testing.T) {
		t.Parallel()
		b := new(broker)
		ln, stop := serveAPI(t, "127.0.0.1:0", api.DefaultConfig(), b)
		var again sync.Once
		tr := &trip{after: func(_ int, err error) {
			if err != nil {
				again.Do(func() { serveAPI(t, ln.Addr().String(), api.DefaultConfig(), b) })
			}
		}}
		s := &Sender{URL: "http://" + ln.Addr().String(), Timeout: time.Minute, HTTP: &http.Client{Transport: tr}}
		send(t, s, tasks("before"))
		stop()
		if answer := send(t, s, tasks(text))[0]; answer != nil {
			t.Error(answer)
		}
		if statuses := tr.statuses; statuses[1] != 0 || statuses[len(statuses)-1] != 202 {
			t.Errorf("answers %v, want none and then 202", statuses)
		}
	})

	t.Run("a proxy stands in", func(t *testing.T) {
		t.Parallel()
		for _, status := range []int{429, 502, 503, 504} {
			tr := new(trip)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				tr.mu.Lock()
				first := len(tr.statuses) == 0
				tr.mu.Unlock()
				if first {
					w.WriteHeader(status)
				} else {
					w.WriteHeader(http.StatusAccepted)
				}
				io.WriteString(w, "<html>")
			}))
			t.Cleanup(server.Close)
			s := &Sender{URL: server.URL, Timeout: time.Minute, HTTP: &http.Client{Transport: tr}}
			if answer := send(t, s, tasks(text))[0]; answer != nil {
				t.Errorf("%d: %v", status, answer)
			}
			if want := []int{status, 202}; !slices.Equal(tr.statuses, want) {
				t.Errorf("answers %v, want %v", tr.statuses, want)
			}
		}
	})
}

// What is wrong with the text itself is not tried again.
func TestSendRefused(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", task.DefaultMaxText+1)
	for _, tt := range []struct {
		name, text, reason string
		status             int // 0 where it is not even posted
	}{
		{"empty", "", task.ErrNoText.Error(), 400},
		{"too long", long, "the text is too long: 65537 bytes, at most 65536 are taken", 413},
		{"not UTF-8", "b\xe4d", task.ErrNotUTF8.Error(), 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := new(broker)
			s, tr, _ := setup(t, b)
			answer := send(t, s, tasks(tt.text))[0]
			if answer == nil || answer.Error() != tt.reason {
				t.Errorf("alone: %v, want %s", answer, tt.reason)
			}
			var refusal *Refusal
			if errors.As(answer, &refusal) != (tt.status != 0) || refusal != nil && refusal.Status != tt.status {
				t.Errorf("alone: %#v, want the status %d", answer, tt.status)
			}
			answers := send(t, s, tasks("good", tt.text, "also good"))
			if answers[0] != nil || answers[1] == nil || answers[1].Error() != tt.reason || answers[2] != nil {
				t.Errorf("in a batch: %v", answers)
			}
			want := []int{tt.status, 207}
			if tt.status == 0 {
				want = []int{202}
			}
			if !slices.Equal(tr.statuses, want) {
				t.Errorf("answers %v, want %v", tr.statuses, want)
			}
		})
	}
}

// Of a batch only what failed for a reason that may pass is retried, and
// what was accepted is not.
func TestSendPartialBatch(t *testing.T) {
	t.Parallel()
	b := &broker{confirm: func(t task.Task, n int) error {
		if t.Text == "later" && n < 3 {
			return errors.New("the broker refused it")
		}
		return nil
	}}
	s, tr, _ := setup(t, b)
	sent := tasks("good", "", "later", "also good")
	answers := send(t, s, sent)
	if answers[0] != nil || answers[1] == nil || answers[2] != nil || answers[3] != nil {
		t.Errorf("answers: %v", answers)
	}
	for _, i := range []int{0, 3} {
		if ids := b.published(sent[i].Text); len(ids) != 1 {
			t.Errorf("%q was published %d times", sent[i].Text, len(ids))
		}
	}
	if ids := b.published("later"); !slices.Equal(ids, []string{sent[2].ID, sent[2].ID, sent[2].ID}) {
		t.Errorf("published with %q, want %q three times", ids, sent[2].ID)
	}
	if want := []int{207, 503, 202}; !slices.Equal(tr.statuses, want) { // the last one as a text of its own
		t.Errorf("answers %v, want %v", tr.statuses, want)
	}
}

func TestSendTimeout(t *testing.T) {
	t.Parallel()

	t.Run("refused all the time", func(t *testing.T) {
		t.Parallel()
		b := &broker{confirm: func(t task.Task, _ int) error {
			if t.Text == "bad" {
				return errors.New("the broker is away")
			}
			return nil
		}}
		s, _, _ := setup(t, b)
		s.Timeout = 1500 * time.Millisecond // time for two attempts
		answers := send(t, s, tasks("good", "bad"))
		if answers[0] != nil || answers[1] == nil || !strings.HasPrefix(answers[1].Error(), "the broker is away") {
			t.Errorf("answers: %v", answers)
		}
	})

	t.Run("no answer at all", func(t *testing.T) {
		t.Parallel()
		free := make(chan struct{})
		b := &broker{confirm: func(task.Task, int) error { <-free; return nil }}
		s, _, _ := setup(t, b)
		t.Cleanup(func() { close(free) })
		s.Timeout = 200 * time.Millisecond
		answers, err := s.Send(t.Context(), tasks("a", "b"))
		if !errors.Is(err, ErrNoAnswer) || !errors.Is(answers[0], err) || !errors.Is(answers[1], err) {
			t.Errorf("answers %v, error %v", answers, err)
		}
		if want := "no answer came within 200ms; it may be queued or not"; answers[0].Error() != want {
			t.Errorf("message %q, want %q", answers[0], want)
		}
	})

	t.Run("an answer to some, then none", func(t *testing.T) {
		t.Parallel()
		free := make(chan struct{})
		b := &broker{confirm: func(t task.Task, n int) error {
			switch {
			case t.Text == "good":
				return nil
			case n == 1:
				return errors.New("the broker is away")
			}
			<-free
			return nil
		}}
		s, _, _ := setup(t, b)
		t.Cleanup(func() { close(free) })
		s.Timeout = 1500 * time.Millisecond
		answers := send(t, s, tasks("good", "bad"))
		if answers[0] != nil || answers[1] == nil || !strings.HasPrefix(answers[1].Error(), "the broker is away") {
			t.Errorf("answers: %v, want what was said", answers)
		}
	})
}

// When ctx ends, so does Send, whatever it waits for, and says what it knows.
func TestSendInterrupted(t *testing.T) {
	t.Parallel()
	interrupted := errors.New("interrupted")

	t.Run("while waiting for an answer", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancelCause(t.Context())
		free := make(chan struct{})
		b := &broker{confirm: func(task.Task, int) error { cancel(interrupted); <-free; return nil }}
		s, _, _ := setup(t, b)
		t.Cleanup(func() { close(free) })
		answers, err := s.Send(ctx, tasks("a"))
		if !errors.Is(err, interrupted) || !errors.Is(answers[0], interrupted) {
			t.Errorf("answers %v, error %v", answers, err)
		}
	})

	t.Run("while waiting to try again", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancelCause(t.Context())
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3600")
			fmt.Fprint(w, `{"status":202}`+"\n"+`{"status":503,"detail":"later"}`+"\n")
		}))
		t.Cleanup(server.Close)
		tr := &trip{after: func(int, error) { time.AfterFunc(50*time.Millisecond, func() { cancel(interrupted) }) }}
		s := &Sender{URL: server.URL, Timeout: time.Hour, HTTP: &http.Client{Transport: tr}}
		answers, err := s.Send(ctx, tasks("a", "b"))
		if !errors.Is(err, interrupted) || answers[0] != nil || !errors.Is(answers[1], interrupted) {
			t.Errorf("answers %v, error %v", answers, err)
		}
	})
}

// An API that was never there is not waited for.
func TestSendUnreachable(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"http://127.0.0.1:1", "https://127.0.0.1:1/"} {
		s := &Sender{URL: url, Timeout: time.Hour}
		if answers, err := s.Send(t.Context(), tasks("a")); !errors.Is(err, ErrUnreachable) || !errors.Is(answers[0], err) {
			t.Errorf("%s: answers %v, error %v, want ErrUnreachable", url, answers, err)
		}
	}
	for _, url := range []string{"", "localhost:8081", "http://", "ws://localhost", "http://a b", "/path"} {
		s := &Sender{URL: url, Timeout: time.Hour}
		if _, err := s.Send(t.Context(), tasks("a")); !errors.Is(err, ErrBadURL) {
			t.Errorf("%q: %v, want ErrBadURL", url, err)
		}
	}
}

// A server that does not answer as revq does is an error, without a retry.
func TestSendStranger(t *testing.T) {
	t.Parallel()
	for name, stranger := range map[string]struct {
		status            int
		contentType, body string
	}{
		"a page":                  {200, "text/html", "<html>"},
		"a missing page":          {404, "text/html", "<html>"},
		"JSON":                    {200, "application/json", `{"ok":true}`},
		"JSON lines":              {200, "application/x-ndjson", "{}\n{}\n"},
		"an error as JSON":        {404, "application/json", `{"error":"not found"}`},
		"a problem without words": {400, "application/problem+json", `{}`},
		"a broken problem":        {400, "application/problem+json", `{"status":`},
		"too few lines":           {207, "application/x-ndjson", `{"status":202}` + "\n"},
		"nothing":                 {204, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", stranger.contentType)
				w.WriteHeader(stranger.status)
				io.WriteString(w, stranger.body)
			}))
			t.Cleanup(server.Close)
			tr := new(trip)
			s := &Sender{URL: server.URL, Timeout: time.Hour, HTTP: &http.Client{Transport: tr}}
			for _, sent := range [][]task.Task{tasks("a"), tasks("a", "b")} {
				answers, err := s.Send(t.Context(), sent)
				if err == nil || !strings.Contains(err.Error(), "not as revq does: check the URL") {
					t.Errorf("%d texts: answers %v, error %v", len(sent), answers, err)
				}
			}
			if len(tr.statuses) != 2 {
				t.Errorf("asked %d times, want once for each Send", len(tr.statuses))
			}
		})
	}
}
