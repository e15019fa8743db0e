package worker_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/reverse"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/worker"
)

// published stands for a broker that confirms at once.
type published struct{ confirmed chan error }

func (p published) PublishResult(task.Result) <-chan error {
	p.confirmed <- nil
	return p.confirmed
}

func (p published) PublishTask(task.Task) <-chan error                 { return p.confirmed }
func (p published) PublishDead(task.Task, string, string) <-chan error { return p.confirmed }

// A loan is a delivery that nobody waits for.
type loan struct{ task task.Task }

func (l loan) Task() (task.Task, error) { return l.task, nil }
func (loan) Attempt() int64             { return 1 }
func (loan) Ack() error                 { return nil }
func (loan) Reject() error              { return nil }
func (loan) Refuse() error              { return nil }
func (loan) Requeue() error             { return nil }

// BenchmarkHandle is what a worker itself costs, without pause and broker.
func BenchmarkHandle(b *testing.B) {
	w := worker.New(worker.DefaultConfig(), reverse.New(reverse.Config{}), published{make(chan error, 1)}, slog.New(slog.DiscardHandler))
	d := loan{task: task.Task{ID: task.NewID(), Text: strings.Repeat("0123456789", 10), Accepted: time.Now()}}
	b.ReportAllocs()
	for b.Loop() {
		w.Handle(b.Context(), d)
	}
}
