package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// WorkerResult is how fast workers were on a queue that was full when they came.
type WorkerResult struct {
	Workers     int `json:"workers"`
	Concurrency int `json:"concurrency"` // tasks in hand at once, of each
	TextBytes   int `json:"text_bytes"`

	Queued    int64   `json:"queued"` // when they came; some are done before all are ready
	Seconds   float64 `json:"seconds"`
	Results   int64   `json:"results"` // that reached a listener, from the first one on
	PerSecond float64 `json:"results_per_second"`

	Usage map[string]Usage `json:"usage,omitempty"`
}

// fill queues n tasks in batches and returns how many were accepted.
func (b *Bench) fill(ctx context.Context, s *System, n int64) (int64, error) {
	if n == 0 {
		return 0, nil
	}
	t, err := ParseTarget(ctx, s.API[0], false, "http")
	if err != nil {
		return 0, err
	}
	in := Ingest{
		Targets: []*Target{t}, Connections: BatchConnections, Kind: NDJSON, Batch: 100, TextBytes: b.TextBytes,
		Window: Window{Duration: MaxDuration, Count: n},
	}
	result, err := in.Run(ctx, func(done float64) { b.Progress(fmt.Sprintf("queueing %d tasks", n), done) })
	if result == nil {
		return 0, err
	}
	return result.total, err
}

// drain has workers handle what is queued and measures how fast results come to a listener, until all have come or the
// window ends.
func (b *Bench) drain(ctx context.Context, s *System, queued int64, workers int) (_ *WorkerResult, err error) {
	target, err := ParseTarget(ctx, s.Socket[0], false, "ws")
	if err != nil {
		return nil, err
	}
	l, err := newLoop()
	if err != nil {
		return nil, err
	}
	defer l.close()
	result := &WorkerResult{Workers: workers, Concurrency: b.Concurrency, TextBytes: b.TextBytes, Queued: queued}
	var first, last time.Time
	joined := false
	listener := &listener{
		loop: l, handshake: handshakeRequest(target.URL), frames: frameReader{marker: marker},
		closed:    func(_ *listener, err error) error { return err },
		connected: func(*listener) error { joined = true; return nil },
		received: func(*listener, int) {
			if last = time.Now(); first.IsZero() {
				first = last
			}
		},
	}
	if err := listener.connect(target.Addr, nil); err != nil {
		return nil, err
	}
	defer listener.close()
	deadline := time.Now().Add(connectSilence)
	if err := l.run(ctx, func() bool { return joined || time.Now().After(deadline) }); err != nil {
		return nil, err
	}
	if !joined {
		return nil, fmt.Errorf("listen: no answer within %v", connectSilence)
	}
	// All go on together: several take longer to start than to empty the queue.
	ws, err := b.rig.Start(ctx, Layout{Workers: workers, Env: b.workerEnv(), Keep: true, Hold: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ws.Stop()) }()
	usage := measureUsage(map[string]Processes{
		"broker": b.rig.Broker(), "worker": ws.Processes("worker"), "socket": s.Processes("socket"), "load": Self(),
	})
	ws.Resume()
	w := Window{Duration: b.Duration, Count: queued}.begin(func(done float64) { b.Progress(fmt.Sprintf("%d workers", workers), done) })
	counted, opened := int64(0), int64(0)
	stalled := false
	err = l.run(ctx, func() bool {
		stalled = time.Since(laterOf(last, w.began)) > drainTimeout
		if first.IsZero() || stalled {
			return stalled
		}
		if opened == 0 {
			opened = listener.count
		}
		counted = listener.count
		return w.look(last, counted)
	})
	if counted <= opened {
		return nil, errors.Join(err, errNoProgress)
	}
	if stalled {
		err = fmt.Errorf("no result came for %v; %d of %d had come", drainTimeout, counted, queued)
	}
	result.Usage = usage.end()
	result.Results = counted - opened
	result.Seconds = w.seconds()
	result.PerSecond = float64(result.Results) / result.Seconds
	return result, err
}

func laterOf(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (b *Bench) workerEnv() []string {
	return []string{fmt.Sprintf("REVQ_CONCURRENCY=%d", b.Concurrency)}
}

// Worker measures workers that do not pause. It needs a private broker.
func (b *Bench) Worker(ctx context.Context) error {
	result, err := b.worker(ctx, b.Tasks, b.Workers)
	if result != nil {
		b.Report.Worker = append(b.Report.Worker, result)
	}
	return err
}

func (b *Bench) worker(ctx context.Context, tasks int64, workers int) (_ *WorkerResult, err error) {
	s, err := b.rig.Start(ctx, Layout{APISites: 1, SocketSites: 1})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	queued, err := b.fill(ctx, s, tasks)
	if err != nil {
		return nil, err
	}
	return b.drain(ctx, s, queued, workers)
}

// StartResult is how long a daemon takes until it is ready, with the broker up, and how large its program is.
type StartResult struct {
	Daemon   string         `json:"daemon"`
	Ready    []Milliseconds `json:"ready_after_ms"` // from its fork to READY, of each start
	Bytes    int64          `json:"binary_bytes"`
	Resident int64          `json:"resident_bytes"` // once ready
}

// Start measures how long the daemons take to start, each start of all with everything else.
func (b *Bench) Start(ctx context.Context) error {
	const times = 5
	results := []*StartResult{{Daemon: "api"}, {Daemon: "socket"}, {Daemon: "worker"}}
	for i := range times {
		b.Progress("starting daemons", float64(i)/times)
		for _, r := range results {
			layout := Layout{Keep: i > 0}
			switch r.Daemon { // alone, as on a machine that does nothing else
			case "api":
				layout.APISites = 1
			case "socket":
				layout.SocketSites = 1
			case "worker":
				layout.Workers = 1
			}
			s, err := b.rig.Start(ctx, layout)
			if err != nil {
				return err
			}
			for _, start := range s.Starts() {
				r.Ready = append(r.Ready, start.Took)
				ps := Processes{start.pid}
				r.Resident = ps.resident()
				if info, err := os.Stat(filepath.Join("/proc", fmt.Sprint(start.pid), "exe")); err == nil {
					r.Bytes = info.Size()
				}
			}
			if err := s.Stop(); err != nil {
				return err
			}
		}
	}
	b.Report.Start = append(b.Report.Start, results...)
	return nil
}
