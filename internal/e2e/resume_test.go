//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/daemon/daemontest"
	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

var cutSeed = flag.Uint64("cut.seed", 0, "seed of TestListenerCutOffAtRandom; 0 for one by the clock")

// A listener that is cut off again and again, wherever in a frame or in the
// handshake that may be, while many results go by, and that goes on at the
// other site each time, prints each of them once, in the order of the stream.
func TestListenerCutOffAtRandom(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	t.Parallel()
	const (
		results = 50_000
		before  = 10_000 // of them, ahead of the listener: when it begins, it gets these from the broker
		cuts    = 100
	)
	seed := *cutSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) % 1_000_000_000
	}
	t.Logf("seed %d: again with -cut.seed %d", seed, seed)
	s := prepare(t, rabbittest.Shared(t))
	s.revq(t, "setup")
	c := &cutter{random: rand.New(rand.NewPCG(seed, 0)), maxCuts: cuts}
	var urls []string
	for range 2 {
		ln, site := daemontest.Listen(t)
		// The log holds about 5,000 results.
		s.startDaemon(t, "revq-socket", []daemontest.Socket{ln}, "--keep-bytes", fmt.Sprint(1<<20)).WaitReady(t)
		urls = append(urls, "ws://"+c.proxy(t, site))
	}
	reader := rabbit.NewReader(s.brokerConfig(), 0, slog.New(slog.DiscardHandler))

	var printed atomic.Int64
	publish := s.publisher(t)
	publishAll := func(from, to int) {
		var confirmed []<-chan error
		for i := from; i < to; i++ {
			// Not all are to be there before the first cut, and most that are
			// missed are to be in the log.
			for i >= before && int64(i) > 3000+printed.Load() && t.Context().Err() == nil {
				<-time.After(time.Millisecond)
			}
			confirmed = append(confirmed, publish(fmt.Sprintf("text %d", i)))
			if len(confirmed) == 500 || i == to-1 {
				for _, c := range confirmed {
					if err := <-c; err != nil {
						t.Error(err)
					}
				}
				confirmed = nil
			}
		}
	}
	publishAll(0, before)
	began := time.Now()
	var publishing sync.WaitGroup
	publishing.Go(func() { publishAll(before, results) })
	defer publishing.Wait()

	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	listen := exec.CommandContext(ctx, daemontest.Binary(t, "revq"), "listen", "--json", "--after", "-1",
		"--count", fmt.Sprint(results), "--url", urls[0], "--url", urls[1])
	listen.Env = daemontest.Environment()
	var stderr bytes.Buffer
	listen.Stderr = &stderr
	stdout, err := listen.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := listen.Start(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		var m wire.Message
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			t.Errorf("line %q: %v", lines.Text(), err)
		}
		if m.Type != wire.TypeGreeting {
			got = append(got, fmt.Sprint(m.Type, " ", m.Offset, " ", m.ID))
			printed.Add(1)
		}
	}
	if err := listen.Wait(); err != nil {
		t.Errorf("revq listen: %v", err)
	}
	t.Logf("%d results in %v, %v", len(got), time.Since(began).Round(time.Millisecond), c)
	if c.cuts != cuts {
		t.Errorf("the listener was cut off %d times, want %d", c.cuts, cuts)
	}

	var want []string
	for _, m := range streamed(t, reader, results) {
		want = append(want, fmt.Sprint("result ", m.Offset, " ", m.ID))
	}
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			t.Errorf("the listener printed %d lines, the stream has %d results; they differ from the number %d on: %.5q, want %.5q",
				len(got), len(want), i, got[min(i, len(got)):], want[min(i, len(want)):])
			break
		}
	}
	if strings.Contains(stderr.String(), "missing here") {
		t.Errorf("the listener was told of a gap")
	}
	if t.Failed() {
		t.Logf("stderr of revq listen:\n%s", &stderr)
	}
}

// publisher returns a function that publishes a result as a worker does, and
// returns a channel for the confirmation.
func (s *system) publisher(t *testing.T) func(text string) <-chan error {
	t.Helper()
	p := rabbit.NewPublisher(s.brokerConfig(), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { p.Run(ctx) })
	t.Cleanup(running.Wait)
	t.Cleanup(cancel)
	await.True(t, "the publisher has a session", func() bool { return p.Ready() == nil })
	return func(text string) <-chan error {
		return p.PublishResult(task.Result{ID: task.NewID(), Text: text, Accepted: time.Now(), Done: time.Now()})
	}
}

// streamed waits until the stream has n results and returns them in order,
// without repetitions.
func streamed(t *testing.T, reader *rabbit.Reader, n int) (results []wire.Message) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	seen, all := make(map[string]bool), errors.New("that is all")
	err := reader.History(ctx, 0, 0, func(offset int64, r task.Result) error {
		if !seen[r.ID] {
			seen[r.ID] = true
			results = append(results, wire.Message{Offset: offset, ID: r.ID})
		}
		if len(results) == n {
			return all
		}
		return nil
	}, func(int64, string) error { return nil }, func() error { return nil })
	if err != all {
		t.Fatalf("the stream has %d results, want %d: %v", len(results), n, err)
	}
	return results
}

// A cutter cuts connections off after a random number of bytes that servers
// have sent, until it has done so often enough.
type cutter struct {
	maxCuts int

	mu          sync.Mutex
	random      *rand.Rand
	cuts        int
	early       int // of them, before the first result
	connections int
}

const (
	// handshakeBytes is less than what a server sends before the first result.
	handshakeBytes = 200

	// resultBytes is twice what a listener gets on average before it is cut
	// off. With 100 cuts that is most of what there is.
	resultBytes = 140_000
)

func (c *cutter) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprintf("%d connections, %d of them cut off, of which %d in the handshake or the greeting", c.connections, c.cuts, c.early)
}

// quota returns after how many bytes a new connection is to be cut off, and
// whether with a reset.
func (c *cutter) quota() (bytes int64, reset bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.connections++
	reset = c.random.IntN(2) == 0
	switch {
	case c.cuts == c.maxCuts:
		return math.MaxInt64, false
	case c.random.IntN(6) == 0:
		return c.random.Int64N(handshakeBytes), reset
	default:
		return c.random.Int64N(resultBytes), reset
	}
}

func (c *cutter) wasCut(after int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cuts++
	if after < handshakeBytes {
		c.early++
	}
}

// proxy returns an address at which connections go to target until they are cut
// off.
func (c *cutter) proxy(t *testing.T, target string) string {
	t.Helper()
	ln, address := daemontest.Listen(t)
	var serving sync.WaitGroup
	t.Cleanup(serving.Wait)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		ln.Close()
	})
	serving.Go(func() {
		for {
			client, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				t.Error(err)
				client.Close()
				continue
			}
			done := context.AfterFunc(ctx, func() { client.Close(); server.Close() })
			serving.Go(func() { io.Copy(server, client); server.Close() })
			serving.Go(func() {
				defer done()
				defer server.Close()
				defer client.Close()
				quota, reset := c.quota()
				if n, _ := io.CopyN(client, server, quota); n < quota {
					return // one side has ended it
				}
				c.wasCut(quota)
				if reset {
					client.SetLinger(0)
				}
			})
		}
	})
	return address
}

// Who asks for what the broker does not keep any more, or never had, is told in
// each format, and by revq listen. So is everyone who listens when the stream
// is deleted and re-created.
func TestGapsAtTheBroker(t *testing.T) {
	t.Parallel()
	s := prepare(t, rabbittest.Shared(t))
	s.revq(t, "setup", "--results-max-bytes", fmt.Sprint(128<<10), "--results-segment-bytes", fmt.Sprint(64<<10))
	publish := s.publisher(t)
	const results = 2000 // of more than 1 MB
	var confirmed []<-chan error
	text := strings.Repeat("x", 500)
	for range results {
		confirmed = append(confirmed, publish(text))
	}
	for _, c := range confirmed {
		if err := <-c; err != nil {
			t.Fatal(err)
		}
	}
	s.socket = s.startDaemon(t, "revq-socket", s.socketSockets)
	s.socket.WaitReady(t)

	// After a segment that has just been filled the stream may be empty.
	live := s.listen(t, "json")
	if err := <-publish(text); err != nil {
		t.Fatal(err)
	}
	last := live.nextResult(t)
	newest, id := last.Offset, last.ID
	for _, tt := range []struct{ name, after, reason string }{
		{"too old", "3", "too old"},
		{"of another stream", fmt.Sprintf("%d/another", newest), "re-created"},
		{"in the future", fmt.Sprint(2 * newest), "re-created"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			began := time.Now()
			json, text := s.connect(t, "json", tt.after), s.connect(t, "text", tt.after)
			events := s.events(t, tt.after)
			json.greet(t)
			text.greet(t)
			gap, first := parse(t, json.next(t)), parse(t, json.next(t))
			t.Logf("told of the gap after %v", time.Since(began))
			if gap.Type != wire.TypeGap || !strings.Contains(gap.Text, tt.reason) || first.Type != wire.TypeResult {
				t.Errorf("JSON: %+v and %+v, want a gap, %s, and a result", gap, first, tt.reason)
			}
			if code := text.closeCode(t); code != wire.CloseGap || !strings.Contains(text.err.Error(), tt.reason) {
				t.Errorf("text: %v, want close 4000, %s", text.err, tt.reason)
			}
			if name, m := events(); name != wire.TypeGreeting {
				t.Errorf("events: %s %+v, want the greeting", name, m)
			}
			if name, m := events(); name != wire.TypeGap || m != gap {
				t.Errorf("events: %s %+v, want %+v", name, m, gap)
			}
			if name, m := events(); name != "" || m != first {
				t.Errorf("events: %s %+v, want %+v", name, m, first)
			}
			out, said := s.revq(t, "listen", "--url", "ws://"+s.socketSite, "--after", tt.after, "--count", "1")
			if want := "revq: results are missing here: " + gap.Text + "\n"; said != want || out != wire.Greeting+"\n"+first.Text+"\n" {
				t.Errorf("revq listen printed %q and said %q, want %q", out, said, want)
			}
			// Most of the results are in messages of the same size, of which
			// the broker keeps an eighth.
			if first.Offset < newest/2 || first.Offset > newest {
				t.Errorf("results came from %d on, want what the broker keeps up to %d", first.Offset, newest)
			}
		})
	}

	t.Run("re-created", func(t *testing.T) {
		json, text, events := s.listenAfter(t, "json", ""), s.listenAfter(t, "text", ""), s.events(t, "")
		events() // the greeting
		ctx := await.Context(t)
		if _, err := s.node.Ctl(ctx, "delete_queue", "-p", s.vhost, "revq.results"); err != nil {
			t.Fatal(err)
		}
		await.True(t, "the publisher has declared the stream again", func() bool { return <-publish("the first") == nil })
		gap, first := parse(t, json.next(t)), parse(t, json.next(t))
		if gap.Type != wire.TypeGap || gap.Offset < newest || first.Type != wire.TypeResult {
			t.Errorf("JSON: %+v and %+v, want a gap and the new result", gap, first)
		}
		if code := text.closeCode(t); code != wire.CloseGap {
			t.Errorf("text: %v, want close 4000", text.err)
		}
		if name, m := events(); name != wire.TypeGap || m != gap {
			t.Errorf("events: %s %+v, want %+v", name, m, gap)
		}
		// Offsets from before say nothing any more.
		again := s.listenAfter(t, "json", fmt.Sprintf("%d/%s", newest, id))
		if m := parse(t, again.next(t)); m.Type != wire.TypeGap {
			t.Errorf("resumed after a result of the old stream with %+v, want a gap", m)
		}
	})
}

// A stream that was re-created while the server was down is another one for those
// who resume, whether it has fewer results than before or has grown past them.
func TestReCreatedWhileTheServerWasDown(t *testing.T) {
	t.Parallel()
	for name, results := range map[string]int{"shorter": 1, "grown past it": 8} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := prepare(t, rabbittest.Shared(t))
			publish := s.publisher(t)
			publishAll := func(n int) {
				for i := range n {
					if err := <-publish(fmt.Sprint("text ", i)); err != nil {
						t.Fatal(err)
					}
				}
			}
			start := func() {
				s.socket = s.startDaemon(t, "revq-socket", s.socketSockets)
				s.socket.WaitReady(t)
			}
			start()
			live := s.listen(t, "json")
			const before = 4
			publishAll(before)
			var last wire.Message
			for range before {
				last = live.nextResult(t)
			}
			s.socket.Terminate(t)
			if _, err := s.node.Ctl(await.Context(t), "delete_queue", "-p", s.vhost, rabbit.ResultsQueue); err != nil {
				t.Fatal(err)
			}
			await.True(t, "the publisher has declared the stream again", func() bool { return <-publish("the first") == nil })
			publishAll(results - 1)
			start()
			resumed := s.listenAfter(t, "json", wire.Mark{Offset: last.Offset, ID: last.ID}.String())
			if gap := parse(t, resumed.next(t)); gap.Type != wire.TypeGap || !strings.Contains(gap.Text, "re-created") {
				t.Errorf("resumed with %+v, want a gap: re-created", gap)
			}
			for range results {
				resumed.nextResult(t)
			}
		})
	}
}

// Who was greeted and is cut off before anything has come gets all that comes
// meanwhile, whatever the state of the stream and of the broker at the
// greeting.
func TestEveryGreetingIsAMark(t *testing.T) {
	t.Parallel()
	check := func(t *testing.T, s *system, greetedAs map[string]string) {
		publish := s.publisher(t)
		var want []string
		for i := range 3 {
			want = append(want, fmt.Sprint("text ", i))
			if err := <-publish(want[i]); err != nil {
				t.Fatal(err)
			}
		}
		for format, mark := range greetedAs {
			resumed := s.listenAfter(t, "json", mark)
			for _, text := range want {
				if got := resumed.nextResult(t); got.Text != text {
					t.Errorf("%s: resumed after %s with %+v, want %q", format, mark, got, text)
				}
			}
		}
	}
	greetings := func(t *testing.T, s *system) map[string]string {
		events, json := s.events(t, ""), s.connect(t, "json", "")
		name, m := events()
		if name != wire.TypeGreeting {
			t.Errorf("the first event is %s %+v", name, m)
		}
		greeting := parse(t, json.next(t))
		if greeting != m || m.Offset < 0 || m.ID == "" {
			t.Errorf("greeted with %+v and %+v, want the same mark with an id", greeting, m)
		}
		json.conn.Close()
		return map[string]string{"events": wire.Mark{Offset: m.Offset, ID: m.ID}.String(), "JSON": wire.Mark{Offset: greeting.Offset, ID: greeting.ID}.String()}
	}

	t.Run("of an empty stream", func(t *testing.T) {
		t.Parallel()
		s := prepare(t, rabbittest.Shared(t))
		s.socket = s.startDaemon(t, "revq-socket", s.socketSockets)
		s.socket.WaitReady(t)
		check(t, s, greetings(t, s))
	})
	t.Run("of an empty stream, with a restart in between", func(t *testing.T) {
		t.Parallel()
		s := prepare(t, rabbittest.Shared(t))
		s.socket = s.startDaemon(t, "revq-socket", s.socketSockets, "--keep-bytes", fmt.Sprint(1<<20))
		s.socket.WaitReady(t)
		marks := greetings(t, s)
		s.socket.Terminate(t)
		s.socket = s.startDaemon(t, "revq-socket", s.socketSockets)
		s.socket.WaitReady(t)
		check(t, s, marks)
	})
	t.Run("while the broker is away", func(t *testing.T) {
		t.Parallel()
		s := prepare(t, rabbittest.StartNode(t))
		ctx := await.Context(t)
		if err := s.node.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		s.socket = s.startDaemon(t, "revq-socket", s.socketSockets)
		s.socket.WaitReady(t) // it has await.Patience, but not for ever
		marks := make(chan map[string]string, 1)
		go func() { marks <- greetings(t, s) }() // come when it is known where they stand
		rabbittest.Restart(t, s.node)
		check(t, s, await.Value(t, "greetings", marks))
	})
}

// A result that a listener has from the broker is not sent again from what the
// server has read since its start.
func TestRepetitionAfterTheStartOfTheBacklog(t *testing.T) {
	t.Parallel()
	s := prepare(t, rabbittest.Shared(t))
	if err := <-s.publisher(t)("first"); err != nil { // which waits until the stream has begun
		t.Fatal(err)
	}
	publish := s.foreignPublisher(t)
	backlog := feed.DefaultConfig().Backlog
	var rest []string
	for i := range 2*backlog + 1000 {
		id := fmt.Sprintf("filler-%d", i)
		if i == backlog+1000-5 || i == backlog+1000+5 { // what the server reads at its start begins between them
			id = "twice"
		}
		rest = append(rest, id, "text")
	}
	publish("results", rest...)
	s.socket = s.startDaemon(t, "revq-socket", s.socketSockets)
	s.socket.WaitReady(t)
	l := s.listenAfter(t, "json", wire.Mark{Offset: -1}.String())
	publish("results", "last", "last")
	got := 0
	for m := l.nextResult(t); m.ID != "last"; m = l.nextResult(t) {
		if m.ID == "twice" {
			got++
		}
	}
	if got != 1 {
		t.Errorf("got the result %d times, want once", got)
	}
}

// A mark a little ahead of the end, of a stream that was re-created, is told as
// a gap at once, also while results come.
func TestMarkAheadOfTheEnd(t *testing.T) {
	t.Parallel()
	s := prepare(t, rabbittest.Shared(t))
	s.socket = s.startDaemon(t, "revq-socket", s.socketSockets, "--max-resuming", "1")
	s.socket.WaitReady(t)
	publish := s.publisher(t)
	ctx, cancel := context.WithCancel(t.Context())
	var traffic sync.WaitGroup
	traffic.Go(func() {
		for ctx.Err() == nil {
			if err := <-publish("text"); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
			<-time.After(10 * time.Millisecond)
		}
	})
	defer traffic.Wait()
	defer cancel()
	for range 3 { // one after another has the only place
		began := time.Now()
		events := s.events(t, "150000/nowhere")
		events() // the greeting
		if name, m := events(); name != wire.TypeGap {
			t.Errorf("event %s %+v, want a gap", name, m)
		}
		took := time.Since(began)
		t.Logf("told of the gap after %v", took)
		if took > 5*time.Second { // it was never told while results came
			t.Errorf("told of the gap after %v, want 5s at most", took)
		}
		if name, m := events(); name != "" {
			t.Errorf("event %s %+v, want a result", name, m)
		}
	}
}
