package worker

import (
	"errors"
	"fmt"
	"time"

	"github.com/revq/revq/internal/task"
)

// A step is what a worker does with a task.
type step int

const (
	attempt  step = iota // have it handled
	finish               // publish the result, then acknowledge it
	sendOn               // publish it again, then acknowledge it
	giveUp               // publish it as a dead letter, then acknowledge it
	giveBack             // return it to the queue: nothing came of this delivery
)

// A decision is a step with what it needs.
type decision struct {
	step step
	why  error // to give up

	// To send on: the task with what the next attempt must know, and whether
	// this one was counted as failed.
	task    task.Task
	counted bool
}

const (
	// A retry waits for retryMin after the first failed attempt, and twice as
	// long after each further one, up to retryMax. With the default of ten
	// retries that is 17 minutes in all: what a handler needs may be away for
	// ten minutes, such as while a host is upgraded, and no task is given up.
	retryMin = time.Second
	retryMax = 10 * time.Minute

	// A task that ended with Later waits for a quarter of its age, from
	// laterMin to laterMax: those attempts are not counted, so the age stands
	// for their number. laterMax is short, since all tasks should be done
	// within a minute after the handler works again.
	laterMin = time.Second
	laterMax = 16 * time.Second

	// maxLegs is how many waiting queues a retry goes through. See legs.
	maxLegs = 3
)

// leastDeliveries is the least limit of deliveries that a worker keeps to, since
// RabbitMQ before 4.3 counts also that a task was returned to its queue when a
// worker stopped; see maxReturns. With a smaller limit only the broker gives up.
const leastDeliveries = 1 + maxReturns

// before decides what to do with a task that has arrived. The broker has
// delivered it that often.
func before(t task.Task, deliveries, limit int64, now time.Time) decision {
	switch {
	case deliveries > max(limit, leastDeliveries):
		return decision{step: giveUp, why: fmt.Errorf("its workers died or lost their connection, %d times in all (--delivery-limit)", deliveries-1)}
	case !t.Expires.IsZero() && !now.Before(t.Expires):
		return decision{step: giveUp, why: fmt.Errorf("it expired before its attempt %d began", t.Attempt())}
	case now.Before(t.NotBefore):
		return decision{step: sendOn, task: t}
	}
	return decision{step: attempt}
}

// after decides what to do with a task after an attempt with the outcome o. The
// error is the attempt's. The jitter is from 0 to 1.
func after(t task.Task, o Outcome, err error, retries int64, now time.Time, jitter float64) decision {
	switch o {
	case Done:
		return decision{step: finish}
	case Never:
		return decision{step: giveUp, why: err}
	case Later, Misconfigured:
		wait := min(max(now.Sub(t.Accepted)/4, laterMin), laterMax)
		t.NotBefore = now.Add(legs(wait/2 + time.Duration(jitter*float64(wait/2))))
		return decision{step: sendOn, task: t}
	case Failed:
		if t.Failed >= retries {
			return decision{step: giveUp, why: fmt.Errorf("attempt %d of %d failed: %w", t.Attempt(), retries+1, err)}
		}
		t.Failed++
		t.NotBefore = now.Add(retryWait(t.Failed, jitter))
		if !t.Expires.IsZero() && !t.NotBefore.Before(t.Expires) {
			return decision{step: giveUp, why: fmt.Errorf("attempt %d failed, and the task expires before the next one: %w", t.Failed, err)}
		}
		return decision{step: sendOn, task: t, counted: true}
	}
	return decision{step: giveBack}
}

// retryWait returns how long to wait before the next attempt when that many
// have failed. The jitter only adds, so that the waits are not shorter in all
// than retryMin says.
func retryWait(failed int64, jitter float64) time.Duration {
	wait := retryMax
	if failed < 20 { // a larger shift would overflow
		wait = min(retryMin<<(failed-1), retryMax)
	}
	return legs(min(wait+time.Duration(jitter*float64(wait/2)), retryMax))
}

// legs rounds a wait down so that it takes at most maxLegs waiting queues, one
// after the other: at the broker each holds a task for a power of four seconds.
// The minimum is a second.
func legs(wait time.Duration) (sum time.Duration) {
	leg := time.Second
	for 4*leg <= wait {
		leg *= 4
	}
	for range maxLegs {
		for leg > time.Second && sum+leg > wait {
			leg /= 4
		}
		if sum+leg <= wait {
			sum += leg
		}
	}
	return max(sum, time.Second)
}

// maxReturns is how often a task may be returned to the queue. RabbitMQ before
// 4.3 counts each return, and makes a dead letter of a task that was returned
// more often than the delivery limit of its queue, which is at least one.
const maxReturns = 1

// mayReturn reports whether a task whose handling a stop has cut short may be
// returned to the queue. Otherwise it is published again. deliveries is how
// often the broker has delivered it.
func mayReturn(deliveries int64) bool { return deliveries <= maxReturns }

// told returns the reason for which a task is given up, and apart from it what
// the handler wrote to its standard error.
func told(why error) (reason, said string) {
	if e, ok := errors.AsType[*Error](why); ok {
		said = e.Said
	}
	return why.Error(), said
}
