package worker_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/worker"
)

// Tests that raise an alarm at the shared node are not parallel: they run
// before all that are.
func TestMain(m *testing.M) { rabbittest.Main(m) }

// A rig is a virtual host with a publisher of tasks and a reader of results.
type rig struct {
	t       testing.TB
	url     string
	cfg     rabbit.Config
	log     *slog.Logger
	out     *rabbittest.Output
	tasks   *rabbit.Publisher
	results chan task.Result
	told    chan task.Result // what is not a result
	ch      *amqp.Channel    // for a look from outside
}

func setup(t testing.TB) *rig {
	t.Helper()
	return setupAt(t, rabbittest.URL(t))
}

// setupAt is setup in the virtual host of a URL.
func setupAt(t testing.TB, url string) *rig {
	t.Helper()
	r := &rig{t: t, url: url, results: make(chan task.Result, 1000), told: make(chan task.Result, 1000)}
	r.log, r.out = rabbittest.Log(t)
	r.cfg = rabbit.DefaultConfig("test")
	r.cfg.URLs = []string{r.url}
	r.cfg.RetryMin, r.cfg.RetryMax = 10*time.Millisecond, time.Second
	r.cfg.ConfirmTimeout = 15 * time.Second
	if _, err := rabbit.Setup(t.Context(), r.cfg); err != nil {
		t.Fatal(err)
	}
	conn, err := amqp.Dial(r.url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if r.ch, err = conn.Channel(); err != nil {
		t.Fatal(err)
	}
	r.tasks = rabbit.NewPublisher(r.cfg, r.log)
	r.run(r.tasks.Run)
	reader := rabbit.NewReader(r.cfg, 1000, r.log)
	r.run(func(ctx context.Context) { reader.Run(ctx, follower{r.results, r.told}) })
	r.eventually("ready", r.tasks.Ready)
	return r
}

// A follower passes on what listeners are told, results apart from the rest.
type follower struct{ results, told chan task.Result }

func (f follower) Append(_ int64, r task.Result) {
	if r.Kind == task.Done {
		f.results <- r
	} else {
		f.told <- r
	}
}
func (f follower) Remember(task.Result)     {}
func (f follower) AppendMark(int64, string) {}
func (f follower) AppendGap(string)         {}
func (f follower) GoLive()                  {}

// run runs f until stop is called or the test ends; stop waits for its end.
func (r *rig) run(f func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(ctx)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		receive(r.t, "end of Run", done)
	})
	r.t.Cleanup(stop)
	return stop
}

// work starts a worker over connections of its own, called name.
func (r *rig) work(name string, concurrency int, h worker.Handler) (w *worker.Worker, stop func()) {
	work := worker.DefaultConfig()
	work.Concurrency, work.Retries = concurrency, 1
	return r.workAs(name, work, h)
}

// workAs is work with a configuration.
func (r *rig) workAs(name string, work worker.Config, h worker.Handler) (w *worker.Worker, stop func()) {
	cfg, concurrency := r.cfg, work.Concurrency
	cfg.Name = name
	publisher, consumer := rabbit.NewPublisher(cfg, r.log), rabbit.NewConsumer(cfg, concurrency, r.log)
	w = worker.New(work, h, publisher, r.log)
	consumer.TookBack = w.TookBack
	stopPublisher := r.run(publisher.Run)
	stopConsumer := r.run(func(ctx context.Context) {
		consumer.Run(ctx, func(ctx context.Context, d *rabbit.Delivery) { w.Handle(ctx, d) })
	})
	r.eventually("ready", publisher.Ready)
	r.eventually("ready", consumer.Ready)
	return w, func() {
		stopConsumer()
		stopPublisher()
	}
}

func (r *rig) publish(tasks ...task.Task) {
	r.t.Helper()
	var answers []<-chan error
	for _, t := range tasks {
		answers = append(answers, r.tasks.PublishTask(t))
	}
	for _, answer := range answers {
		if err := receive(r.t, "answer", answer); err != nil {
			r.t.Fatal(err)
		}
	}
}

// left returns how many messages are in queue that nobody holds.
func (r *rig) left(queue string) int {
	r.t.Helper()
	q, err := r.ch.QueueDeclarePassive(queue, true, false, false, false, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return q.Messages
}

func (r *rig) eventually(what string, check func() error) {
	r.t.Helper()
	await.Nil(r.t, what, check)
}

func receive[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	return await.Value(t, what, c)
}

// handlerFunc makes a function a Handler.
type handlerFunc func(context.Context, task.Task) (string, error)

func (f handlerFunc) Handle(ctx context.Context, t task.Task) (string, error) { return f(ctx, t) }

func newTask(i int) task.Task {
	return task.Task{ID: fmt.Sprintf("task-%d", i), Text: fmt.Sprintf("text %d", i), Accepted: time.Now()}
}

// begun has h signal each task that it begins.
func begun(h worker.Handler) (worker.Handler, <-chan task.Task) {
	began := make(chan task.Task, 1000)
	return handlerFunc(func(ctx context.Context, t task.Task) (string, error) {
		began <- t
		return h.Handle(ctx, t)
	}), began
}
