//go:build linux

package e2e

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/daemon/daemontest"
	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/wire"
)

var (
	faultSeed = flag.Uint64("fault.seed", 0, "seed of TestFaults; 0 for one by the clock")
	faultLong = flag.Bool("fault.long", false, "TestFaults for ten minutes (give -timeout 20m) in place of each fault once")
)

const (
	faultTime = 10 * time.Minute // of the long form, in which
	minFaults = 100              // and
	minTasks  = 100_000          // are expected

	// faultTasks is the maximum length of the queue, which is soon full.
	faultTasks = 1000

	// heartbeat is short, so that a peer that hangs is disconnected in seconds:
	// by the daemons after one and a half intervals, by the broker after two to
	// three.
	heartbeat = 2 * time.Second

	// postLimit is what no request may take longer, beyond the time for which
	// the API itself was away: its confirm timeout of 1.5 s and slack for a
	// machine that has just started a broker beside it.
	postLimit = 1500*time.Millisecond + 8*time.Second

	// settleLimit is the time limit, after the last fault, for every result to
	// reach every listener.
	settleLimit = 90 * time.Second
)

// Processes die, hang and are told to stop, at any moment and under load. Each
// accepted task has one result at every listener that resumes. Nothing is
// accepted that the broker cannot have confirmed, and no request hangs.
func TestFaults(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	t.Parallel()
	seed := *faultSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) % 1_000_000_000
	}
	t.Logf("seed %d: again with -fault.seed %d (which repeats the faults, not what the machine makes of them)", seed, seed)
	began := time.Now()
	r := startTrial(t, seed)
	inflict(r)

	r.posters.stop()
	r.settle()
	r.judge()
	t.Log(r.summary(seed, time.Since(began)))
	if *faultLong && (r.inflicted() < minFaults || len(r.posters.accepted) < minTasks) {
		t.Errorf("%d faults and %d tasks accepted; want %d and %d at least", r.inflicted(), len(r.posters.accepted), minFaults, minTasks)
	}
}

// inflict goes through all faults in random order; in the long form again and
// again.
func inflict(r *trial) {
	for began := time.Now(); ; {
		for _, i := range r.random.Perm(len(faults)) {
			r.moment(0, 800*time.Millisecond)
			r.note("%s", faults[i].name)
			r.counts[i]++
			faults[i].inflict(r)
			if r.t.Failed() || *faultLong && time.Since(began) > faultTime {
				return
			}
		}
		if !*faultLong {
			return
		}
	}
}

// A trial is a whole system with its clients.
type trial struct {
	*system
	t      *testing.T
	random *rand.Rand
	began  time.Time
	counts []int // by fault

	broker    rabbittest.Evaluator // a node that tells what is in the queues
	postPause time.Duration        // how long a poster waits at most between two posts

	apis, sockets, workers []*unit
	handlers               []*unit // workers whose tasks programs handle
	programs               string  // the directory of these programs
	brokerAway             outage

	posters   *posters
	listeners []*follower
	requeued  map[string]int // how often each dead letter was
	givenUp   int
}

// newTrial returns a trial of which nothing runs yet.
func newTrial(t *testing.T, s *system, seed uint64) *trial {
	s.url += fmt.Sprintf("?heartbeat=%d", int(heartbeat.Seconds()))
	return &trial{
		system: s, t: t, random: rand.New(rand.NewPCG(seed, 0)), began: time.Now(), counts: make([]int, len(faults)),
		broker: s.node, postPause: faultPostPause,
		requeued: make(map[string]int),
	}
}

// startTrial starts everything, with listeners that are connected before the
// first task.
func startTrial(t *testing.T, seed uint64) *trial {
	t.Helper()
	r := newTrial(t, prepare(t, rabbittest.StartNode(t)), seed)
	ctx := await.Context(t)
	cfg := r.brokerConfig()
	cfg.Topology.MaxTasks = faultTasks
	if _, err := rabbit.Setup(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	r.startPrograms()
	if err := r.node.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	r.startClients(4)
	return r
}

// startClients starts the daemons, then listeners, and then posters.
func (r *trial) startClients(workers int) {
	r.t.Helper()
	for range 2 {
		r.apis = append(r.apis, r.newUnit("revq-api", true))
		// Both sides soon detect listeners that are gone and servers that hang.
		r.sockets = append(r.sockets, r.newUnit("revq-socket", true, "--ping-interval", "1s"))
	}
	for range workers {
		r.workers = append(r.workers, r.newUnit("revq-worker", false, "--pause", "0s", "--concurrency", "5"))
	}
	for _, u := range r.units() {
		u.start()
	}
	for _, u := range r.units() {
		u.daemon.WaitReady(r.t)
	}
	for i := range 4 {
		r.listeners = append(r.listeners, r.follow(i))
	}
	if len(r.handlers) > 0 {
		r.listeners = append(r.listeners, r.follow(4, filterQueue, persistentQueue))
	}
	r.posters = r.startPosters()
}

func (r *trial) units() []*unit { return slices.Concat(r.apis, r.sockets, r.workers, r.handlers) }

// queues returns the names of the queues that posters send to.
func (r *trial) queues() []string {
	if len(r.handlers) > 0 {
		return []string{wire.DefaultQueue, filterQueue, persistentQueue}
	}
	return []string{wire.DefaultQueue}
}

func (r *system) brokerConfig() rabbit.Config {
	cfg := rabbit.DefaultConfig("revq-test")
	cfg.URLs = strings.Split(r.url, ",")
	return cfg
}

// note logs with the time since the beginning, to compare with the log lines of
// the daemons.
func (r *trial) note(format string, args ...any) {
	r.t.Logf("%s %6.2fs "+format, append([]any{time.Now().UTC().Format("15:04:05.000"), time.Since(r.began).Seconds()}, args...)...)
}

// moment waits for a random time: the test is about when faults happen and how
// long they last.
func (r *trial) moment(shortest, longest time.Duration) {
	<-time.After(shortest + time.Duration(r.random.Int64N(int64(longest-shortest))))
}

// settle waits until everything is up and every result has arrived.
func (r *trial) settle() {
	r.t.Helper()
	began := time.Now()
	for _, u := range r.units() {
		u.daemon.WaitReady(r.t)
	}
	ticker := time.NewTicker(10 * await.Every)
	defer ticker.Stop()
	for !r.arrived() && time.Since(began) < settleLimit {
		if r.wronglyGivenUp() {
			r.requeueDead()
		}
		<-ticker.C
	}
	r.note("settled after %v", time.Since(began).Round(time.Millisecond))
	for _, queue := range r.queues() {
		await.True(r.t, "all tasks of "+queue+" are done", func() bool {
			return rabbittest.QueueLength(r.t, r.broker, r.vhostURL(), rabbit.TasksQueueOf(queue)) == 0
		})
	}
	// Repetitions that were published before arrive before this one.
	await.True(r.t, "a last task is accepted", func() bool {
		return post(r.t, r.apis[0].site, "application/json", submission("the-end", "the-end")).status == http.StatusAccepted
	})
	for _, f := range r.listeners {
		if len(f.queues) == 0 {
			await.True(r.t, f.name+" gets the last result", func() bool { return f.has("the-end") })
		}
	}
}

// wronglyGivenUp reports whether a listener was told that a task is given up
// that can be done, and that was not requeued since.
func (r *trial) wronglyGivenUp() bool {
	f := r.listeners[0]
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, times := range f.failed {
		if p, ok := r.posters.accepted[id]; ok && p.result() != "" && times > r.requeued[id] {
			return true
		}
	}
	return false
}

// requeueDead requeues the dead letters of tasks that can be done, as `revq dead
// requeue` does: those whose workers died too often.
func (r *trial) requeueDead() {
	ctx := await.Context(r.t)
	err := rabbit.DeadLetters(ctx, r.brokerConfig(), func(l rabbit.DeadLetter) (rabbit.Fate, error) {
		if !lostItsWorkers(l) || r.posters.accepted[l.Task.ID].result() == "" {
			return rabbit.Keep, nil
		}
		r.requeued[l.Task.ID]++
		return rabbit.Requeue, nil
	})
	if err != nil {
		r.t.Errorf("requeue dead letters: %v", err)
	}
}

// lostItsWorkers reports whether the workers of a task died or lost their
// connections too often. One of them may have published its result before.
func lostItsWorkers(l rabbit.DeadLetter) bool {
	return l.Reason == "delivery_limit" || strings.Contains(l.Error, "died or lost their connection")
}

// vhostURL is the broker's URL without parameters.
func (r *trial) vhostURL() string {
	url, _, _ := strings.Cut(r.url, "?")
	return url
}

func (r *trial) arrived() bool {
	for _, f := range r.listeners {
		if len(f.missing(r.posters.accepted)) > 0 {
			return false
		}
	}
	return true
}

// judge fails the test for everything that was promised and not kept.
func (r *trial) judge() {
	const shown = 5 // of each kind
	var wrong []string
	endings := r.storedEndings()
	toldDead := r.judgeRequeued(endings)
	for _, f := range r.listeners {
		f.mu.Lock()
		for id, p := range r.posters.accepted {
			want := p.result()
			if got, ok := f.got[id]; ok && got.Text != want {
				r.t.Errorf("%s: result %q of text %q", f.name, got.Text, p.text)
			}
			failed := toldDead[id]
			if want == "" {
				failed++
			}
			if f.wants(p) && f.failed[id] != failed && len(f.gaps) == 0 {
				r.t.Errorf("%s was told %d times that %s (%q) is given up, want %d", f.name, f.failed[id], id, p.text, failed)
				wrong = append(wrong, id)
			}
		}
		if f.err != nil {
			r.t.Errorf("%s ended: %v", f.name, f.err)
		}
		for _, gap := range f.gaps {
			r.t.Errorf("%s was told of a gap: %s", f.name, gap)
		}
		for _, m := range f.again {
			first := f.got[m.ID].Offset
			if resultsBetween(endings, first, m.Offset) > feed.DefaultConfig().Backlog { // see internal/socket/README.md, Repetitions
				f.late++
				continue
			}
			if f.twice++; f.twice <= shown {
				r.t.Errorf("%s got a result twice: %s at %d and %d", f.name, m.ID, first, m.Offset)
				wrong = append(wrong, m.ID)
			}
		}
		f.mu.Unlock()
		for _, id := range f.missing(r.posters.accepted) {
			if wrong = append(wrong, id); len(wrong) < shown {
				r.t.Errorf("%s: no result for %s, whose text was accepted at %s", f.name, id, r.posters.accepted[id].at.UTC().Format("15:04:05.000"))
			}
		}
	}
	r.judgeGivenUp()
	p := r.posters
	for _, impossible := range p.impossible[:min(shown, len(p.impossible))] {
		r.t.Errorf("accepted while the broker was away: %s", impossible)
	}
	if p.longest > postLimit {
		r.t.Errorf("a request took %v, want %v at most: %s", p.longest, postLimit, p.longestOf)
	}
	if len(wrong) > 0 || r.t.Failed() {
		r.explain(wrong)
	}
}

// storedEndings is endings if something has to be judged by them.
func (r *trial) storedEndings() map[string][]ending {
	needed := len(r.requeued) > 0
	for _, f := range r.listeners {
		f.mu.Lock()
		needed = needed || len(f.again) > 0
		f.mu.Unlock()
	}
	if !needed {
		return nil
	}
	endings, err := r.endings(await.Context(r.t))
	if err != nil {
		r.t.Errorf("read the stream: %v", err)
	}
	return endings
}

// judgeRequeued fails the test for each task that was given up and requeued, and
// of which the stream does not say so. It returns how often listeners are told
// of each.
func (r *trial) judgeRequeued(endings map[string][]ending) map[string]int {
	times := make(map[string]int)
	for id, n := range r.requeued {
		stored, told := timesGivenUp(endings[id])
		if stored == 0 || stored > n { // copies of a task may be requeued one after the other
			r.t.Errorf("the stream says %d times that %s is given up, which was requeued %d times", stored, id, n)
		}
		times[id] = told
	}
	return times
}

// explain logs what helps to find out what went wrong: how listeners fared, and
// where in the stream ids are.
func (r *trial) explain(ids []string) {
	for _, f := range r.listeners {
		f.mu.Lock()
		r.t.Logf("%s:\n%s", f.name, strings.Join(f.events, "\n"))
		f.mu.Unlock()
	}
	if len(ids) == 0 {
		return
	}
	ctx := await.Context(r.t)
	objects := []string{"revq.wait.1", "revq.wait.4"}
	for _, queue := range r.queues() {
		objects = append(objects, rabbit.TasksQueueOf(queue))
	}
	for _, queue := range objects {
		// What the broker is dead-lettering is in no other count.
		holds, err := r.broker.Eval(ctx, fmt.Sprintf(`{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<%q>>, queue, <<%q>>)),
			{ok, {_, O}, _} = ra:local_query(amqqueue:get_pid(Q), fun rabbit_fifo:overview/1),
			list_to_atom(lists:flatten(io_lib:format("~w", [maps:with([num_messages, num_checked_out, num_discarded, num_discard_checked_out], O)])))`,
			r.vhost, queue))
		r.t.Logf("the queue %s holds %s %v", queue, holds, err)
	}
	endings, err := r.endings(ctx)
	if err != nil {
		r.t.Logf("read the stream: %v", err)
	}
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		r.t.Logf("%s is in the stream: %+v", id, endings[id])
	}
}

func (r *trial) inflicted() (n int) {
	for _, count := range r.counts {
		n += count
	}
	return n
}

func (r *trial) summary(seed uint64, took time.Duration) string {
	var byKind []string
	for i, f := range faults {
		byKind = append(byKind, fmt.Sprintf("%d %s", r.counts[i], f.name))
	}
	lost, twice, late, gaps, connections := 0, 0, 0, 0, 0
	for _, f := range r.listeners {
		f.mu.Lock()
		twice += f.twice
		late += f.late
		gaps += len(f.gaps)
		connections += f.connections
		f.mu.Unlock()
		lost += len(f.missing(r.posters.accepted))
	}
	p := r.posters
	return fmt.Sprintf("seed %d: %d tasks accepted, %d lost, %d twice, %d more beyond the backlog, %d gaps told at %d listeners (%d connections); %d faults: %s; "+
		"%d requests refused, %d broken off, longest %v; %d accepted without a broker; %d given up; %d dead letters requeued; %v",
		seed, len(p.accepted), lost, twice, late, gaps, len(r.listeners), connections, r.inflicted(), strings.Join(byKind, ", "),
		p.refused, p.broken, p.longest.Round(time.Millisecond), len(p.impossible), r.givenUp, len(r.requeued), took.Round(time.Second))
}

// A unit is a program that is started again whenever it ends, as systemd does
// it.
type unit struct {
	r      *trial
	name   string
	args   []string
	site   string // HOST:PORT, if it serves
	socket []daemontest.Socket
	daemon *daemontest.Daemon
	away   outage // it may not answer

	accepted rhythm // of an API's answers 202
}

func (r *trial) newUnit(name string, serves bool, args ...string) *unit {
	u := &unit{r: r, name: name, args: args}
	if serves {
		ln, addr := daemontest.Listen(r.t)
		u.socket, u.site = []daemontest.Socket{ln}, addr
	}
	return u
}

// start starts the program and waits until it is far enough to be told to stop
// again. It need not be ready: the broker may be away.
func (u *unit) start() {
	u.r.t.Helper()
	u.daemon = u.r.startDaemon(u.r.t, u.name, u.socket, u.args...)
	if u.site != "" {
		get(u.r.t, u.site, wire.HealthPath) // which waits in the socket
		return
	}
	u.daemon.WaitStates(u.r.t, 1)
}
