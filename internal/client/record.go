package client

import (
	"slices"
	"unicode/utf8"

	"github.com/revq/revq/internal/task"
)

// A record holds what is known of the tasks of one Send.
type record struct {
	tasks     []task.Task
	reasons   []error // why a task was not accepted, by the last word about it
	uncertain []bool  // some attempt may have queued it
	left      []int   // indices of the tasks that are not decided
	answered  bool    // some attempt was answered
}

func newRecord(tasks []task.Task) *record {
	r := &record{tasks: tasks, reasons: make([]error, len(tasks)), uncertain: make([]bool, len(tasks))}
	for i, t := range tasks {
		if utf8.ValidString(t.Text) {
			r.left = append(r.left, i)
		} else {
			r.reasons[i] = task.ErrNotUTF8
		}
	}
	return r
}

// pending returns the tasks that are left.
func (r *record) pending() []task.Task {
	pending := make([]task.Task, len(r.left))
	for i, index := range r.left {
		pending[i] = r.tasks[index]
	}
	return pending
}

// answer records the answer to each task that was left. Left are then those
// whose reason may pass.
func (r *record) answer(results []error) {
	r.answered = true
	for i, index := range r.left {
		r.reasons[index] = results[i]
		r.uncertain[index] = r.uncertain[index] || maybeQueued(results[i])
	}
	r.left = slices.DeleteFunc(r.left, func(i int) bool { return !retryable(r.reasons[i]) })
}

// fail records an attempt without an answer, for the tasks that are left. An
// answer to an earlier attempt says more than its reason, unless there will be
// no further attempt since the sender was interrupted.
func (r *record) fail(reason error, uncertain, interrupted bool) {
	for _, index := range r.left {
		if !r.answered || interrupted {
			r.reasons[index] = reason
		}
		r.uncertain[index] = r.uncertain[index] || uncertain
	}
}

// answers returns what is known of each task, as Send does.
func (r *record) answers() []error {
	answers := slices.Clone(r.reasons)
	for i, reason := range answers {
		if reason != nil && r.uncertain[i] {
			answers[i] = &Uncertain{reason}
		}
	}
	return answers
}
