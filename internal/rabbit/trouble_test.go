package rabbit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/task"
)

// One node of their own for all tests that stop or slow it, one after another.
func TestBrokerInTrouble(t *testing.T) {
	noLeaks(t)
	n := rabbittest.StartNode(t)
	for _, tc := range []struct {
		name string
		test func(*testing.T, *rabbittest.Node)
	}{
		{"blocked", testBlocked},
		{"alarm while idle", testAlarmWhileIdle},
		{"alarm longer than heartbeats", testLongAlarm},
		{"suspended", testSuspended},
		{"stop while suspended", testStopWhileSuspended},
		{"consumer timeout", testConsumerTimeout},
		{"consumer timeout of those that wait", testConsumerTimeoutOfReaders},
		{"no marks while blocked", testNoMarksWhileBlocked},
		{"no false alarm of readers", testNoFalseAlarm},
		{"restarted", testRestarted},
		{"started after us", testStartedLater},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.test(t, n) })
	}
}

// blocked raises the memory alarm and publishes until it is felt. It returns
// the ids of what was accepted.
func (r *rig) blocked(p *Publisher) map[string]bool {
	r.t.Helper()
	rabbittest.SetAlarm(r.t, r.node)
	// The broker tells a connection when it publishes, and only then; it may
	// take some messages before.
	const batch = 100
	accepted, refused := map[string]bool{}, 0
	for from, deadline := 0, time.Now().Add(patience); refused == 0; from += batch {
		if time.Now().After(deadline) {
			r.t.Fatal("nobody was told that the broker is blocked")
		}
		began := time.Now()
		var answers []<-chan error
		for i := range batch {
			answers = append(answers, p.PublishTask(newTask(from+i)))
		}
		for i, answer := range answers {
			switch err := r.answered(answer); {
			case err == nil:
				accepted[newTask(from+i).ID] = true
			case errors.Is(err, ErrBlocked):
				refused++
			default:
				r.t.Errorf("PublishTask(%d) = %v, want %v", from+i, err, ErrBlocked)
			}
		}
		if took := time.Since(began); took > r.cfg.ConfirmTimeout/2 {
			r.t.Errorf("messages in flight were answered after %v", took)
		}
	}
	return accepted
}

func testBlocked(t *testing.T, n *rabbittest.Node) {
	r := setupOn(t, n).declared()
	p := r.publisher()
	accepted := r.blocked(p)
	if err := p.Ready(); !errors.Is(err, ErrBlocked) {
		t.Errorf("Ready = %v, want %v", err, ErrBlocked)
	}
	r.answeredWithin(atOnce, func() <-chan error { return p.PublishTask(newTask(-1)) }, ErrBlocked)

	// A consumer is not concerned: it has a connection of its own.
	tasks, stop := r.consumeUntil(NewConsumer(r.cfg, 1, r.log))
	for range len(accepted) {
		h := receive(t, "task of a blocked broker", tasks)
		delete(accepted, h.task.ID)
		h.end(t, h.Ack)
	}
	stop()
	if len(accepted) > 0 {
		t.Errorf("%d accepted tasks are lost", len(accepted))
	}

	rabbittest.ClearAlarm(t, n)
	r.ready(p.Ready)
	if err := r.answered(p.PublishTask(newTask(-2))); err != nil {
		t.Errorf("PublishTask after the alarm = %v", err)
	}
}

// An alarm is noticed though nobody publishes, also by a publisher that begins
// meanwhile, and what one connection is told holds for all.
func testAlarmWhileIdle(t *testing.T, n *rabbittest.Node) {
	r := setupOn(t, n).declared()
	r.cfg.PublishConnections = 4
	p := r.publisher()
	rabbittest.SetAlarm(t, n)
	isBlocked := func(p *Publisher) {
		t.Helper()
		eventually(t, "blocked", func() error {
			if err := p.Ready(); !errors.Is(err, ErrBlocked) {
				return fmt.Errorf("Ready = %w, want %w", err, ErrBlocked)
			}
			return nil
		})
	}
	isBlocked(p)
	for range 4 * burst { // over each of the connections
		r.answeredWithin(atOnce, func() <-chan error { return p.PublishTask(newTask(1)) }, ErrBlocked)
	}
	later := NewPublisher(r.cfg, r.log)
	r.run(later.Run)
	isBlocked(later)

	rabbittest.ClearAlarm(t, n)
	for _, p := range []*Publisher{p, later} {
		r.ready(p.Ready)
		if err := r.answered(p.PublishTask(newTask(2))); err != nil {
			t.Errorf("PublishTask after the alarm = %v", err)
		}
	}
	r.take(TasksQueue, 2)
	r.empty(TasksQueue) // probes are for nobody
}

// Heartbeats must not end a session because the broker does not read.
func testLongAlarm(t *testing.T, n *rabbittest.Node) {
	if testing.Short() {
		t.Skip("takes five seconds")
	}
	r := setupOn(t, n).declared()
	r.cfg.Heartbeat = time.Second
	p := r.publisher()
	r.blocked(p)
	receive(t, "five heartbeats", time.After(5*r.cfg.Heartbeat))
	rabbittest.ClearAlarm(t, n)
	r.ready(p.Ready)
	if err := r.answered(p.PublishTask(newTask(-1))); err != nil {
		t.Errorf("PublishTask after the alarm = %v", err)
	}
	if said := r.out.String(); strings.Contains(said, "no session") {
		t.Error("the session has ended")
	}
}

// suspend stops the broker's process; it is resumed with the test at the
// latest.
func (r *rig) suspend() (resume func()) {
	r.t.Helper()
	if err := r.node.Suspend(); err != nil {
		r.t.Fatal(err)
	}
	resume = func() {
		if err := r.node.Resume(); err != nil {
			r.t.Error(err)
		}
	}
	r.t.Cleanup(resume)
	return resume
}

func testSuspended(t *testing.T, n *rabbittest.Node) {
	r := setupOn(t, n).declared()
	r.cfg.ConfirmTimeout = 500 * time.Millisecond
	r.cfg.MaxInFlight = 10
	p := r.publisher()
	resume := r.suspend()
	began := time.Now()
	var answers []<-chan error
	for i := range r.cfg.MaxInFlight {
		answers = append(answers, p.PublishTask(newTask(i)))
	}
	r.answeredWithin(atOnce, func() <-chan error { return p.PublishTask(newTask(-1)) }, ErrBusy)
	for _, answer := range answers {
		if err := r.answered(answer); !errors.Is(err, ErrTimeout) {
			t.Errorf("PublishTask = %v, want %v", err, ErrTimeout)
		}
	}
	// TestDeadlines is exact about the end.
	if took, limit := time.Since(began), r.cfg.ConfirmTimeout+atOnce; took < r.cfg.ConfirmTimeout || took > limit {
		t.Errorf("answered after %v, want %v to %v", took, r.cfg.ConfirmTimeout, limit)
	}
	r.answeredWithin(atOnce, func() <-chan error { return p.PublishTask(newTask(-2)) }, ErrTimeout)
	if err := p.Ready(); !errors.Is(err, ErrTimeout) {
		t.Errorf("Ready = %v, want %v", err, ErrTimeout)
	}
	resume()
	r.ready(p.Ready)
	eventually(t, "publishing again", func() error { return r.answered(p.PublishTask(newTask(100))) })
	// What timed out was late, not lost.
	seen := map[string]bool{}
	for _, d := range r.take(TasksQueue, r.length(TasksQueue)) {
		seen[d.MessageId] = true
	}
	if len(seen) != r.cfg.MaxInFlight+1 {
		t.Errorf("%d tasks are in the queue, want %d", len(seen), r.cfg.MaxInFlight+1)
	}
}

// Nothing that a stop has to wait for is without a limit.
func testStopWhileSuspended(t *testing.T, n *rabbittest.Node) {
	r := setupOn(t, n).declared()
	r.cfg.ConfirmTimeout = time.Minute
	p := NewPublisher(r.cfg, r.log)
	consumer, reader := NewConsumer(r.cfg, 1, r.log), NewReader(r.cfg, everything, r.log)
	stops := []func(){r.run(p.Run)}
	tasks, stop := r.consumeUntil(consumer)
	stops = append(stops, stop)
	_, stop = r.followUntil(reader)
	stops = append(stops, stop)
	for _, ready := range []func() error{p.Ready, consumer.Ready, reader.Ready} {
		r.ready(ready)
	}
	r.enqueue(tasksKey, text("a"))
	receive(t, "task", tasks)
	s, err := open(t.Context(), r.cfg, r.url, "asking")
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()

	resume := r.suspend()
	answer := p.PublishTask(newTask(1))
	connecting := NewPublisher(r.cfg, r.log)
	stops = append(stops, r.run(connecting.Run))
	ctx, cancel := context.WithCancel(t.Context())
	asked := make(chan error, 1)
	go func() {
		asked <- s.bounded(ctx, func() error { return s.ensure(r.cfg.Topology, r.cfg.Topology.names()) })
	}()

	began := time.Now()
	cancel()
	if err := receive(t, "end of a question", asked); err == nil {
		t.Error("a suspended broker has answered")
	}
	done := make(chan struct{})
	for _, stop := range stops {
		go func() {
			stop()
			done <- struct{}{}
		}()
	}
	for range stops {
		receive(t, "end of Run", done)
	}
	if took, limit := time.Since(began), 3*closeTimeout+atOnce; took > limit {
		t.Errorf("the stop took %v, want %v at limit", took, limit)
	}
	if err := r.answered(answer); !errors.Is(err, ErrLost) {
		t.Errorf("PublishTask = %v, want %v", err, ErrLost)
	}

	// Nor is connecting.
	r.cfg.DialTimeout = 100 * time.Millisecond
	if _, err := Setup(t.Context(), r.cfg); err == nil || !strings.Contains(err.Error(), "no answer within 100ms") {
		t.Errorf("Setup = %v", err)
	}
	resume()
}

func testConsumerTimeout(t *testing.T, n *rabbittest.Node) {
	r := setupOn(t, n).declared()
	defer r.setConsumerTimeout(500 * time.Millisecond)()
	c := NewConsumer(r.cfg, 1, r.log)
	tasks := r.consume(c)
	r.enqueue(tasksKey, text("a"))
	h := receive(t, "task", tasks)
	receive(t, "end of the handler's context", h.ctx.Done())
	if cause := fmt.Sprint(context.Cause(h.ctx)); !strings.Contains(cause, "delivery acknowledgement") {
		t.Errorf("the context ended with %q", cause)
	}
	again := receive(t, "task again", tasks)
	if again.task.ID != "a" {
		t.Errorf("got %s, want a again", again.task.ID)
	}
	again.end(t, again.Ack)
}

// setConsumerTimeout is for channels that are opened from now on, until undo.
func (r *rig) setConsumerTimeout(timeout time.Duration) (undo func()) {
	r.t.Helper()
	// The broker looks once a minute, unless it is told otherwise before the
	// channel is opened.
	set := func(tick, timeout time.Duration) {
		r.eval(`[application:set_env(rabbit, K, V) || {K, V} <- [{channel_tick_interval, %d}, {consumer_timeout, %d}]]`,
			tick.Milliseconds(), timeout.Milliseconds())
	}
	set(200*time.Millisecond, timeout)
	return func() { set(time.Minute, 30*time.Minute) } // as they were
}

// A reader on a quiet system holds nothing for long, nor does one that reads
// the history and waits for more.
func testConsumerTimeoutOfReaders(t *testing.T, n *rabbittest.Node) {
	r := setupOn(t, n).declared()
	const timeout = 2 * ackWithin
	defer r.setConsumerTimeout(timeout)()
	p := r.publisher()
	publishResults(t, p, 0, 3)
	f, _ := r.followUntil(NewReader(r.cfg, everything, r.log))
	last := inOrder(t, f.results, 0, 3, -1)
	past := make(chan read, 10)
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		ended <- history(ctx, NewReader(r.cfg, 0, r.log), 0, 0, visitor{
			Result: func(offset int64, r task.Result) error { past <- read{offset, r}; return nil },
			Mark:   func(int64, string) error { return nil },
			End:    func() error { return nil },
		})
	}()
	inOrder(t, past, 0, 3, -1)
	// One that acknowledges nothing shows that the broker does what it is to.
	s, err := open(t.Context(), r.cfg, r.url, "holding")
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if _, err := s.consume(t.Context(), s.ch, ResultsQueue, "", 10, amqp.Table{offsetHeader: "first"}); err != nil {
		t.Fatal(err)
	}
	receive(t, "end of a consumer that acknowledges nothing", s.ctx.Done())
	receive(t, "twice that time", time.After(timeout))
	publishResults(t, p, 3, 5)
	inOrder(t, f.results, 3, 5, last)
	inOrder(t, past, 3, 5, last)
	cancel()
	if err := receive(t, "end of the history", ended); !errors.Is(err, context.Canceled) {
		t.Errorf("History = %v", err)
	}
	if said := r.out.String(); strings.Contains(said, "no session") {
		t.Error("a session has ended")
	}
}

// A broker that takes no messages takes no marks: readers say so and try again.
func testNoMarksWhileBlocked(t *testing.T, n *rabbittest.Node) {
	r := setupOn(t, n).declared()
	rabbittest.SetAlarm(t, n)
	reader := NewReader(r.cfg, everything, r.log)
	f, _ := r.followUntil(reader)
	eventually(t, "told why", func() error {
		if err := reader.Ready(); !errors.Is(err, ErrBlocked) {
			return fmt.Errorf("Ready = %v, want %v", err, ErrBlocked)
		}
		return nil
	})
	rabbittest.ClearAlarm(t, n)
	receive(t, "end of the backlog", f.live)
	r.ready(reader.Current)
}

func testRestarted(t *testing.T, n *rabbittest.Node) {
	r := setupOn(t, n).declared()
	r.cfg.RetryMin, r.cfg.RetryMax = DefaultConfig("").RetryMin, DefaultConfig("").RetryMax
	p := r.publisher()
	consumer, reader := NewConsumer(r.cfg, 1, r.log), NewReader(r.cfg, everything, r.log)
	tasks, results := r.consume(consumer), r.follow(reader)
	publishResults(t, p, 0, 10)
	last := inOrder(t, results, 0, 10, -1)
	r.enqueue(tasksKey, text("a"), text("b"))
	h := receive(t, "task", tasks)

	rabbittest.Restart(t, n)
	began := time.Now()
	receive(t, "end of the handler's context", h.ctx.Done())
	for _, ready := range []func() error{p.Ready, consumer.Ready, reader.Ready} {
		r.ready(ready)
	}
	publishResults(t, p, 10, 20)
	inOrder(t, results, 10, 20, last)
	for _, want := range []string{"a", "b"} {
		h := receive(t, "task", tasks)
		if h.task.ID != want {
			t.Errorf("got %s, want %s", h.task.ID, want)
		}
		h.end(t, h.Ack)
	}
	took := time.Since(began)
	t.Logf("all work again %v after the broker", took)
	if took > 20*time.Second {
		t.Errorf("work was resumed %v after the broker", took)
	}
}

func testStartedLater(t *testing.T, n *rabbittest.Node) {
	r := setupOn(t, n) // the virtual host outlives the stop
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := n.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	p := NewPublisher(r.cfg, r.log)
	r.run(p.Run)
	r.out.Says(t, "connection refused")
	r.answeredWithin(atOnce, func() <-chan error { return p.PublishTask(newTask(1)) }, ErrNotConnected)
	rabbittest.Restart(t, n)
	r.ready(p.Ready)
	if err := r.answered(p.PublishTask(newTask(1))); err != nil {
		t.Errorf("PublishTask = %v", err)
	}
	r.connected()
	if got := r.take(TasksQueue, 1)[0]; got.DeliveryMode != amqp.Persistent {
		t.Errorf("the delivery mode is %d", got.DeliveryMode)
	}
}
