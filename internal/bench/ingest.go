package bench

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// Ingest posts texts to an API over connections that each post again as soon as they are answered.
type Ingest struct {
	// Targets are the URLs of the API's sites; connections are dealt out to them.
	Targets []*Target

	Connections int
	Kind        Kind
	Batch       int // texts in a request; 1 unless Kind is NDJSON
	TextBytes   int // length of a text

	Window Window

	// Processes are those that are measured as well, by name.
	Processes map[string]Processes
}

// A Window is when is counted.
type Window struct {
	Warmup   time.Duration // before that
	Duration time.Duration
	Count    int64 // ends it early, when so much has been counted; 0 for no end
}

// IngestResult is what an Ingest has measured. Rates and counts are of texts, and of the time after the warm-up.
type IngestResult struct {
	Connections int  `json:"connections"`
	Sites       int  `json:"sites"`
	Kind        Kind `json:"kind"`
	Batch       int  `json:"batch"`
	TextBytes   int  `json:"text_bytes"`

	Depth int64 `json:"depth,omitempty"` // tasks in the queue at first, where that is what is measured

	Seconds   float64       `json:"seconds"`
	Answers   map[int]int64 `json:"answers"`  // texts by HTTP status; 0 is an answer that says nothing of a text
	Lost      int64         `json:"lost"`     // texts of requests whose connection broke
	Accepted  int64         `json:"accepted"` // texts answered 202
	PerSecond float64       `json:"accepted_per_second"`
	Latency   Latency       `json:"latency"` // of requests, each from its sending to its answer

	Usage map[string]Usage `json:"usage,omitempty"` // by process

	total int64 // texts accepted, also outside of the window
}

// maxLost ends a run whose connections break again and again.
const maxLost = 1000

// answerTimeout is how long answers may take that are due when the window ends: longer than the API's own limit.
const answerTimeout = 5 * time.Second

// Run measures until the window ends, or ctx: then it returns what was measured so far and the error.
func (in *Ingest) Run(ctx context.Context, progress func(done float64)) (*IngestResult, error) {
	l, err := newLoop()
	if err != nil {
		return nil, err
	}
	defer l.close()
	result := &IngestResult{
		Connections: in.Connections, Sites: len(in.Targets), Kind: in.Kind, Batch: in.Batch, TextBytes: in.TextBytes,
		Answers: make(map[int]int64),
	}
	texts := make([]string, in.Batch)
	for i := range texts {
		texts[i] = marked(in.TextBytes)
	}
	outside := make(map[int]int64) // like Answers, of what came before and after
	latency := newHistogram()
	w := in.Window.begin(progress)
	var lost int64
	busy, over := 0, false
	posters := make([]*poster, in.Connections)
	defer func() {
		for _, p := range posters {
			if p != nil {
				p.close()
			}
		}
	}()
	for i := range posters {
		target := in.Targets[i%len(in.Targets)]
		request := appendRequest(nil, target.URL, in.Kind, texts...)
		post := func(p *poster) error {
			if over {
				return nil
			}
			busy++
			p.due = time.Now()
			return p.post(request)
		}
		p := &poster{
			loop: l, addr: target.Addr, connected: post,
			answered: func(p *poster, status int, body []byte) error {
				busy--
				counts := outside
				if w.open && !over {
					latency.record(time.Since(p.due))
					counts = result.Answers
				}
				countStatuses(counts, in.Kind, in.Batch, status, body)
				return post(p)
			},
			lost: func(_ *poster, wasBusy bool) error {
				if wasBusy {
					busy--
				}
				if lost++; lost > maxLost {
					return fmt.Errorf("%d connections to %s were lost: see its log", lost, target.URL.Host)
				}
				if wasBusy && w.open && !over {
					result.Lost += int64(in.Batch)
				}
				return nil
			},
		}
		if err := p.connect(); err != nil {
			return nil, err
		}
		posters[i] = p
	}
	var usage *usageMeter
	err = l.run(ctx, func() bool {
		over = w.look(time.Now(), result.Answers[http.StatusAccepted])
		if w.open && usage == nil {
			usage = measureUsage(in.Processes)
		}
		return over
	})
	if !w.open {
		return nil, err // nothing was measured
	}
	result.Usage = usage.end()
	result.Seconds = w.seconds()
	result.Accepted = result.Answers[http.StatusAccepted]
	result.PerSecond = float64(result.Accepted) / result.Seconds
	result.Latency = latency.latency()
	if err == nil { // nobody is left without an answer, who could then not tell what is queued
		deadline := time.Now().Add(answerTimeout)
		err = l.run(ctx, func() bool { return busy == 0 || time.Now().After(deadline) })
	}
	result.total = result.Accepted + outside[http.StatusAccepted]
	return result, err
}

// A window is a Window under way.
type window struct {
	Window
	progress func(float64)
	began    time.Time // of the warm-up
	opened   time.Time
	open     bool
	looked   time.Time
	shown    time.Time
}

// showEvery is how often progress is told.
const showEvery = 100 * time.Millisecond

func (w Window) begin(progress func(float64)) *window {
	return &window{Window: w, progress: progress, began: time.Now()}
}

// look opens the window when the warm-up is over and returns whether it has ended; counted is what was counted in it.
func (w *window) look(now time.Time, counted int64) (over bool) {
	if !w.open {
		if now.Sub(w.began) < w.Warmup {
			return false
		}
		w.open, w.opened = true, now
	}
	w.looked = now
	if w.progress != nil && now.Sub(w.shown) >= showEvery {
		w.shown = now
		done := float64(now.Sub(w.opened)) / float64(w.Duration)
		if w.Count > 0 {
			done = max(done, float64(counted)/float64(w.Count))
		}
		w.progress(min(done, 1))
	}
	return now.Sub(w.opened) >= w.Duration || w.Count > 0 && counted >= w.Count
}

// seconds returns how long the window was open, up to the last look.
func (w *window) seconds() float64 { return max(w.looked.Sub(w.opened).Seconds(), 1e-9) }
