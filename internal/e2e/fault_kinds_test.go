//go:build linux

package e2e

import (
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/rabbit/rabbittest"
)

// A fault is over when inflict returns; its consequences may not be.
type fault struct {
	name    string
	inflict func(*trial)
}

// faults are all faults of the test. The last ones are of workers whose tasks
// programs handle.
var faults = []fault{
	{"api killed", func(r *trial) { r.any(r.apis).kill() }},
	{"socket killed", func(r *trial) { r.any(r.sockets).kill() }},
	{"worker killed", func(r *trial) { r.any(r.workers).kill() }},
	{"api told to stop", func(r *trial) { r.any(r.apis).terminate() }},
	{"socket told to stop", func(r *trial) { r.any(r.sockets).terminate() }},
	{"worker told to stop", func(r *trial) { r.any(r.workers).terminate() }},
	{"api hung", func(r *trial) { r.any(r.apis).suspend(aMoment) }},
	{"socket hung", func(r *trial) { r.any(r.sockets).suspend(aMoment) }},
	{"worker hung", func(r *trial) { r.any(r.workers).suspend(aMoment) }},
	{"broker hung", func(r *trial) { r.suspendBroker(aMoment) }},
	{"hung beyond the heartbeat", func(r *trial) {
		if i := r.random.IntN(4); i < 3 {
			r.any([][]*unit{r.apis, r.sockets, slices.Concat(r.workers, r.handlers)}[i]).suspend(beyondHeartbeat)
		} else {
			r.suspendBroker(beyondHeartbeat)
		}
	}},
	{"broker hung while all connect", func(r *trial) {
		r.cutConnections()
		r.last(span{0, 300 * time.Millisecond})
		r.suspendBroker(span{heartbeat, 3 * heartbeat})
	}},
	{"broker killed", (*trial).killBroker},
	{"connections cut", (*trial).cutConnections},
	{"memory alarm", (*trial).alarm},
	{"queue full", (*trial).fillQueue},
	{"handler killed", func(r *trial) { r.any(r.handlers).kill() }},
	{"handler told to stop", func(r *trial) { r.any(r.handlers).terminate() }},
	{"handler hung", func(r *trial) { r.any(r.handlers).suspend(aMoment) }},
	{"programs killed", (*trial).killPrograms},
	{"programs away", (*trial).programsAway},
	{"program missing", (*trial).programMissing},
}

// A span is the minimum and maximum of how long something lasts.
type span struct{ shortest, longest time.Duration }

var (
	aMoment         = span{50 * time.Millisecond, time.Second}
	beyondHeartbeat = span{2 * heartbeat, 4 * heartbeat}
)

// last waits for a time within the span.
func (r *trial) last(s span) { r.moment(s.shortest, s.longest) }

func (r *trial) any(units []*unit) *unit { return units[r.random.IntN(len(units))] }

func (u *unit) kill() {
	u.r.t.Helper()
	u.r.note("  kill %s %d", u.name, u.daemon.Pid())
	u.away.begin()
	defer u.away.end()
	u.daemon.Signal(u.r.t, syscall.SIGKILL)
	u.daemon.Wait(u.r.t)
	u.start()
}

func (u *unit) terminate() {
	u.r.t.Helper()
	u.away.begin()
	defer u.away.end()
	u.r.note("  %s %d ended after %v", u.name, u.daemon.Pid(), u.daemon.Terminate(u.r.t).Round(time.Millisecond))
	u.start()
}

func (u *unit) suspend(s span) {
	u.r.t.Helper()
	u.away.begin()
	defer u.away.end()
	u.daemon.Signal(u.r.t, syscall.SIGSTOP)
	began := time.Now()
	u.r.last(s)
	u.daemon.Signal(u.r.t, syscall.SIGCONT)
	u.r.note("  %s %d hung for %v", u.name, u.daemon.Pid(), time.Since(began).Round(time.Millisecond))
}

// suspendBroker makes the broker hang, with its connections open.
func (r *trial) suspendBroker(s span) {
	r.t.Helper()
	resume := r.system.suspendBroker(r.t)
	r.whileBrokerIsAway(s)
	resume()
}

func (r *trial) killBroker() {
	r.t.Helper()
	r.node.Kill()
	r.whileBrokerIsAway(aMoment)
	r.startBroker(r.t)
}

// whileBrokerIsAway waits for a time in which nothing can be confirmed, and
// sometimes inflicts another fault.
func (r *trial) whileBrokerIsAway(s span) {
	r.t.Helper()
	r.brokerAway.begin()
	defer r.brokerAway.end()
	began := time.Now()
	r.last(s)
	if r.random.IntN(2) == 0 {
		r.any(r.units()).kill()
		r.last(aMoment)
	}
	r.note("  broker away for %v", time.Since(began).Round(time.Millisecond))
}

func (r *trial) cutConnections() {
	r.t.Helper()
	r.note("  %d cut", rabbittest.CloseConnections(r.t, r.node, r.vhostURL(), ""))
}

func (r *trial) alarm() {
	r.t.Helper()
	rabbittest.SetAlarm(r.t, r.node)
	r.last(span{100 * time.Millisecond, 2 * time.Second})
	rabbittest.ClearAlarm(r.t, r.node)
}

// fillQueue keeps all workers from working until the broker refuses more.
func (r *trial) fillQueue() {
	r.t.Helper()
	for _, w := range r.workers {
		w.daemon.Terminate(r.t)
	}
	full := r.posters.refusedFull.Load()
	began := time.Now()
	await.True(r.t, "tasks are refused because the queue is full", func() bool { return r.posters.refusedFull.Load() > full+3 })
	r.note("  full after %v with %d tasks", time.Since(began).Round(time.Millisecond),
		rabbittest.QueueLength(r.t, r.node, r.vhostURL(), rabbit.TasksQueue))
	for _, w := range r.workers {
		w.start()
	}
}

// An outage records when something was away.
type outage struct {
	mu     sync.Mutex
	since  time.Time // zero while it is there
	before []interval
}

type interval struct{ from, to time.Time }

func (o *outage) begin() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.since = time.Now()
}

func (o *outage) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.before = append(o.before, interval{o.since, time.Now()})
	o.since = time.Time{}
}

// allSince reports whether it has been away from then until now.
func (o *outage) allSince(then time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.since.IsZero() && o.since.Before(then)
}

// within returns how much of the time from then until now it was away.
func (o *outage) within(then, now time.Time) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	var sum time.Duration
	all := o.before
	if !o.since.IsZero() {
		all = append(slices.Clip(all), interval{o.since, now})
	}
	for _, i := range all {
		from, to := i.from, i.to
		if from.Before(then) {
			from = then
		}
		if to.After(now) {
			to = now
		}
		sum += max(0, to.Sub(from))
	}
	return sum
}
