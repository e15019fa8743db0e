package rabbit

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/task"
)

// answered waits for the answer of one message.
func (r *rig) answered(answer <-chan error) error {
	r.t.Helper()
	return receive(r.t, "answer", answer)
}

// at once means without waiting for anything, on a busy machine.
const atOnce = 2 * time.Second

// answeredWithin fails the test unless the answer is want and comes in time.
func (r *rig) answeredWithin(limit time.Duration, publish func() <-chan error, want error) {
	r.t.Helper()
	began := time.Now()
	err := r.answered(publish())
	if took := time.Since(began); took > limit {
		r.t.Errorf("answered after %v, want %v at most", took, limit)
	}
	if !errors.Is(err, want) {
		r.t.Errorf("answered with %v, want %v", err, want)
	}
}

func TestMessages(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	p := r.publisher()
	tk, res := newTask(1), result(2)
	res.Accepted = tk.Accepted
	foreign := result(3)
	foreign.Accepted = time.Time{} // enqueued by someone else
	for _, answer := range []<-chan error{p.PublishTask(tk), p.PublishResult(res), p.PublishResult(foreign)} {
		if err := r.answered(answer); err != nil {
			t.Fatal(err)
		}
	}
	check := func(d amqp.Delivery, id, text string, when time.Time, headers map[string]time.Time) {
		t.Helper()
		if d.Exchange != Exchange || d.MessageId != id || string(d.Body) != text || d.ContentType != "text/plain; charset=utf-8" ||
			d.DeliveryMode != amqp.Persistent || d.AppId != "revq" || d.Timestamp.Unix() != when.Unix() {
			t.Errorf("the message is %+v", d)
		}
		for _, name := range []string{acceptedHeader, doneHeader} {
			got, ok := d.Headers[name].(int64)
			want, wanted := headers[name]
			if ok != wanted || ok && got != want.UnixMicro() {
				t.Errorf("%s of %s is %v, want %v", name, id, d.Headers[name], want)
			}
		}
	}
	check(r.take(TasksQueue, 1)[0], tk.ID, tk.Text, tk.Accepted, map[string]time.Time{acceptedHeader: tk.Accepted})
	ch := r.channel()
	if err := ch.Qos(10, 0, false); err != nil {
		t.Fatal(err)
	}
	results, err := ch.Consume(ResultsQueue, "", false, false, false, false, amqp.Table{offsetHeader: "first"})
	if err != nil {
		t.Fatal(err)
	}
	check(receive(t, "result", results), res.ID, res.Text, res.Done, map[string]time.Time{acceptedHeader: tk.Accepted, doneHeader: res.Done})
	check(receive(t, "result", results), foreign.ID, foreign.Text, foreign.Done, map[string]time.Time{doneHeader: foreign.Done})
}

func TestManyPublishers(t *testing.T) {
	noLeaks(t)
	r := setup(t).declared()
	p := NewPublisher(r.cfg, r.log)
	stop := r.run(p.Run)
	r.ready(p.Ready)
	const publishers, each = 256, 20
	var wg sync.WaitGroup
	for g := range publishers {
		wg.Go(func() {
			for i := range each {
				if err := r.answered(p.PublishTask(newTask(g*each + i))); err != nil {
					t.Errorf("PublishTask = %v", err)
				}
			}
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	for _, d := range r.take(TasksQueue, publishers*each) {
		seen[d.MessageId] = true
	}
	if len(seen) != publishers*each {
		t.Errorf("%d different tasks are in the queue, want %d", len(seen), publishers*each)
	}
	stop()
	r.answeredWithin(atOnce, func() <-chan error { return p.PublishTask(newTask(0)) }, ErrNotConnected)
	if err := p.Ready(); !errors.Is(err, ErrNotConnected) {
		t.Errorf("Ready after Run = %v", err)
	}
}

// Whatever happens to the connection, each caller is answered once, and what
// was answered with nil is in the queue.
func TestConnectionClosedUnderLoad(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	p := r.publisher()
	const publishers, each = 64, 100
	var (
		wg       sync.WaitGroup
		mu       sync.Mutex
		accepted = map[string]bool{}
		lost     int
	)
	half := make(chan struct{}, publishers)
	for g := range publishers {
		wg.Go(func() {
			for i := range each {
				if i == each/2 {
					half <- struct{}{}
				}
				tk := newTask(g*each + i)
				answer := p.PublishTask(tk)
				err := r.answered(answer)
				mu.Lock()
				switch {
				case err == nil:
					accepted[tk.ID] = true
				case errors.Is(err, ErrLost), errors.Is(err, ErrNotConnected):
					lost++
				default:
					t.Errorf("PublishTask = %v", err)
				}
				mu.Unlock()
				if len(answer) > 0 {
					t.Errorf("a second answer: %v", <-answer)
				}
			}
		})
	}
	for range publishers / 2 {
		receive(t, "half of the load", half)
	}
	r.cut("test publisher")
	wg.Wait()
	if lost == 0 {
		t.Error("no message met the end of the connection")
	}
	r.ready(p.Ready)
	if err := r.answered(p.PublishTask(newTask(-1))); err != nil {
		t.Errorf("PublishTask in the next session = %v", err)
	}
	for _, d := range r.take(TasksQueue, r.length(TasksQueue)) {
		delete(accepted, d.MessageId)
	}
	if len(accepted) > 0 {
		t.Errorf("%d messages were accepted and are not in the queue", len(accepted))
	}
	r.out.Says(t, "the connection was closed: Exception (320) Reason: \\\"CONNECTION_FORCED - closed by a test")
}

// The broker refuses a message for a full queue at once, while earlier messages
// for other queues still wait for their confirmation. Then it confirms several
// messages with one frame, whose range includes the refused one.
func TestRefusedAmongConfirmed(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.cfg.Topology.MaxTasks = 10
	r.declared()
	r.cfg.PublishConnections = 1
	other := r.cfg
	other.Topology = DefaultTopology()
	other.Topology.Queue = "other"
	if _, err := Setup(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	p := r.publisher()
	const each = 500
	var tasks []task.Task
	var answers []<-chan error
	for i := range each {
		for _, queue := range []string{"other", ""} {
			tk := newTask(2 * i)
			tk.Queue = queue
			tasks, answers = append(tasks, tk), append(answers, p.PublishTask(tk))
		}
	}
	accepted := make(map[string]bool)
	for i, answer := range answers {
		switch err := r.answered(answer); {
		case err == nil && tasks[i].Queue == "":
			accepted[tasks[i].ID] = true
		case err != nil && (tasks[i].Queue != "" || !errors.Is(err, ErrRefused)):
			t.Errorf("PublishTask to %q = %v", tasks[i].Queue, err)
		}
	}
	if len(accepted) == each {
		t.Error("the queue was never full")
	}
	for _, d := range r.take(TasksQueue, r.length(TasksQueue)) {
		delete(accepted, d.MessageId)
	}
	if len(accepted) > 0 {
		t.Errorf("%d tasks were accepted and are not in the queue", len(accepted))
	}
}

func TestUnroutableIsRepaired(t *testing.T) {
	t.Parallel()
	for name, remove := range map[string]func(*rig) error{
		"unbound": func(r *rig) error { return r.ch.QueueUnbind(TasksQueue, tasksKey, Exchange, nil) },
		"deleted": func(r *rig) error {
			r.remove(TasksQueue)
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := setup(t).declared()
			p := r.publisher()
			if err := remove(r); err != nil {
				t.Fatal(err)
			}
			first := p.PublishTask(newTask(1))
			routed := p.PublishResult(result(2)) // not affected
			if err := r.answered(first); !errors.Is(err, ErrUnroutable) {
				t.Errorf("PublishTask = %v, want %v", err, ErrUnroutable)
			}
			if err := r.answered(routed); err != nil {
				t.Errorf("PublishResult = %v", err)
			}
			r.out.Says(t, "declared the missing objects")
			if err := r.answered(p.PublishTask(newTask(3))); err != nil {
				t.Errorf("PublishTask after the repair = %v", err)
			}
			if got := r.take(TasksQueue, 1)[0].MessageId; got != newTask(3).ID {
				t.Errorf("the queue has %s", got)
			}
		})
	}
}

func TestUnroutableWithoutPermission(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	p := NewPublisher(r.user("api", "^$", "^revq$", "^$"), r.log)
	r.run(p.Run)
	r.ready(p.Ready)
	if err := r.ch.QueueUnbind(TasksQueue, tasksKey, Exchange, nil); err != nil {
		t.Fatal(err)
	}
	if err := r.answered(p.PublishTask(newTask(1))); !errors.Is(err, ErrUnroutable) {
		t.Errorf("PublishTask = %v, want %v", err, ErrUnroutable)
	}
	r.out.Says(t, "run `revq setup` as a user who may")
	// The refusal has not cost the session.
	if err := r.answered(p.PublishResult(result(1))); err != nil {
		t.Errorf("PublishResult = %v", err)
	}
}

func TestDeletedExchangeIsDeclaredAgain(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	p := r.publisher()
	if err := r.ch.ExchangeDelete(Exchange, false, false); err != nil {
		t.Fatal(err)
	}
	if err := r.answered(p.PublishTask(newTask(1))); err == nil {
		t.Error("a message to no exchange was confirmed")
	}
	r.out.Says(t, "no exchange 'revq'")
	r.ready(p.Ready)
	if err := r.answered(p.PublishTask(newTask(2))); err != nil {
		t.Errorf("PublishTask in the next session = %v", err)
	}
}

// A full queue refuses what is new and keeps what it has.
func TestFullQueue(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.cfg.Topology.MaxTasks = 10
	r.declared()
	p := r.publisher()
	accepted, refused := map[string]bool{}, 0
	for i := range 1000 {
		tk := newTask(i)
		switch err := r.answered(p.PublishTask(tk)); {
		case err == nil:
			accepted[tk.ID] = true
		case errors.Is(err, ErrRefused):
			refused++
		default:
			t.Fatalf("PublishTask = %v", err)
		}
		if refused == 10 {
			break
		}
	}
	if refused < 10 || len(accepted) < 10 {
		t.Errorf("%d accepted and %d refused", len(accepted), refused)
	}
	for _, d := range r.take(TasksQueue, len(accepted)) {
		delete(accepted, d.MessageId)
	}
	if len(accepted) > 0 {
		t.Errorf("%d accepted tasks are lost", len(accepted))
	}
	eventually(t, "taken again", func() error { return r.answered(p.PublishTask(newTask(1))) })
}

func TestBusy(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.cfg.MaxInFlight = 1
	r.declared()
	p := r.publisher()
	first, second := p.PublishTask(newTask(1)), p.PublishTask(newTask(2))
	if err := r.answered(second); !errors.Is(err, ErrBusy) {
		t.Errorf("the second message: %v, want %v", err, ErrBusy)
	}
	if err := r.answered(first); err != nil {
		t.Errorf("the first message: %v", err)
	}
	if err := r.answered(p.PublishTask(newTask(3))); err != nil {
		t.Errorf("the third message: %v", err)
	}
}

func TestNotConnected(t *testing.T) {
	t.Parallel()
	r := setup(t)
	p := NewPublisher(r.cfg, r.log)
	publish := func() <-chan error { return p.PublishTask(newTask(1)) }
	r.answeredWithin(atOnce, publish, ErrNotConnected) // before Run
	p.lanes[0].link.cfg.URLs = []string{"amqp://revq:secret@127.0.0.1:1/"}
	r.run(p.Run)
	eventually(t, "told why", func() error {
		if err := p.Ready(); !strings.Contains(err.Error(), "connect to 127.0.0.1:1: ") || !strings.Contains(err.Error(), "connection refused") {
			return err
		}
		return nil
	})
	r.answeredWithin(atOnce, publish, ErrNotConnected)
	if err := r.answered(publish()); !strings.Contains(err.Error(), "connection refused") || strings.Contains(err.Error(), "secret") {
		t.Errorf("PublishTask = %v, want the reason", err)
	}
}

func TestFirstOfSeveralURLsIsDead(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.cfg.URLs = []string{"amqp://revq:secret@127.0.0.1:1/", r.url}
	p := r.publisher()
	if err := r.answered(p.PublishTask(newTask(1))); err != nil {
		t.Errorf("PublishTask = %v", err)
	}
	if _, err := Setup(t.Context(), r.cfg); err != nil {
		t.Errorf("Setup = %v", err)
	}
}

func TestWrongPassword(t *testing.T) {
	t.Parallel()
	r := setup(t)
	uri, err := amqp.ParseURI(r.url)
	if err != nil {
		t.Fatal(err)
	}
	secret := uri.Password
	uri.Password = "wrong-secret"
	r.cfg.URLs = []string{uri.String(), "amqp://revq:" + secret + "%@127.0.0.1/"} // and one that is none
	p := NewPublisher(r.cfg, r.log)
	r.run(p.Run)
	for _, want := range []string{"username or password not allowed", "cannot be used"} {
		r.out.Says(t, want)
	}
	said := r.out.String() + fmt.Sprint(p.Ready())
	for _, password := range []string{secret, uri.Password} {
		if strings.Contains(said, password) {
			t.Errorf("a password is shown: %s", said)
		}
	}
}

// A connection that breaks off takes its own messages along, and nobody else's.
func TestPublishingOverSeveralConnections(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	r.cfg.PublishConnections = 4
	r.cfg.RetryMin, r.cfg.RetryMax = patience, patience // it stays away
	p := r.publisher()
	eventually(t, "connected", func() error {
		for _, l := range p.lanes {
			if _, err := l.current(); err != nil {
				return err
			}
		}
		return nil
	})
	published := func(from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			if err := r.answered(p.PublishTask(newTask(i))); err != nil {
				t.Errorf("PublishTask(%d) = %v", i, err)
			}
		}
	}
	published(0, 40)
	for broken, l := range p.lanes[:3] {
		pipe, err := l.current()
		if err != nil {
			t.Fatal(err)
		}
		pipe.s.raw.Close()
		eventually(t, "noticed", func() error {
			if l.pipe.Load() != nil {
				return errors.New("the connection is still there")
			}
			return nil
		})
		if err := p.Ready(); err != nil {
			t.Errorf("Ready without %d of 4 connections = %v", broken+1, err)
		}
		published(40*(broken+1), 40*(broken+2))
	}
	r.take(TasksQueue, 160)
	r.empty(TasksQueue)
}

// Several connections begin at a broker that has no objects yet: one that finds
// the exchange assumes that the queues exist.
func TestFirstMessageOnAFreshBroker(t *testing.T) {
	t.Parallel()
	for range 10 {
		r := setup(t)
		r.cfg.PublishConnections = 8
		p := NewPublisher(r.cfg, r.log)
		stop := r.run(p.Run)
		for p.Ready() != nil {
			runtime.Gosched()
		}
		// A quorum queue that was declared a moment ago may still refuse.
		if err := r.answered(p.PublishTask(newTask(1))); err != nil && !errors.Is(err, ErrRefused) {
			t.Error(err)
		}
		stop()
	}
}
