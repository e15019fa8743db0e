package rabbit

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

func TestWaitFor(t *testing.T) {
	t.Parallel()
	for rest, want := range map[time.Duration]int64{
		-time.Hour: 1, 0: 1, time.Millisecond: 1, time.Second: 1, 3899 * time.Millisecond: 1, 3900 * time.Millisecond: 4,
		4 * time.Second: 4, 16 * time.Second: 16, 10 * time.Minute: 256, wire.MaxDelay: 16384,
	} {
		if got := waitFor(rest); got != want {
			t.Errorf("waitFor(%v) = %d, want %d", rest, got, want)
		}
	}
	// A wait ends with its last round, at most a second late, and needs few.
	for rest := time.Duration(0); rest <= 10*time.Minute; rest += 250 * time.Millisecond {
		left, rounds := rest, 0
		for left > 0 {
			left -= time.Duration(waitFor(left)) * time.Second
			rounds++
		}
		if left <= -time.Second || rounds > 14 {
			t.Errorf("a wait of %v is %v late after %d rounds", rest, -left, rounds)
		}
	}
}

// later returns a task that is due in a moment.
func later(i int, queue string, delay time.Duration) task.Task {
	tk := newTask(i)
	tk.Queue, tk.NotBefore = queue, time.Now().Add(delay)
	return tk
}

// A task with a NotBefore waits at the broker, and comes to the workers of its
// own queue.
func TestWaiting(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	cfg := r.declaredQueue("thumbnails")
	p := r.publisher()
	r.ready(p.Ready)
	own, other := r.consume(NewConsumer(r.cfg, 10, r.log)), r.consume(NewConsumer(cfg, 10, r.log))
	var sent []task.Task
	for i, queue := range []string{wire.DefaultQueue, "thumbnails", "thumbnails"} {
		// Each time begins when the task is published: one that is not far away
		// any more leads to a queue with a shorter wait.
		tk := later(i+1, queue, []time.Duration{time.Second, 4 * time.Second, -time.Hour}[i])
		sent = append(sent, tk)
		if err := r.answered(p.PublishTask(tk)); err != nil {
			t.Fatalf("PublishTask = %v", err)
		}
	}
	for _, tc := range []struct {
		tasks <-chan *held
		want  task.Task
	}{{other, sent[2]}, {own, sent[0]}, {other, sent[1]}} {
		h := receive(t, "task", tc.tasks)
		got, err := h.Task()
		if err != nil || got.ID != tc.want.ID || got.Queue != tc.want.Queue || got.NotBefore.UnixMicro() != tc.want.NotBefore.UnixMicro() {
			t.Errorf("got %+v, %v, want %+v", got, err, tc.want)
		}
		if time.Now().Before(tc.want.NotBefore) {
			t.Errorf("%s came %v early", got.ID, time.Until(tc.want.NotBefore))
		}
		h.end(t, h.Ack)
	}
	if err := r.answered(p.PublishTask(later(4, "missing", time.Hour))); !errors.Is(err, task.ErrNoQueue) {
		t.Errorf("PublishTask = %v to a queue that does not exist", err)
	}
	checkPublished(t, p, map[string]int64{"confirmed": 3, "no_queue": 1})
}

// Tasks whose wait ends while the broker does not know where to send them come
// soon after it knows. That is also so for a moment when it starts: RabbitMQ 3.10
// has queues before their bindings.
func TestWaitEndsWithoutAWay(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	p := r.publisher()
	r.ready(p.Ready)
	r.remove(DueExchange)
	if err := r.answered(p.PublishTask(later(1, "", time.Second))); err != nil {
		t.Fatalf("PublishTask = %v", err)
	}
	eventually(t, "the end of the wait", func() error {
		if n := r.length(waitQueue + "1"); n > 0 {
			return fmt.Errorf("%d tasks wait", n)
		}
		return nil
	})
	if _, err := Setup(t.Context(), r.cfg); err != nil {
		t.Fatal(err)
	}
	if got := r.take(TasksQueue, 1)[0]; got.MessageId != newTask(1).ID {
		t.Errorf("got %s", got.MessageId)
	}
}

// Tasks whose queue is removed while they wait become dead letters.
func TestQueueRemovedWhileTasksWait(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	r.declaredQueue("thumbnails")
	p := r.publisher()
	r.ready(p.Ready)
	if err := r.answered(p.PublishTask(later(1, "thumbnails", time.Second))); err != nil {
		t.Fatalf("PublishTask = %v", err)
	}
	r.remove(TasksQueueOf("thumbnails"))
	eventually(t, "dead", func() error {
		if n := r.length(DeadQueue); n != 1 {
			return fmt.Errorf("%d dead letters", n)
		}
		return nil
	})
	l := r.letters()[0]
	if l.Task.ID != newTask(1).ID || l.Task.Queue != "thumbnails" || l.Reason != "expired" {
		t.Errorf("dead letter %+v", l)
	}
}

// checkPublished checks how many tasks have which result in p's counts.
func checkPublished(t *testing.T, p *Publisher, want map[string]int64) {
	t.Helper()
	got := make(map[string]int64)
	p.Published(func(kind, result string, messages int64) {
		if kind == kindNames[taskKind] && messages > 0 {
			got[result] = messages
		}
	})
	if !maps.Equal(got, want) {
		t.Errorf("published tasks by result: %v, want %v", got, want)
	}
}

// A publisher without the permission to have tasks wait, or without the
// exchange for it, does everything else, and says what it needs. It notices
// when it gets that.
func TestTasksThatCannotWait(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, write string
		remove      bool
		says        string
	}{
		{"not allowed", "^revq$", false, `set_permissions 'api-`},
		{"not set up", `^revq(\.wait)?$`, true, "run `revq setup`"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := setup(t).declared()
			if tc.remove {
				r.remove(WaitExchange)
			}
			cfg := r.user("api", "^$", tc.write, "^$")
			p := NewPublisher(cfg, r.log)
			r.run(p.Run)
			r.ready(p.Ready)
			answers := []<-chan error{p.PublishTask(newTask(1)), p.PublishTask(later(2, "", time.Second)), p.PublishTask(newTask(3))}
			for i, answer := range answers {
				err := r.answered(answer)
				if i != 1 && err != nil {
					t.Errorf("PublishTask = %v without a delay", err)
				}
				if i == 1 && (!errors.Is(err, ErrNoWaiting) || !strings.Contains(err.Error(), tc.says)) {
					t.Errorf("PublishTask = %v with a delay, want %q", err, tc.says)
				}
			}
			checkPublished(t, p, map[string]int64{"confirmed": 2, "no_waiting": 1})
			if _, err := Setup(t.Context(), r.cfg); err != nil {
				t.Fatal(err)
			}
			vhost, user := cfg.Login()
			r.eval(`rabbit_auth_backend_internal:set_permissions(<<%q>>, <<%q>>, <<"^$">>, <<%q>>, <<"^$">>, <<"test">>)`, user, vhost, `^revq(\.wait)?$`)
			eventually(t, "allowed", func() error { return r.answered(p.PublishTask(later(2, "", time.Second))) })
			if err := r.answered(p.PublishTask(newTask(4))); err != nil {
				t.Error(err)
			}
		})
	}
}
