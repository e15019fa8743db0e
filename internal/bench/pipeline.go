package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Pipeline posts texts, one a request, and measures how long they take to a listener, and how many get there.
type Pipeline struct {
	API    []*Target
	Socket *Target

	// Rate is how many texts are due a second, whether or not the system keeps up. 0 is for as many as it takes, with
	// InFlight of them on their way.
	Rate     float64
	InFlight int

	Connections int
	TextBytes   int // at least MinPipelineBytes

	Window Window

	Processes map[string]Processes
}

// PipelineResult is what a Pipeline has measured in its window.
type PipelineResult struct {
	Rate        float64 `json:"texts_due_per_second"` // 0 for as many as possible
	InFlight    int     `json:"in_flight,omitempty"`
	Connections int     `json:"connections"`
	TextBytes   int     `json:"text_bytes"`

	Seconds   float64       `json:"seconds"`
	Results   int64         `json:"results"` // that came
	PerSecond float64       `json:"results_per_second"`
	Latency   Latency       `json:"latency"` // from when a text was due to the listener's frame
	Answers   map[int]int64 `json:"answers"` // to all texts, by HTTP status
	Missing   int64         `json:"missing"` // texts accepted whose result did not come
	Repeated  int64         `json:"repeated"`

	Usage map[string]Usage `json:"usage,omitempty"`
}

// A text begins with a token that tells this run's texts from others, and a number.
const (
	tokenBytes  = 12
	numberBytes = 12

	// MinPipelineBytes is the shortest text that can be told from others.
	MinPipelineBytes = tokenBytes + numberBytes
)

// drainTimeout is how long results may be on their way after the last text was posted.
const drainTimeout = 30 * time.Second

var errNoProgress = errors.New("no result came: do workers run, and do the API and the socket server use the same broker?")

// Run measures until the window ends, or ctx: then it returns what was measured so far and the error.
func (p *Pipeline) Run(ctx context.Context, progress func(done float64)) (*PipelineResult, error) {
	l, err := newLoop()
	if err != nil {
		return nil, err
	}
	defer l.close()
	run := &pipelineRun{
		Pipeline: p, loop: l, token: rand.Text()[:tokenBytes],
		latency: newHistogram(),
		result: &PipelineResult{
			Rate: p.Rate, Connections: p.Connections, TextBytes: p.TextBytes, Answers: make(map[int]int64),
		},
	}
	if p.Rate == 0 {
		run.result.InFlight = p.InFlight
	}
	defer run.close()
	err = run.measure(ctx, progress)
	r := run.result
	if r.Latency = run.latency.latency(); r.Latency.Count == 0 {
		return nil, err
	}
	r.Missing = max(run.accepted-run.arrived, 0)
	return r, err
}

// A pipelineRun is a Pipeline under way. Times are since it began.
type pipelineRun struct {
	*Pipeline
	loop    *loop
	token   string
	began   time.Time
	opened  time.Duration // when the window opened; 0 before
	over    bool          // nothing more is posted
	result  *PipelineResult
	latency *histogram

	listener *listener
	posters  []*poster
	idle     []*poster
	times    *schedule // nil if Rate is 0
	alarm    *alarm

	due      []time.Duration // of each text; -1 when its result has come
	accepted int64
	refused  int64
	arrived  int64
	counted  int64 // results that came in the window
}

func (r *pipelineRun) measure(ctx context.Context, progress func(float64)) error {
	if err := r.connect(ctx); err != nil {
		return err
	}
	r.began = time.Now()
	if r.Rate > 0 {
		r.times = newSchedule(r.began, r.Rate)
	}
	var err error
	if r.alarm, err = r.loop.newAlarm(r.post); err != nil {
		return err
	}
	if err := r.alarm.set(1); err != nil {
		return err
	}
	w := r.Window.begin(progress)
	usage := measureUsage(nil)
	err = r.loop.run(ctx, func() bool {
		over := w.look(time.Now(), r.counted)
		if w.open && r.opened == 0 {
			r.opened = w.opened.Sub(r.began)
			usage = measureUsage(r.Processes)
		}
		return over
	})
	r.over = true
	if r.opened == 0 {
		return err
	}
	r.result.Usage = usage.end()
	r.result.Seconds, r.result.Results = w.seconds(), r.counted
	r.result.PerSecond = float64(r.counted) / r.result.Seconds
	if err != nil {
		return err
	}
	deadline := time.Now().Add(drainTimeout)
	err = r.loop.run(ctx, func() bool {
		return len(r.idle) == len(r.posters) && r.arrived >= r.accepted || time.Now().After(deadline)
	})
	if err == nil && r.arrived == 0 {
		err = errNoProgress
	}
	return err
}

// connect opens all connections: the listener first, so that it misses nothing.
func (r *pipelineRun) connect(ctx context.Context) error {
	ready := false
	r.listener = &listener{
		loop: r.loop, handshake: handshakeRequest(r.Socket.URL),
		closed: func(_ *listener, err error) error { return fmt.Errorf("listen: %w", err) },
		connected: func(*listener) error {
			ready = true
			return nil
		},
	}
	r.listener.frames.text = r.received
	if err := r.listener.connect(r.Socket.Addr, nil); err != nil {
		return err
	}
	begun := false
	deadline := time.Now().Add(connectSilence)
	var err error
	runErr := r.loop.run(ctx, func() bool {
		if ready && !begun {
			begun = true
			for i := range r.Connections {
				if err = r.addPoster(r.API[i%len(r.API)]); err != nil {
					return true
				}
			}
		}
		if time.Now().After(deadline) {
			err = fmt.Errorf("connecting took more than %v", connectSilence)
		}
		return err != nil || len(r.idle) == r.Connections
	})
	return errors.Join(runErr, err)
}

func (r *pipelineRun) addPoster(t *Target) error {
	number := strings.Repeat("0", numberBytes)
	request := appendRequest(nil, t.URL, Text, r.token+number+marked(r.TextBytes-MinPipelineBytes))
	at := bytes.LastIndex(request, []byte(r.token+number)) + tokenBytes
	p := &poster{loop: r.loop, addr: t.Addr, request: request, number: request[at : at+numberBytes]}
	p.connected = func(p *poster) error {
		r.idle = append(r.idle, p)
		if r.alarm != nil { // it was lost, and texts may be due
			return r.post()
		}
		return nil
	}
	p.answered = func(p *poster, status int, _ []byte) error {
		r.result.Answers[status]++
		if status == http.StatusAccepted {
			r.accepted++
		} else {
			r.refused++
		}
		r.idle = append(r.idle, p)
		return r.post()
	}
	lost := 0
	p.lost = func(p *poster, busy bool) error {
		if lost++; lost > maxLost {
			return fmt.Errorf("connections to %s are lost again and again: see its log", t.URL.Host)
		}
		if busy {
			r.refused++ // it may come all the same
		}
		r.idle = slices.DeleteFunc(r.idle, func(other *poster) bool { return other == p })
		return nil
	}
	r.posters = append(r.posters, p)
	return p.connect()
}

// post posts what is due over the connections that are idle.
func (r *pipelineRun) post() error {
	for !r.over && len(r.idle) > 0 {
		now := time.Now()
		due := now
		if r.times == nil {
			if int64(len(r.due))-r.arrived-r.refused >= int64(r.InFlight) {
				return nil
			}
		} else {
			var ok bool
			if due, ok = r.times.take(now); !ok {
				return r.alarm.set(time.Until(due))
			}
		}
		p := r.idle[len(r.idle)-1]
		r.idle = r.idle[:len(r.idle)-1]
		putNumber(p.number, len(r.due))
		r.due = append(r.due, due.Sub(r.began))
		if err := p.post(p.request); err != nil {
			return err
		}
	}
	return nil
}

// received takes in a result: a text of ours, reversed.
func (r *pipelineRun) received(payload []byte) error {
	if len(payload) < MinPipelineBytes {
		return nil
	}
	var head [MinPipelineBytes]byte
	for i := range head {
		head[i] = payload[len(payload)-1-i]
	}
	if string(head[:tokenBytes]) != r.token {
		return nil // someone else's, or the greeting
	}
	n, err := strconv.Atoi(string(head[tokenBytes:]))
	if err != nil || n >= len(r.due) {
		return nil
	}
	if r.due[n] < 0 {
		r.result.Repeated++
		return nil
	}
	due := r.due[n]
	r.due[n] = -1
	r.arrived++
	if r.opened > 0 && !r.over {
		r.counted++
	}
	if r.opened > 0 && due >= r.opened {
		r.latency.record(time.Since(r.began) - due)
	}
	if r.times == nil {
		return r.post()
	}
	return nil
}

// putNumber writes n in decimal digits that fill dst.
func putNumber(dst []byte, n int) {
	for i := len(dst) - 1; i >= 0; i-- {
		dst[i] = byte('0' + n%10)
		n /= 10
	}
}

func (r *pipelineRun) close() {
	if r.listener != nil {
		r.listener.close()
	}
	for _, p := range r.posters {
		p.close()
	}
	if r.alarm != nil {
		r.alarm.close()
	}
}
