package rabbit

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/task"
)

// silence makes the broker send nothing to the connection called name, which it
// keeps open: heartbeats come, and nothing else.
func (r *rig) silence(name string) {
	r.t.Helper()
	eventually(r.t, "silent", func() error {
		if n := r.eval(`length([sys:suspend(Pid) || Pid <- rabbit_channel:list(),
			[{connection, C}] <- [try rabbit_channel:info(Pid, [connection]) catch exit:_ -> [] end],
			{client_properties, P} <- try rabbit_networking:connection_info(C, [client_properties]) catch exit:_ -> [] end,
			is_list(P), lists:member({<<"connection_name">>, longstr, <<"%s">>}, P)])`, name); n != "1" {
			return fmt.Errorf("%s consumers", n)
		}
		return nil
	})
}

// A reader whose consumer has died silently notices it, says so, and goes on
// where it was over another session.
func TestASilentConsumerIsNoticed(t *testing.T) {
	n := rabbittest.StartNode(t) // a suspended process is nothing for the others
	r := setupOn(t, n).declared()
	r.cfg.Name = "silent"
	p := r.publisher()
	publishResults(t, p, 0, 10)
	reader := NewReader(r.cfg, everything, r.log)
	reader.proof.after, reader.proof.within = 100*time.Millisecond, time.Second
	f, _ := r.followUntil(reader)
	last := inOrder(t, f.results, 0, 10, -1)
	receive(t, "end of the backlog", f.live)
	r.silence("silent reader")
	publishResults(t, p, 10, 20)
	inOrder(t, f.results, 10, 20, last)
	r.out.Says(t, errSilent.Error())
	r.ready(reader.Ready)
	if len(f.gaps) > 0 {
		t.Errorf("told of a gap: %s", <-f.gaps)
	}
}

// A reader of a broker that takes long to begin to send leaves it, and has more
// patience the next time.
func TestABrokerThatBeginsLate(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	publishResults(t, r.publisher(), 0, 10)
	r.proxy().late.Store(int64(2 * time.Second))
	reader := NewReader(r.cfg, everything, r.log)
	reader.proof.after, reader.proof.within = 100*time.Millisecond, 300*time.Millisecond
	f, _ := r.followUntil(reader)
	inOrder(t, f.results, 0, 10, -1)
	r.out.Says(t, errSilent.Error())
	if n := reader.proof.silent.Load(); n != 0 {
		t.Errorf("it counts %d silent sessions after a message", n)
	}
}

// It notices that also after a long silence, when results come again.
func TestASilentConsumerIsNoticedAfterALongSilence(t *testing.T) {
	n := rabbittest.StartNode(t)
	r := setupOn(t, n).declared()
	r.cfg.Name = "idle"
	p := r.publisher()
	publishResults(t, p, 0, 10)
	reader := NewReader(r.cfg, everything, r.log)
	reader.proof.after, reader.proof.within, reader.proof.rarely = 100*time.Millisecond, time.Second, time.Hour
	f, _ := r.followUntil(reader)
	last := inOrder(t, f.results, 0, 10, -1)
	receive(t, "end of the backlog", f.live)
	heard := reader.proof.heard.Load()
	eventually(t, "a mark", func() error {
		if reader.proof.heard.Load() == heard {
			return errors.New("none")
		}
		return nil
	})
	r.silence("idle reader")
	publishResults(t, p, 10, 20)
	inOrder(t, f.results, 10, 20, last)
	r.out.Says(t, errSilent.Error())
}

// It notices that, too, while nobody else can read the stream: a mark is enough.
func TestASilentConsumerIsNoticedByAMark(t *testing.T) {
	n := rabbittest.StartNode(t)
	r := setupOn(t, n).declared()
	r.cfg.Name = "marked"
	reader := NewReader(r.cfg, everything, r.log)
	reader.proof.after = 100 * time.Millisecond
	reader.proof.cfg = r.user("marker", "^$", `^revq\.marks$`, "^$")
	f, _ := r.followUntil(reader)
	receive(t, "end of the backlog", f.live)
	r.silence("marked reader")
	r.out.Says(t, errSilent.Error())
	r.ready(reader.Ready)
	publishResults(t, r.publisher(), 0, 10)
	inOrder(t, f.results, 0, 10, -1)
}

// A reader is not ready while the broker stores nothing, and is ready again
// without another session.
func TestNotReadyWhileNothingIsStored(t *testing.T) {
	n := rabbittest.StartNode(t)
	r := setupOn(t, n).declared()
	r.cfg.URLs = []string{r.url + "?heartbeat=60"}
	reader := NewReader(r.cfg, everything, r.log)
	f, _ := r.followUntil(reader)
	receive(t, "end of the backlog", f.live)
	if err := n.Suspend(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	eventually(t, "not ready", func() error {
		if err := reader.Ready(); !errors.Is(err, errNotStored) {
			return fmt.Errorf("Ready = %w", err)
		}
		return nil
	})
	t.Logf("not ready after %v", time.Since(began))
	if err := n.Resume(); err != nil {
		t.Fatal(err)
	}
	r.ready(reader.Ready)
	if strings.Contains(r.out.String(), "no session") {
		t.Error("a session has ended")
	}
}

// A reader of several nodes that receives nothing is soon not ready, whatever it
// is waiting for. On an idle broker it receives marks.
func TestNotReadyWhileNothingComes(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	r.cfg.URLs = []string{r.url, r.url + "?heartbeat=60"} // the same node answers as another one
	idle := NewReader(r.cfg, everything, r.log)
	f, _ := r.followUntil(idle)
	receive(t, "end of the backlog", f.live)
	receive(t, "a while", time.After(2*silentAfter))
	if err := idle.Ready(); err != nil {
		t.Errorf("Ready = %v on an idle broker", err)
	}
	proof := &proof{cfg: r.cfg, report: func(_ *session, err error) {
		if !errors.Is(err, errNothingComes) {
			t.Errorf("reported: %v", err)
		}
	}}
	s, err := open(t.Context(), r.cfg, r.url, "quiet")
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	go proof.doubt(s)
	began := time.Now()
	eventually(t, "a doubt", func() error {
		if !proof.doubted.Load() {
			return errors.New("none")
		}
		return nil
	})
	if took := time.Since(began); took < silentAfter {
		t.Errorf("not ready after %v", took)
	}
	if s.ctx.Err() != nil {
		t.Error("the session has ended")
	}
}

// Silence is counted from the last event on, not in intervals.
func TestSilent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var count atomic.Int64
		began := time.Now()
		time.AfterFunc(900*time.Millisecond, func() { count.Add(1) })
		if !silent(t.Context(), count.Load, time.Second) {
			t.Error("the context has ended")
		}
		if took := time.Since(began); took < 1900*time.Millisecond || took > 2100*time.Millisecond {
			t.Errorf("silent for a second after %v, with an event after 0.9 s", took)
		}
	})
}

// Neither a quiet stream nor a broker that takes no messages is taken for a
// consumer that has died.
func testNoFalseAlarm(t *testing.T, n *rabbittest.Node) {
	r := setupOn(t, n).declared()
	reader := NewReader(r.cfg, everything, r.log)
	reader.proof.after, reader.proof.rarely = 10*time.Millisecond, 20*time.Millisecond
	f, _ := r.followUntil(reader)
	receive(t, "end of the backlog", f.live)
	marks := func(n int64) {
		t.Helper()
		before := reader.proof.heard.Load()
		eventually(t, "marks", func() error {
			if heard := reader.proof.heard.Load(); heard < before+n {
				return errSilent
			}
			return nil
		})
	}
	marks(5)
	rabbittest.SetAlarm(t, n)
	receive(t, "a while", time.After(3*time.Second))
	if err := reader.Ready(); err != nil {
		t.Errorf("Ready = %v during an alarm", err)
	}
	rabbittest.ClearAlarm(t, n)
	marks(5)
	if said := r.out.String(); strings.Contains(said, "no session") {
		t.Error("a session has ended")
	}
}

// A gap is told only after every node was asked: the replica of one may lag.
func TestEveryNodeIsAskedBeforeAGapIsTold(t *testing.T) {
	t.Parallel()
	ahead := setup(t).declared()
	publishResults(t, ahead.publisher(), 0, 10)
	lags := setup(t).declared() // another virtual host stands for a node whose replica has nothing yet
	r := setup(t)
	r.cfg.URLs = []string{ahead.url, lags.url}
	reader := NewReader(r.cfg, everything, r.log)
	reader.link.first = 0
	f, _ := r.followUntil(reader)
	last := inOrder(t, f.results, 0, 10, -1)
	receive(t, "end of the backlog", f.live)
	ahead.cut("test reader") // it goes to the second one
	r.out.Says(t, errMissing.Error())
	r.ready(reader.Ready)
	publishResults(t, ahead.publisher(), 10, 20)
	inOrder(t, f.results, 10, 20, last)
	if len(f.gaps) > 0 {
		t.Errorf("told of a gap: %s", <-f.gaps)
	}
}

// The connections of a publisher begin at different nodes.
func TestConnectionsSpreadOverTheNodes(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.cfg.PublishConnections = 4
	p := NewPublisher(r.cfg, r.log)
	const nodes = 4
	seen := make(map[int]bool)
	for _, lane := range p.lanes {
		seen[lane.link.first%nodes] = true
	}
	if len(seen) != nodes {
		t.Errorf("%d connections begin at %d of %d nodes", len(p.lanes), len(seen), nodes)
	}
}

// A history is read from another node if one is reached but cannot read the
// stream, as without a replica.
func TestHistoryGoesToAnotherNode(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	publishResults(t, r.publisher(), 0, 10)
	other := setup(t) // it has nothing
	r.cfg.URLs = []string{r.url, other.url}
	reader := NewReader(r.cfg, 0, r.log)
	enough := errors.New("enough")
	for range r.cfg.URLs { // each begins at another node
		n := 0
		err := history(t.Context(), reader, -1, 0, visitor{
			Result: func(int64, task.Result) error { n++; return nil },
			Mark:   func(int64, string) error { return nil },
			End:    func() error { return enough },
		})
		if err != enough || n != 10 {
			t.Errorf("History = %v after %d results", err, n)
		}
	}
}

// A publisher whose node confirms nothing any more goes to another one.
func TestAPublisherLeavesANodeThatConfirmsNothing(t *testing.T) {
	n := rabbittest.StartNode(t) // a suspended process is nothing for the others
	r := setupOn(t, n).declared()
	r.cfg.Name = "ignored"
	r.cfg.URLs = []string{r.url, r.url} // the same node answers as another one
	r.cfg.PublishConnections = 1
	r.cfg.ConfirmTimeout = time.Minute
	p := r.publisher()
	publishResults(t, p, 0, 1)
	r.silence("ignored publisher")
	began := time.Now()
	answer := p.PublishResult(task.Result{ID: "lost", Text: "x"})
	if err := receive(t, "the answer", answer); !errors.Is(err, ErrLost) {
		t.Errorf("answered with %v, want %v", err, ErrLost)
	}
	if took := time.Since(began); took > 5*suspectAfter {
		t.Errorf("answered after %v", took)
	}
	r.ready(p.Ready)
	publishResults(t, p, 1, 2)
	r.out.Says(t, errSuspect.Error())
}

// A publisher knows that its node does not answer at all, and passes it over.
func TestAPublisherLeavesANodeThatHangs(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	proxy := r.proxy()
	defer close(proxy.resume)
	r.cfg.URLs = append(r.cfg.URLs, r.url)
	r.cfg.PublishConnections = 1
	r.cfg.ConfirmTimeout = time.Minute
	p := NewPublisher(r.cfg, r.log)
	p.lanes[0].link.first = 0
	r.run(p.Run)
	r.ready(p.Ready)
	proxy.after.Store(1)
	eventually(t, "lost", func() error {
		if err := receive(t, "the answer", p.PublishResult(task.Result{ID: "x", Text: "x"})); !errors.Is(err, ErrLost) {
			return fmt.Errorf("answered with %v", err)
		}
		return nil
	})
	r.out.Says(t, errNoAnswer.Error())
	r.ready(p.Ready)
	publishResults(t, p, 1, 2)
}
