package bench

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/revq/revq/internal/bench/load"
	"github.com/revq/revq/internal/bench/report"
)

// Ingest posts texts to an API. Each connection posts again as soon as it is
// answered.
type Ingest struct {
	// Targets are the URLs of the API's sites, over which the connections are
	// spread evenly.
	Targets []*Target

	Connections int
	Kind        load.Kind
	Batch       int // texts in a request; 1 unless Kind is NDJSON
	TextBytes   int // length of a text

	Window Window

	// Processes are those whose usage is measured, by name.
	Processes map[string]Processes
}

// maxLost is the number of broken connections that ends a run.
const maxLost = 1000

// answerTimeout is the time limit for the answers that are due when the window
// ends. It is longer than the API's own.
const answerTimeout = 5 * time.Second

// Run measures until the window or ctx ends. If ctx ends first, it returns what
// was measured so far and the error.
func (in *Ingest) Run(ctx context.Context, progress func(done float64)) (*report.IngestResult, error) {
	loop, err := load.NewLoop()
	if err != nil {
		return nil, err
	}
	defer loop.Close()
	r := &ingestRun{
		Ingest: in, loop: loop, latency: newHistogram(), outside: make(map[int]int64),
		result: &report.IngestResult{
			Connections: in.Connections, Sites: len(in.Targets), Kind: string(in.Kind), Batch: in.Batch, TextBytes: in.TextBytes,
			Answers: make(map[int]int64),
		},
	}
	defer r.close()
	r.window = in.Window.begin(progress)
	if err := r.connect(); err != nil {
		return nil, err
	}
	return r.measure(ctx)
}

// An ingestRun is the state of an Ingest that runs.
type ingestRun struct {
	*Ingest
	loop    *load.Loop
	posters []*load.Poster

	window *window
	usage  *usageMeter // nil until the window opens
	over   bool        // the window has ended, and nothing more is posted

	result  *report.IngestResult
	outside map[int]int64 // like result.Answers, of answers before and after the window
	latency *histogram
	busy    int // requests in flight
	lost    int // connections that broke
}

// connect begins to connect all posters.
func (r *ingestRun) connect() error {
	texts := make([]string, r.Batch)
	for i := range texts {
		texts[i] = load.Marked(r.TextBytes)
	}
	for i := range r.Connections {
		target := r.Targets[i%len(r.Targets)]
		p := r.newPoster(target, load.AppendRequest(nil, target.URL, r.Kind, texts...))
		if err := p.Connect(); err != nil {
			return err
		}
		r.posters = append(r.posters, p)
	}
	return nil
}

// newPoster returns a poster that posts request again and again.
func (r *ingestRun) newPoster(target *Target, request []byte) *load.Poster {
	p := &load.Poster{Loop: r.loop, Addr: target.Addr}
	var sent time.Time
	post := func() error {
		if r.over {
			return nil
		}
		r.busy++
		sent = time.Now()
		return p.Post(request)
	}
	p.Connected = post
	p.Answered = func(status int, body []byte) error {
		r.busy--
		counts := r.outside
		if r.counting() {
			r.latency.record(time.Since(sent))
			counts = r.result.Answers
		}
		load.CountStatuses(counts, r.Kind, r.Batch, status, body)
		return post()
	}
	p.Lost = func(busy bool) error {
		if busy {
			r.busy--
		}
		if r.lost++; r.lost > maxLost {
			return fmt.Errorf("%d connections to %s broke: see its log", r.lost, target.URL.Host)
		}
		if busy && r.counting() {
			r.result.Lost += int64(r.Batch)
		}
		return nil
	}
	return p
}

// counting reports whether the window is open.
func (r *ingestRun) counting() bool { return r.window.open && !r.over }

// measure serves the posters until the window ends, and sums up.
func (r *ingestRun) measure(ctx context.Context) (*report.IngestResult, error) {
	result, w := r.result, r.window
	err := r.loop.Run(ctx, func() bool {
		r.over = w.look(time.Now(), result.Answers[http.StatusAccepted])
		if w.open && r.usage == nil {
			r.usage = measureUsage(r.Processes)
		}
		return r.over
	})
	if !w.open {
		return nil, err // nothing was measured
	}
	result.Usage = r.usage.end()
	result.Seconds = w.seconds()
	result.Accepted = result.Answers[http.StatusAccepted]
	result.PerSecond = float64(result.Accepted) / result.Seconds
	result.Latency = r.latency.latency()
	if err == nil { // without all answers, nobody knows how many tasks are queued
		deadline := time.Now().Add(answerTimeout)
		err = r.loop.Run(ctx, func() bool { return r.busy == 0 || time.Now().After(deadline) })
	}
	result.Total = result.Accepted + r.outside[http.StatusAccepted]
	return result, err
}

func (r *ingestRun) close() {
	for _, p := range r.posters {
		p.Close()
	}
}
