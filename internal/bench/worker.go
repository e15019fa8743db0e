package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/revq/revq/internal/bench/load"
	"github.com/revq/revq/internal/bench/report"
)

// Worker measures workers that do not pause. It needs a private broker.
func (b *Bench) Worker(ctx context.Context) error {
	result, err := b.worker(ctx, b.Tasks, b.Workers)
	if result != nil {
		b.Report.Worker = append(b.Report.Worker, result)
	}
	return err
}

// worker queues tasks and measures how fast workers empty the queue.
func (b *Bench) worker(ctx context.Context, tasks int64, workers int) (result *report.WorkerResult, err error) {
	err = b.with(ctx, Layout{APISites: 1, SocketSites: 1}, func(s *System) error {
		queued, err := b.fill(ctx, s, tasks)
		if err == nil {
			result, err = b.drain(ctx, s, queued, workers)
		}
		return err
	})
	return result, err
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
		Targets: []*Target{t}, Connections: BatchConnections, Kind: load.NDJSON, Batch: 100, TextBytes: b.TextBytes,
		Window: Window{Duration: MaxDuration, Count: n},
	}
	result, err := in.Run(ctx, func(done float64) { b.Progress(fmt.Sprintf("queueing %d tasks", n), done) })
	if result == nil {
		return 0, err
	}
	return result.Total, err
}

// drain has workers handle what is queued, and measures how fast results reach
// a listener, until all have arrived or the window ends.
func (b *Bench) drain(ctx context.Context, s *System, queued int64, workers int) (_ *report.WorkerResult, err error) {
	loop, err := load.NewLoop()
	if err != nil {
		return nil, err
	}
	defer loop.Close()
	r := &resultCounter{loop: loop}
	if err := r.connect(ctx, s.Socket[0]); err != nil {
		return nil, err
	}
	defer r.listener.Close()
	// All workers begin together: several take longer to start than to empty
	// the queue.
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
	n, err := r.count(ctx, w)
	if n == 0 {
		return nil, err
	}
	result := &report.WorkerResult{
		Workers: workers, Concurrency: b.Concurrency, TextBytes: b.TextBytes, Queued: queued,
		Usage: usage.end(), Results: n, Seconds: w.seconds(),
	}
	result.PerSecond = float64(n) / result.Seconds
	return result, err
}

// A resultCounter counts results at a listener.
type resultCounter struct {
	loop     *load.Loop
	listener *load.Listener
	last     time.Time // when the last result arrived; zero before the first
}

// connect connects the listener to the socket server at url.
func (r *resultCounter) connect(ctx context.Context, url string) error {
	target, err := ParseTarget(ctx, url, false, "ws")
	if err != nil {
		return err
	}
	joined := false
	r.listener = &load.Listener{
		Loop: r.loop, Handshake: load.HandshakeRequest(target.URL),
		Closed:    func(err error) error { return err },
		Connected: func() error { joined = true; return nil },
		Received:  func(*load.Listener, int) { r.last = time.Now() },
	}
	if err := r.listener.Connect(target.Addr, nil); err != nil {
		return err
	}
	deadline := time.Now().Add(connectSilence)
	err = r.loop.Run(ctx, func() bool { return joined || time.Now().After(deadline) })
	if err == nil && !joined {
		err = fmt.Errorf("listen: no answer within %v", connectSilence)
	}
	if err != nil {
		r.listener.Close()
	}
	return err
}

// count counts results from the first one on, which is not among them, until w
// ends or nothing comes for drainTimeout.
func (r *resultCounter) count(ctx context.Context, w *window) (int64, error) {
	opened, counted := int64(0), int64(0)
	stalled := false
	err := r.loop.Run(ctx, func() bool {
		stalled = time.Since(laterOf(r.last, w.began)) > drainTimeout
		if r.last.IsZero() || stalled {
			return stalled
		}
		if opened == 0 {
			opened = r.listener.Count()
		}
		counted = r.listener.Count()
		return w.look(r.last, counted)
	})
	if counted <= opened {
		return 0, errors.Join(err, errNoProgress)
	}
	if stalled {
		err = fmt.Errorf("no result came for %v; %d of %d had come", drainTimeout, counted, w.Count)
	}
	return counted - opened, err
}

func laterOf(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (b *Bench) workerEnv() []string {
	env := []string{fmt.Sprintf("REVQ_CONCURRENCY=%d", b.Concurrency), "REVQ_EXEC=" + b.Exec}
	if b.Persistent {
		env = append(env, "REVQ_HANDLER=persistent")
	}
	return env
}
