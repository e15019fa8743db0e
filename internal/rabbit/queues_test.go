package rabbit

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

func TestQueueOf(t *testing.T) {
	t.Parallel()
	for object, want := range map[string]string{
		"revq.tasks":                wire.DefaultQueue,
		"revq.tasks.thumbnails":     "thumbnails",
		"revq.tasks.":               "",
		"revq.tasks.A":              "",
		"revq.tasksx":               "",
		"revq.wait.1":               "",
		"":                          "",
		TasksQueueOf("a-b_c1"):      "a-b_c1",
		TasksQueueOf("reverse_tex"): "reverse_tex",
	} {
		if got := queueOf(object); got != want {
			t.Errorf("queueOf(%q) = %q, want %q", object, got, want)
		}
	}
}

// declaredQueue sets up a named queue and returns the configuration of its
// workers.
func (r *rig) declaredQueue(name string) Config {
	r.t.Helper()
	cfg := r.cfg
	cfg.Topology.Queue = name
	if _, err := Setup(r.t.Context(), cfg); err != nil {
		r.t.Fatal(err)
	}
	return cfg
}

// A task of a named queue goes to the workers of that queue, and its result
// says which queue that was.
func TestNamedQueue(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	p := r.publisher()
	sent := newTask(1)
	sent.Queue = "thumbnails"
	if err := r.answered(p.PublishTask(sent)); !errors.Is(err, task.ErrNoQueue) {
		t.Fatalf("PublishTask = %v before the queue exists", err)
	}
	cfg := r.declaredQueue(sent.Queue)
	r.ready(p.Ready)
	sent.Failed, sent.Expires = 3, time.UnixMicro(1e18)
	if err := r.answered(p.PublishTask(sent)); err != nil {
		t.Fatalf("PublishTask = %v", err)
	}
	r.empty(TasksQueue)
	h := receive(t, "task", r.consume(NewConsumer(cfg, 1, r.log)))
	got, err := h.Task()
	if err != nil || got.Queue != sent.Queue || got.ID != sent.ID || got.Failed != 3 || !got.Expires.Equal(sent.Expires) || !got.NotBefore.IsZero() {
		t.Errorf("got the task %+v, %v, want %+v", got, err, sent)
	}
	h.end(t, h.Ack)

	read := r.follow(NewReader(r.cfg, everything, r.log))
	// The first one is sent alone; the others share messages, those of each
	// queue.
	var want []string
	var answers []<-chan error
	for i := range 10 {
		res := result(i)
		if res.Queue = "thumbnails"; i%5 == 4 {
			res.Queue = wire.DefaultQueue
		}
		want = append(want, res.Queue)
		answers = append(answers, p.PublishResult(res))
	}
	var got2 []string
	for i := range want {
		if err := r.answered(answers[i]); err != nil {
			t.Fatalf("PublishResult = %v", err)
		}
		got2 = append(got2, receive(t, "result", read).Queue)
	}
	if !slices.Equal(got2, want) {
		t.Errorf("results of the queues %q, want %q", got2, want)
	}
}

// The broker returns a message by its id. With the same id, tasks may be in
// flight to a queue that exists and to one that does not.
func TestSameIDInTwoQueues(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	p := r.publisher()
	const n = 200
	var answers [n]<-chan error
	for i := range answers {
		tk := newTask(1)
		if i%2 == 1 {
			tk.Queue = "missing"
		}
		answers[i] = p.PublishTask(tk)
	}
	for i, answer := range answers {
		err := r.answered(answer)
		if i%2 == 0 && err != nil || i%2 == 1 && !errors.Is(err, task.ErrNoQueue) {
			t.Fatalf("answer %d is %v", i, err)
		}
	}
	r.take(TasksQueue, n/2)
	r.empty(TasksQueue)
}

// A setup for one queue leaves the others as they are and does not ask about
// their sizes.
func TestSetupOfAQueue(t *testing.T) {
	t.Parallel()
	r := setup(t)
	all := r.cfg
	all.Topology.MaxTasks, all.Topology.ResultsMaxAge = 77, "77s"
	if _, err := Setup(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	one := r.cfg
	one.Topology.Queue, one.Topology.MaxTasks = "thumbnails", 50
	for _, want := range [][]string{{"the queue revq.tasks.thumbnails"}, nil} {
		created, err := Setup(t.Context(), one)
		if err != nil || !slices.Equal(created, want) {
			t.Errorf("created %q, %v, want %q", created, err, want)
		}
	}
	one.Topology.DeliveryLimit = 9
	_, err := Setup(t.Context(), one)
	var differences Differences
	if !errors.As(err, &differences) || len(differences) != 1 || differences[0].Name != "revq.tasks.thumbnails" || !differences.Sizes() {
		t.Errorf("Setup = %v, want that the queue's delivery limit differs", err)
	}
}
