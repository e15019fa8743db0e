package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/bench/load"
	"github.com/revq/revq/internal/bench/report"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/rabbit/node"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/stack/stacktest"
)

func TestMain(m *testing.M) { os.Exit(stacktest.Main(m)) }

// setup returns a Bench with a private broker, which ends with the test.
func setup(t *testing.T) *Bench {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a broker")
	}
	if _, err := node.Find(); err != nil && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	stacktest.Programs(t)
	b := &Bench{Config: DefaultConfig(), Progress: func(what string, done float64) {
		if done < 0 || done > 1 {
			t.Errorf("%s: %v is done", what, done)
		}
	}}
	b.Up, b.Duration, b.Warmup, b.Settle = true, 300*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	if err := b.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// awaitQueued waits until the broker has n tasks: its counts are late.
func awaitQueued(t *testing.T, b *Bench, n int64) {
	t.Helper()
	broker, err := dialBroker(t.Context(), b.AMQP, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer broker.close()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(10 * time.Second); ; <-ticker.C {
		q, err := broker.ch.QueueDeclarePassive(rabbit.TasksQueue, true, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		if int64(q.Messages) == n {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("the broker has %d tasks, want %d", q.Messages, n)
			return
		}
	}
}

// awaitStopped waits until all processes are stopped by a signal or, if want is
// false, until none is.
func awaitStopped(t *testing.T, processes Processes, want bool) {
	t.Helper()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(10 * time.Second); ; <-ticker.C {
		right := 0
		for _, pid := range processes {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err != nil {
				t.Fatal(err)
			}
			state := stat[bytes.LastIndexByte(stat, ')')+2]
			if (state == 'T') == want {
				right++
			}
		}
		if right == len(processes) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d processes are stopped or not as they should be", right, len(processes))
		}
	}
}

// TestMeasurements runs each measurement and compares its report with what the
// broker, the listeners and the clock say.
func TestMeasurements(t *testing.T) {
	b := setup(t)
	b.Duration, b.Count = time.Minute, 200 // the count ends a measurement, however busy the machine is
	t.Run("raw", func(t *testing.T) {
		if err := b.Raw(t.Context()); err != nil {
			t.Fatal(err)
		}
		var what []string
		for _, r := range b.Report.Raw {
			what = append(what, r.What)
			if r.Messages == 0 || r.Seconds <= 0 || r.PerSecond <= 0 {
				t.Errorf("%+v", r)
			}
		}
		if got, want := strings.Join(what, "; "), strings.Join([]string{report.RawPublish, report.RawConsume, report.RawStreamPublish, report.RawStreamConsume}, "; "); got != want {
			t.Errorf("measured %s; want %s", got, want)
		}
		out, err := rabbittest.Of(t, b.rig.node).Ctl(t.Context(), "-q", "list_queues", "name")
		if err != nil || strings.Contains(out, "revq.bench") {
			t.Errorf("its queues were left: %q, %v", out, err)
		}
	})
	for _, kind := range load.Kinds {
		t.Run("ingest "+string(kind), func(t *testing.T) {
			b.Kind, b.Warmup = kind, 0 // so that all that is accepted counts
			b.Connections, b.Batch = 8, 10
			if err := b.Ingest(t.Context()); err != nil {
				t.Fatal(err)
			}
			r := b.Report.Ingest[len(b.Report.Ingest)-1]
			if r.Accepted == 0 || len(r.Answers) != 1 || r.Answers[http.StatusAccepted] != r.Accepted || r.Lost != 0 {
				t.Errorf("%+v", r)
			}
			if r.Total < r.Accepted {
				t.Errorf("%d accepted in all, and %d in the window", r.Total, r.Accepted)
			}
			awaitQueued(t, b, r.Total)
			if r.Usage["api"].Resident == 0 || r.Usage["broker"].CPU == 0 {
				t.Errorf("usage: %+v", r.Usage)
			}
		})
	}
	t.Run("worker", func(t *testing.T) {
		b.Tasks, b.Count = 2000, 0 // to its end
		if err := b.Worker(t.Context()); err != nil {
			t.Fatal(err)
		}
		r := b.Report.Worker[0]
		if r.Queued < 2000 || r.Results == 0 || r.Results >= r.Queued || r.Usage["worker"].Resident == 0 {
			t.Errorf("%+v", r)
		}
		awaitQueued(t, b, 0)
	})
	t.Run("held workers", func(t *testing.T) {
		for _, resume := range []bool{true, false} { // Stop resumes them, too
			system, err := b.rig.Start(t.Context(), Layout{Workers: 2, Hold: true})
			if err != nil {
				t.Fatal(err)
			}
			workers := system.Processes("worker")
			awaitStopped(t, workers, true)
			if resume {
				system.Resume()
				awaitStopped(t, workers, false)
			}
			if err := system.Stop(); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("pipeline", func(t *testing.T) {
		b.Duration, b.Warmup = time.Second, 100*time.Millisecond
		if err := b.pipelines(t.Context(), 200, 0, -0.5); err != nil {
			t.Fatal(err)
		}
		for _, r := range b.Report.Pipeline {
			if r.Missing != 0 || r.Repeated != 0 || r.Results == 0 || len(r.Answers) != 1 {
				t.Errorf("%+v", r)
			}
		}
		r := b.Report.Pipeline[0]
		// On a busy machine, it measures for longer than asked, and posts the
		// last texts too late for the window.
		if due := int64(200*r.Seconds) + 1; r.Latency.Count > due || r.Latency.Count < due/2 {
			t.Errorf("at 200 a second, %d latencies in %v seconds", r.Latency.Count, r.Seconds)
		}
		if got := b.Report.Pipeline[2].Rate; got != b.Report.Pipeline[1].PerSecond/2 {
			t.Errorf("half of the maximum is %v", got)
		}
	})
	t.Run("fanout", func(t *testing.T) {
		b.Listeners, b.Rounds, b.LightRate = 150, 2, 50
		if err := b.Fanout(t.Context()); err != nil {
			t.Fatal(err)
		}
		r := b.Report.Fanout[0]
		if r.Closed != 0 || r.Light.Missing != 0 || r.Light.Last.Count < 10 || r.Light.Each.Count != r.Light.Last.Count*150 {
			t.Errorf("%+v, light: %+v", r, r.Light)
		}
		// Listeners are ahead of the slowest by at most the window.
		if all := r.Full.Messages * r.Full.Seconds * 150; r.Full.Deliveries == 0 || float64(r.Full.Deliveries)-all > float64(b.Window*150) || float64(r.Full.Deliveries)-all < -float64(b.Window*150) {
			t.Errorf("%+v", r.Full)
		}
		if r.ResidentIdle <= 0 || len(r.Rounds) != 2 || r.Rounds[1].Left <= 0 {
			t.Errorf("%+v", r)
		}
	})
	t.Run("start", func(t *testing.T) {
		if err := b.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, r := range b.Report.Start {
			if len(r.Ready) != 5 || r.Bytes < 1<<20 || r.Resident == 0 {
				t.Errorf("%+v", r)
			}
		}
	})
	t.Run("growth", func(t *testing.T) {
		b.Duration, b.Count, b.MaxDepth, b.Kind, b.Tasks = time.Minute, 100, 1000, load.Form, 1000
		if err := b.Grow(t.Context(), []string{OverDepth, OverSites}); err != nil {
			t.Fatal(err)
		}
		depth, sites := b.Report.Growth[0], b.Report.Growth[1]
		if len(depth.Ingest) != 2 || depth.Ingest[1].Depth < 1000 || len(depth.Worker) != 2 {
			t.Errorf("%+v", depth)
		}
		if len(sites.Ingest) != 4 || sites.Ingest[3].Sites != 4 || sites.Ingest[3].Accepted == 0 {
			t.Errorf("%+v", sites)
		}
	})
	var out bytes.Buffer
	if err := b.Report.Write(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\nraw: ", "\ningest: ", "\nworker: ", "\npipeline: ", "\nfanout: ", "\nstart: ", "\ngrowth over depth: ingest", "\ngrowth over depth: workers"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("there is no table %q", want)
		}
	}
	t.Logf("%s", &out)
}

// What was measured before ctx ended is reported.
func TestInterrupted(t *testing.T) {
	b := setup(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	b.Duration, b.Warmup, b.Count = MaxDuration, 0, 100_000
	b.Progress = func(what string, done float64) {
		if strings.HasPrefix(what, "posting") && done > 0.01 { // 1,000 texts, or 6 s on a machine that busy
			cancel(why)
		}
	}
	b.AMQP = "" // the broker alone is not measured
	if err := b.Ingest(ctx); !errors.Is(err, why) {
		t.Errorf("Ingest returned %v, want %v", err, why)
	}
	if len(b.Report.Ingest) != 1 {
		t.Fatalf("%d results are reported, want 1", len(b.Report.Ingest))
	}
	if r := b.Report.Ingest[0]; r.Accepted == 0 || r.Seconds > 60 {
		t.Errorf("reported %+v", r)
	}
}

// More listeners than there can be descriptors are refused before one connects.
func TestTooManyListeners(t *testing.T) {
	t.Parallel()
	target, err := ParseTarget(t.Context(), "ws://127.0.0.1:1", false, "ws")
	if err != nil {
		t.Fatal(err)
	}
	n := OpenFiles()
	_, err = (&Fanout{Target: target, Listeners: n}).Run(t.Context(), func(string, float64) {})
	if want := fmt.Sprintf("%d listeners need %d open files, and this program may have %d", n, n+spareFiles, n); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
}
