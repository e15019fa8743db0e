//go:build linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/client"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/reverse"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

func reversed(text string) string { return reverse.Reverse(text) }

// posters are clients that post without end. Half of them are Senders, which
// repeat what was not accepted under the same id; the others take another text,
// and count for accepted what was answered with 202.
type posters struct {
	r           *trial
	cancel      context.CancelFunc
	running     sync.WaitGroup
	refusedFull atomic.Int64 // because of a full queue

	mu              sync.Mutex
	accepted        map[string]posting // by id
	impossible      []string           // accepted though the broker was away
	longest         time.Duration
	longestOf       string
	refused, broken int
}

// faultPostPause is a trial's postPause with which the queue is filled within
// seconds and emptied in less. programPause is the same for texts that programs
// handle, each in a process that does little else.
const (
	faultPostPause = 40 * time.Millisecond
	programPause   = 400 * time.Millisecond
)

func (r *trial) startPosters() *posters {
	ctx, cancel := context.WithCancel(context.Background())
	p := &posters{r: r, cancel: cancel, accepted: make(map[string]posting)}
	clients := 6
	if len(r.handlers) > 0 {
		clients = 10 // the last four post to the programs
	}
	for i := range clients {
		api, queue, pause := r.apis[i/2%2], wire.DefaultQueue, r.postPause
		if i >= 6 {
			queue, pause = []string{filterQueue, persistentQueue}[i/2%2], programPause
		}
		http := &http.Client{Transport: &witness{http.Transport{}, p, api}, Timeout: await.Patience}
		name := fmt.Sprintf("poster-%d", i)
		post := func(number int) { p.postPlainly(http, api.site, queue, name, number) }
		if i%2 == 0 {
			sender := &client.Sender{URL: "http://" + api.site, Queue: queue, Timeout: 2 * time.Minute, HTTP: http}
			post = func(number int) { p.send(ctx, sender, name, number) }
		}
		p.running.Go(func() {
			defer http.CloseIdleConnections()
			for number := 0; ctx.Err() == nil; number++ {
				post(number)
				<-time.After(rand.N(pause))
			}
		})
	}
	r.t.Cleanup(p.stop)
	return p
}

// stop ends the posts. What was accepted then stays as it is.
func (p *posters) stop() {
	p.cancel()
	p.running.Wait()
}

func (p *posters) accept(id string, what posting) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.accepted[id] = what
}

// send sends one task or a few.
func (p *posters) send(ctx context.Context, sender *client.Sender, name string, number int) {
	limit := 12
	if sender.Queue != wire.DefaultQueue {
		limit = 3
		sender.Delay = time.Duration(rand.N(2)) * time.Second
	}
	tasks := make([]task.Task, 1+rand.N(limit))
	for i := range tasks {
		id := fmt.Sprintf("%s-%d-%d", name, number, i)
		tasks[i] = task.Task{ID: id, Text: textOf(sender.Queue, id)}
	}
	answers, err := sender.Send(ctx, tasks)
	for i, answer := range answers {
		if answer == nil {
			p.accept(tasks[i].ID, posting{sender.Queue, tasks[i].Text, time.Now()})
		} else if ctx.Err() == nil {
			p.r.t.Errorf("%s was not accepted within %v: %v (%v)", tasks[i].ID, sender.Timeout, answer, err)
		}
	}
}

// postPlainly posts one text, once. The API makes an id up for every other one.
func (p *posters) postPlainly(http *http.Client, site, queue, name string, number int) {
	text := textOf(queue, fmt.Sprintf("%s-%d", name, number))
	contentType, body := "text/plain", text
	if number%2 == 0 {
		contentType, body = "application/json", submission(fmt.Sprintf("%s-%d", name, number), text)
	}
	res, err := http.Post("http://"+site+wire.QueuePrefix+queue, contentType, strings.NewReader(body))
	if err != nil {
		return
	}
	res.Body.Close()
	if res.StatusCode == 202 {
		p.accept(res.Header.Get(wire.TaskIDHeader), posting{queue, text, time.Now()})
	}
}

// A witness watches all requests to one site of the API.
type witness struct {
	http.Transport
	p   *posters
	api *unit
}

func (w *witness) RoundTrip(req *http.Request) (*http.Response, error) {
	began := time.Now()
	res, err := w.Transport.RoundTrip(req)
	var body []byte
	if err == nil {
		body, err = io.ReadAll(res.Body)
		res.Body.Close()
	}
	accepted := err == nil && (res.StatusCode == http.StatusAccepted || bytes.Contains(body, []byte(`"status":202`)))
	if accepted && w.p.r.brokerAway.allSince(began) {
		w.p.mu.Lock()
		w.p.impossible = append(w.p.impossible, fmt.Sprintf("%s: POST at %v, answered after %v", body, began, time.Since(began)))
		w.p.mu.Unlock()
	}
	if accepted {
		w.api.accepted.beat()
	}
	now := time.Now()
	took := now.Sub(began) - w.api.away.within(began, now)
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	if took > w.p.longest {
		w.p.longest = took
		w.p.longestOf = fmt.Sprintf("to %s at %s, %v with the time for which the API was away: %s %v",
			w.api.site, began.UTC().Format("15:04:05.000"), now.Sub(began), body, err)
	}
	if err != nil {
		w.p.broken++
		return nil, err
	}
	if !accepted {
		w.p.refused++
	}
	if bytes.Contains(body, []byte(rabbit.ErrRefused.Error())) {
		w.p.refusedFull.Add(1)
	}
	res.Body = io.NopCloser(bytes.NewReader(body))
	return res, nil
}

// A follower keeps all that a listener gets. With each new connection it goes
// to the other site.
type follower struct {
	name   string
	queues []string // that it listens to; none for all

	mu          sync.Mutex
	heard       rhythm                  // of the results
	got         map[string]wire.Message // by id
	failed      map[string]int          // how often each task was given up
	again       []wire.Message          // results that had come before
	twice, late int                     // how many of them a server should have known, and could not know
	gaps        []string
	connections int
	events      []string
	err         error // for which the listener has ended
}

// follow starts listener i, and waits until it has been greeted.
func (r *trial) follow(i int, queues ...string) *follower {
	f := &follower{
		name: fmt.Sprintf("listener %d", i), queues: queues, got: make(map[string]wire.Message), failed: make(map[string]int),
	}
	var urls []string
	for n := range r.sockets {
		urls = append(urls, "ws://"+r.sockets[(i+n)%len(r.sockets)].site)
	}
	greeted := make(chan struct{})
	isGreeted := sync.OnceFunc(func() { close(greeted) })
	l := &client.Listener{
		URLs:    urls,
		After:   &wire.Mark{Offset: -1}, // from the beginning: it may be cut off before the first result
		Silence: 4 * time.Second,        // four pings
		Queues:  queues,
	}
	l.Greeted = func(client.Message) error {
		isGreeted()
		f.mu.Lock()
		defer f.mu.Unlock()
		f.connections++
		f.event("greeted by %s after %v", l.URL(), l.After)
		return nil
	}
	l.Received = func(m client.Message) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.receive(m.Message)
		return nil
	}
	l.Lost = func(reason error, wait time.Duration) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.event("lost %s after %v: %v", l.URL(), l.After, reason)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := l.Run(ctx); !errors.Is(err, context.Canceled) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.err = err
		}
	}()
	r.t.Cleanup(func() {
		cancel()
		<-ended
	})
	select {
	case <-greeted:
	case <-time.After(await.Patience):
		r.t.Fatalf("%s was not greeted within %v", f.name, await.Patience)
	}
	return f
}

func (f *follower) event(format string, args ...any) {
	f.events = append(f.events, time.Now().UTC().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

func (f *follower) receive(m wire.Message) {
	switch m.Type {
	case wire.TypeFailed:
		f.failed[m.ID]++
		f.event("%s failed at %d", m.ID, m.Offset)
		return
	case wire.TypeResult:
	case wire.TypeMark:
		return // a place between results that are not for it
	default:
		f.gaps = append(f.gaps, m.Text)
		f.event("told of a gap after %d: %s", m.Offset, m.Text)
		return
	}
	if before, ok := f.got[m.ID]; ok {
		f.again = append(f.again, m)
		f.event("%s again at %d, after %d", m.ID, m.Offset, before.Offset)
		return
	}
	f.got[m.ID] = m
	f.heard.beat()
}

func (f *follower) has(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.got[id]
	return ok
}

// wants reports whether what becomes of a text is told to this listener.
func (f *follower) wants(p posting) bool {
	return len(f.queues) == 0 || slices.Contains(f.queues, p.queue)
}

// missing returns the ids that it has not got, neither their results nor that
// they were given up. Those of a listener that was told of a gap are not
// counted.
func (f *follower) missing(accepted map[string]posting) (ids []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.gaps) > 0 {
		return nil
	}
	for id, p := range accepted {
		if _, ok := f.got[id]; !ok && f.wants(p) && (p.result() != "" || f.failed[id] == 0) {
			ids = append(ids, id)
		}
	}
	return ids
}

// An ending is what the stream says of a task: its result, or that it is given
// up.
type ending struct {
	offset int64
	kind   task.Kind
	of     task.Digest
}

// endings returns what is in the stream of each task, as of now, in its order.
func (r *trial) endings(ctx context.Context) (map[string][]ending, error) {
	all := make(map[string][]ending)
	end := errors.New("the end")
	err := rabbit.NewReader(r.brokerConfig(), 0, slog.New(slog.DiscardHandler)).History(ctx, 0, 0, func(offset int64, result task.Result) error {
		all[result.ID] = append(all[result.ID], ending{offset, result.Kind, result.Of})
		if result.ID == "the-end" {
			return end
		}
		return nil
	}, func(int64, string) error { return nil }, func() error { return end })
	if !errors.Is(err, end) {
		return all, err
	}
	return all, nil
}

// resultsBetween returns how many results the stream has between two offsets.
func resultsBetween(endings map[string][]ending, from, to int64) (n int) {
	for _, all := range endings {
		for _, e := range all {
			if e.kind == task.Done && from < e.offset && e.offset < to {
				n++
			}
		}
	}
	return n
}

// timesGivenUp returns how often the stream says that a task is given up, and
// how often listeners are told. They are not once they have the result: a worker
// that is lost may have published it.
func timesGivenUp(endings []ending) (stored, told int) {
	seen := make(map[task.Digest]bool)
	done := false
	for _, e := range endings {
		switch {
		case e.kind == task.Done:
			done = true
		case e.kind == task.GivenUp && !seen[e.of]:
			seen[e.of] = true
			stored++
			if !done {
				told++
			}
		}
	}
	return stored, told
}
