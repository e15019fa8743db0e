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

	"github.com/revq/revq/internal/bench/load"
	"github.com/revq/revq/internal/bench/report"
)

// Pipeline posts texts, one in a request, and measures how long they take to a
// listener, and how many get there.
type Pipeline struct {
	API    []*Target
	Socket *Target

	// Rate is how many texts are due in a second, whether or not the system
	// keeps up. 0 posts as many as the system takes, with at most InFlight of
	// them between their POST and their frame.
	Rate     float64
	InFlight int

	Connections int
	TextBytes   int // at least MinPipelineBytes

	Window Window

	// Processes are those whose usage is measured, by name.
	Processes map[string]Processes
}

// A text begins with a token that distinguishes this run's texts from others,
// and a number.
const (
	tokenBytes  = 12
	numberBytes = 12

	// MinPipelineBytes is the minimum length of a text.
	MinPipelineBytes = tokenBytes + numberBytes
)

// drainTimeout is the time limit for results after the last text was posted.
const drainTimeout = 30 * time.Second

var errNoProgress = errors.New("no result came: do workers run, and do the API and the socket server use the same broker?")

// Run measures until the window or ctx ends. If ctx ends first, it returns what
// was measured so far and the error.
func (p *Pipeline) Run(ctx context.Context, progress func(done float64)) (*report.PipelineResult, error) {
	loop, err := load.NewLoop()
	if err != nil {
		return nil, err
	}
	defer loop.Close()
	run := &pipelineRun{
		Pipeline: p, loop: loop, token: rand.Text()[:tokenBytes],
		latency: newHistogram(),
		result: &report.PipelineResult{
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

// A pipelineRun is the state of a Pipeline that runs. Durations are since
// began.
type pipelineRun struct {
	*Pipeline
	loop    *load.Loop
	token   string
	began   time.Time
	opened  time.Duration // when the window opened; 0 before
	over    bool          // nothing more is posted
	result  *report.PipelineResult
	latency *histogram

	listener *load.Listener
	posters  []*textPoster
	idle     []*textPoster
	times    *load.Schedule // nil if Rate is 0
	alarm    *load.Alarm

	due      []time.Duration // of each text; -1 when its result has come
	accepted int64
	refused  int64
	arrived  int64
	counted  int64 // results that came in the window
}

// A textPoster posts texts that differ in their number.
type textPoster struct {
	load.Poster
	request []byte
	number  []byte // a part of request
}

func (r *pipelineRun) measure(ctx context.Context, progress func(float64)) error {
	if err := r.connect(ctx); err != nil {
		return err
	}
	r.began = time.Now()
	if r.Rate > 0 {
		r.times = load.NewSchedule(r.began, r.Rate)
	}
	var err error
	if r.alarm, err = r.loop.NewAlarm(r.post); err != nil {
		return err
	}
	if err := r.alarm.Set(1); err != nil {
		return err
	}
	w := r.Window.begin(progress)
	usage := measureUsage(nil)
	err = r.loop.Run(ctx, func() bool {
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
	return r.drain(ctx)
}

// drain waits for the answers and results that are due when the window ends.
func (r *pipelineRun) drain(ctx context.Context) error {
	deadline := time.Now().Add(drainTimeout)
	err := r.loop.Run(ctx, func() bool {
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
	r.listener = &load.Listener{
		Loop: r.loop, Handshake: load.HandshakeRequest(r.Socket.URL), Text: r.received,
		Closed: func(err error) error { return fmt.Errorf("listen: %w", err) },
		Connected: func() error {
			ready = true
			return nil
		},
	}
	if err := r.listener.Connect(r.Socket.Addr, nil); err != nil {
		return err
	}
	begun := false
	deadline := time.Now().Add(connectSilence)
	var err error
	runErr := r.loop.Run(ctx, func() bool {
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
	request := load.AppendRequest(nil, t.URL, load.Text, r.token+number+load.Marked(r.TextBytes-MinPipelineBytes))
	at := bytes.LastIndex(request, []byte(r.token+number)) + tokenBytes
	p := &textPoster{request: request, number: request[at : at+numberBytes]}
	p.Loop, p.Addr = r.loop, t.Addr
	p.Connected = func() error {
		r.idle = append(r.idle, p)
		if r.alarm != nil { // the connection broke, and texts may be due
			return r.post()
		}
		return nil
	}
	p.Answered = func(status int, _ []byte) error {
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
	p.Lost = func(busy bool) error {
		if lost++; lost > maxLost {
			return fmt.Errorf("a connection to %s broke %d times: see its log", t.URL.Host, lost)
		}
		if busy {
			r.refused++ // it may have been accepted
		}
		r.idle = slices.DeleteFunc(r.idle, func(other *textPoster) bool { return other == p })
		return nil
	}
	r.posters = append(r.posters, p)
	return p.Connect()
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
			if due, ok = r.times.Take(now); !ok {
				return r.alarm.Set(time.Until(due))
			}
		}
		p := r.idle[len(r.idle)-1]
		r.idle = r.idle[:len(r.idle)-1]
		putNumber(p.number, len(r.due))
		r.due = append(r.due, due.Sub(r.began))
		if err := p.Post(p.request); err != nil {
			return err
		}
	}
	return nil
}

// received counts a result of this run: one of its texts, reversed.
func (r *pipelineRun) received(payload []byte) error {
	if len(payload) < MinPipelineBytes {
		return nil
	}
	var head [MinPipelineBytes]byte
	for i := range head {
		head[i] = payload[len(payload)-1-i]
	}
	if string(head[:tokenBytes]) != r.token {
		return nil // another client's, or the greeting
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
		r.listener.Close()
	}
	for _, p := range r.posters {
		p.Close()
	}
	if r.alarm != nil {
		r.alarm.Close()
	}
}
