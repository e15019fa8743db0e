package rabbit

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/tally"
	"github.com/revq/revq/internal/task"
)

// A Connection is what is known of the connection for one purpose.
type Connection struct {
	Role  string // the purpose
	Err   error  // why there is no session; nil if there is one
	Ended int64  // how many sessions have ended
}

func (l *link) connection() Connection {
	return Connection{Role: l.role, Err: l.Ready(), Ended: l.ended.Load()}
}

// Connections returns the state of the publisher's connections.
func (p *Publisher) Connections() []Connection {
	var all []Connection
	for _, l := range p.lanes {
		all = append(all, l.link.connection())
	}
	return all
}

// Connections returns the state of the consumer's connection.
func (c *Consumer) Connections() []Connection { return []Connection{c.link.connection()} }

// Connections returns the state of the reader's connection, without those of
// histories.
func (r *Reader) Connections() []Connection { return []Connection{r.link.connection()} }

// Blocked reports whether the broker takes no messages, since it is short of
// memory or disk space.
func (p *Publisher) Blocked() bool { return p.shared.blocked.Load() > 0 }

// InFlight returns how many messages wait for the broker's confirmation.
func (p *Publisher) InFlight() (n int) {
	for _, l := range p.lanes {
		if pipe := l.pipe.Load(); pipe != nil {
			pipe.mu.Lock()
			n += len(pipe.waiting) + len(pipe.sent)
			pipe.mu.Unlock()
		}
	}
	return n
}

// A kind is what a message is about.
type kind int

const (
	taskKind kind = iota
	resultKind
	deadKind
	kinds
)

var kindNames = [kinds]string{"task", "results", "dead_letter"}

func kindOf(key string) kind {
	switch {
	case key == resultsKey:
		return resultKind
	case strings.HasPrefix(key, deadKey):
		return deadKind
	}
	return taskKind
}

// answers are what publications were answered with. The first one is nil, and
// any other error counts as the last one.
var answers = [...]struct {
	err  error
	name string
}{
	{nil, "confirmed"}, {ErrUnroutable, "unroutable"}, {ErrRefused, "refused"}, {ErrTimeout, "timeout"},
	{ErrBlocked, "blocked"}, {ErrLost, "lost"}, {ErrBusy, "busy"}, {task.ErrNoQueue, "no_queue"},
	{ErrNoWaiting, "no_waiting"}, {ErrNotConnected, "not_connected"},
}

// counted is what became of the publications of one kind.
type counted struct {
	timeout  time.Duration // the ConfirmTimeout
	answered [len(answers)]atomic.Int64
	times    *tally.Times // of the confirmed ones
	refusal  atomic.Pointer[Refusal]
}

// A Refusal is a message that the broker refused for its queue, since the queue
// is full or not available.
type Refusal struct {
	Queue string // its name at the broker
	At    time.Time
}

// Refused returns the last task that the broker refused, if it refused one.
func (p *Publisher) Refused() (Refusal, bool) {
	if last := p.counts[taskKind].refusal.Load(); last != nil {
		return *last, true
	}
	return Refusal{}, false
}

// queueOfRoute returns the name of the queue that a task is published to.
func queueOfRoute(exchange, key string) string {
	if exchange == WaitExchange {
		seconds, _, _ := strings.Cut(key, ".")
		return waitQueue + seconds
	}
	return TasksQueue + strings.TrimPrefix(key, tasksKey)
}

func newCounts(cfg Config) (all [kinds]*counted) {
	for i := range all {
		all[i] = &counted{timeout: cfg.ConfirmTimeout, times: tally.NewTimes(tally.Quick)}
	}
	return all
}

// count counts the answer to a publication that has its deadline then.
func (c *counted) count(err error, deadline time.Time) {
	if c == nil {
		return // a probe
	}
	if err == nil {
		c.answered[0].Add(1)
		c.times.Add(c.timeout - time.Until(deadline))
		return
	}
	i := 1
	for i < len(answers)-1 && !errors.Is(err, answers[i].err) {
		i++
	}
	c.answered[i].Add(1)
}

// Published calls each with every kind of message and result, and how many
// messages of that kind had that result.
func (p *Publisher) Published(each func(kind, result string, messages int64)) {
	for kind, counts := range p.counts {
		for i, answer := range answers {
			each(kindNames[kind], answer.name, counts.answered[i].Load())
		}
	}
}

// ConfirmTimes calls each with every kind of message, and how long the broker
// took to confirm messages of that kind.
func (p *Publisher) ConfirmTimes(each func(kind string, times tally.Snapshot)) {
	for kind, counts := range p.counts {
		each(kindNames[kind], counts.times.Snapshot())
	}
}

// A Depth is what the broker says of a queue.
type Depth struct {
	Queue     string // its name at the broker
	Of        string // the name of the queue of tasks; "" for other queues
	Waiting   bool   // tasks wait there for their delay or a retry; it has no consumers
	Tasks     int    // that wait and are not on loan
	Consumers int
}

// ErrSilent means that the broker is connected but did not answer a question.
var ErrSilent = fmt.Errorf("the broker is connected, and has not answered a question for %v", depthPatience)

const (
	// depthAge is how old a Depth may be: many who ask at once cost the broker
	// one look.
	depthAge = 2 * time.Second

	// depthPatience is how long Depths waits for the broker.
	depthPatience = time.Second
)

// depths looks at queues over the connection of a link.
type depths struct {
	mu      sync.Mutex
	looking chan struct{} // closed when the look ends; nil if there is none
	at      time.Time     // of the last look that has ended
	known   []Depth
}

// Depths returns what the broker says of the default queue of tasks, of that of
// dead letters, and of those in which tasks wait, as far as this user may look
// at them. It says nothing while it takes no messages. The error is ErrSilent.
func (p *Publisher) Depths() ([]Depth, error) {
	if p.Blocked() {
		return nil, nil // it would not answer
	}
	return p.lanes[0].link.lookAt(TasksQueue)
}

// Depths is as that of a Publisher, for the queue that tasks are taken from.
func (c *Consumer) Depths() ([]Depth, error) {
	return c.link.lookAt(TasksQueueOf(c.link.cfg.Topology.Queue))
}

// lookAt looks at a queue of tasks and at those that all queues share.
func (l *link) lookAt(tasks string) ([]Depth, error) {
	d := &l.depths
	d.mu.Lock()
	if d.looking == nil && time.Since(d.at) > depthAge {
		d.looking = make(chan struct{})
		// The end of the session ends this goroutine, if the broker does not answer.
		go func() {
			queues := []string{tasks, DeadQueue}
			for _, q := range waitQueues() {
				queues = append(queues, q.name)
			}
			s := l.session.Load()
			known, at := s.depths(queues), time.Now()
			if s == nil || s.ctx.Err() != nil {
				at = time.Time{} // there is no answer yet: whoever asks next looks again
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			close(d.looking)
			d.looking, d.at, d.known = nil, at, known
		}()
	}
	looking := d.looking
	d.mu.Unlock()
	if looking != nil {
		late := time.NewTimer(depthPatience)
		defer late.Stop()
		select {
		case <-looking:
		case <-late.C:
			return nil, ErrSilent
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.known, nil
}

// depths returns what the broker says of those of the queues that it shows. s
// may be nil.
func (s *session) depths(queues []string) (known []Depth) {
	for _, name := range queues {
		if s == nil || s.ctx.Err() != nil {
			return nil
		}
		if depth, err := s.depth(name); err == nil {
			known = append(known, depth)
		}
	}
	return known
}

func (s *session) depth(queue string) (d Depth, err error) {
	err = s.onChannel(func(ch *amqp.Channel) error {
		q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
		d = Depth{Queue: queue, Of: queueOf(queue), Waiting: strings.HasPrefix(queue, waitQueue), Tasks: q.Messages, Consumers: q.Consumers}
		return err
	})
	return d, err
}
