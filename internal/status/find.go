package status

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/revq/revq/internal/admin"
)

// A State is where a task is.
type State string

// The states of a task.
const (
	Queued  State = "queued"  // accepted, and neither taken by a worker of this host nor done
	Running State = "running" // a worker of this host has it
	Retry   State = "waiting for a retry"
	Done    State = "done"
	Failed  State = "failed" // given up, as listeners were told
	Dead    State = "dead"   // it is a dead letter now
	Missing State = "unknown"
)

// A Place is what is known of a task.
type Place struct {
	ID     string    `json:"id"`
	State  State     `json:"state"`
	Worker int       `json:"worker,omitempty"` // the process that is running it
	Since  time.Time `json:"since,omitzero"`   // it is running
	Until  time.Time `json:"until,omitzero"`   // the attempt ends at the latest, or the task waits
	At     time.Time `json:"at,omitzero"`      // it was done or given up
	Offset int64     `json:"offset,omitempty"` // of the message that says so
	Why    string    `json:"why,omitempty"`

	// Text says all this in a sentence, and Next is the step to take now.
	Text string `json:"text"`
	Next string `json:"next"`
}

// A DeadLetter is what is known of the dead letter with the task's id.
type DeadLetter struct {
	At  time.Time
	Why string
}

// Ask returns what daemons with admin sockets know of a task.
func Ask(ctx context.Context, sockets []string, id string) []admin.Known {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	known := make([]admin.Known, len(sockets))
	var asking sync.WaitGroup
	for i, socket := range sockets {
		asking.Go(func() {
			if k, err := admin.FindTask(ctx, socket, id); err == nil { // Look has told why not
				known[i] = k
			}
		})
	}
	asking.Wait()
	return known
}

// Find says where a task is, from what the daemons know and, if somebody looked,
// its dead letter. What was seen last wins: a task that a worker is running may
// have failed before, and somebody has requeued it.
func Find(id string, f Facts, known []admin.Known, dead *DeadLetter) Place {
	p := Place{ID: id, Next: "revq status"}
	for _, d := range f.Daemons {
		w := d.Status.Worker
		if w == nil {
			continue
		}
		for _, t := range w.Tasks {
			if t.ID != id {
				continue
			}
			p.State, p.Worker, p.Since, p.Until = Running, d.Status.Pid, t.Since, t.Until
			p.Text = fmt.Sprintf("running: attempt %d, since %s, in the worker of %s with the process id %d", t.Attempt, clock(t.Since), w.Queue, d.Status.Pid)
			switch {
			case w.Paused != "":
				p.Why = w.Paused
				p.Text += "; it waits there, since " + w.Paused
			case t.Until.After(f.At):
				p.Text += "; it ends by " + clock(t.Until)
			}
			return p
		}
		for _, r := range w.Retries {
			if r.ID == id {
				p.State, p.Until, p.Why = Retry, r.Due, r.Why
				p.Text = fmt.Sprintf("waiting for a retry until %s, as attempt %d: %s", clock(r.Due), r.Attempt, r.Why)
				return p
			}
		}
	}
	if dead != nil {
		p.State, p.At, p.Why, p.Next = Dead, dead.At, dead.Why, "revq dead requeue "+id
		p.Text = "dead: it is a dead letter: " + dead.Why
		return p
	}
	accepted := false
	for _, k := range known {
		accepted = accepted || k.Accepted
		switch k.State {
		case admin.Done:
			p.State, p.At, p.Offset, p.Why = Done, k.At, k.Offset, k.Why
			p.Text = fmt.Sprintf("done: at %s, its result has the offset %d", clock(k.At), k.Offset)
			if k.Why != "" {
				p.Text += "; " + k.Why
			}
			return p
		case admin.Failed:
			p.State, p.At, p.Offset, p.Why, p.Next = Failed, k.At, k.Offset, k.Why, "revq dead show "+id
			p.Text = fmt.Sprintf("failed: it was given up at %s: %s; it is a dead letter, unless somebody has requeued or purged it", clock(k.At), k.Why)
			return p
		}
	}
	tasks, waiting := 0, 0
	for _, q := range linesOf(f.Daemons) {
		if q.Of != "" {
			tasks += q.Tasks
		} else if q.Waiting {
			waiting += q.Tasks
		}
	}
	there := strconv.Itoa(tasks) + " in the queues of tasks, " + strconv.Itoa(waiting) + " waiting for their delay or a retry"
	if accepted {
		p.State = Queued
		p.Text = "queued: it was accepted, no worker of this host is running it, and there is no result yet. The broker has " + there +
			"; which of them is this one, or whether a worker of another host is running it, is not known"
		return p
	}
	p.State, p.Next = Missing, "send the text again with this id, if it may be handled twice; or revq listen --after -1"
	p.Text = "unknown: no API of this host remembers that it was accepted, no worker of this host is running it, and no socket server of this host has a message about it in memory. It may be older, of another host, or not exist. The broker has " + there
	return p
}
