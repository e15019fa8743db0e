package rabbit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// A DeadLetter is a task that was dead-lettered.
type DeadLetter struct {
	// Task is the task, as far as the message can be read.
	Task task.Task

	// Invalid is why the message is not a valid task; nil if it is one.
	Invalid error

	// Reason is the broker's word: delivery_limit if too many attempts failed,
	// rejected if no attempt could succeed.
	Reason string

	// Error is the handler's error, and Said the end of what it wrote to its
	// standard error, if the worker dead-lettered the task itself.
	Error, Said string

	// Died is when the task was dead-lettered, and Count how often that has
	// happened.
	Died  time.Time
	Count int64
}

// A Fate is what to do with a dead letter.
type Fate int

// The fates.
const (
	Keep    Fate = iota // leave it where it is
	Requeue             // put it back into the queue of tasks, under its id
	Purge               // remove it for good
)

// What a worker writes when it dead-letters a task itself.
const (
	diedHeader  = "revq-died"
	errorHeader = "revq-error"
	saidHeader  = "revq-said"

	// deathsHeader is how often the task was requeued after it had been given
	// up.
	deathsHeader = "revq-deaths"

	// rejected is the broker's word for a task that a worker refused.
	rejected = "rejected"

	// maxError and maxSaid bound the error and the end of standard error in
	// their headers, in bytes. All headers of a message must fit into one
	// frame, and a broker may limit that to 4 KiB.
	maxError = 1 << 10
	maxSaid  = 2 << 10
)

// settleTimeout bounds the requeueing of one dead letter.
const settleTimeout = 10 * time.Second

// DeadLetters calls decide with each dead letter that is there when it begins,
// and does what decide returns. It stops at the first error of decide and
// returns it. A requeued letter is removed only after the broker has confirmed
// it as a task: in the worst case it is there twice.
//
// A task may have died twice of the same: if its worker dies, or its connection is
// lost, before the broker knows that the task was given up, the task is attempted
// and given up again. Listeners are told once. DeadLetters removes such a second
// letter without asking.
//
// While DeadLetters runs, others do not see the letters that it keeps.
// Afterwards the broker puts these at the end of the queue. The oldest letter
// stays the first one as long as each call looks at all letters.
func DeadLetters(ctx context.Context, cfg Config, decide func(DeadLetter) (Fate, error)) error {
	s, err := openAny(ctx, cfg, "dead letters")
	if err != nil {
		return err
	}
	defer s.close() // has the broker return the kept letters to the queue
	defer context.AfterFunc(ctx, s.close)()
	err = s.deadLetters(ctx, decide)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx) // that is why it failed
	}
	return err
}

func (s *session) deadLetters(ctx context.Context, decide func(DeadLetter) (Fate, error)) error {
	if err := s.ch.Confirm(false); err != nil {
		return fmt.Errorf("ask for confirmations: %w", err)
	}
	returns := s.ch.NotifyReturn(make(chan amqp.Return, 1))
	seen := make(map[task.Digest]bool)
	// A requeued letter may be back before all others were read, so count
	// those that are there at first.
	for n, atFirst := 0, 1; n < atFirst; n++ {
		d, ok, err := s.ch.Get(DeadQueue, false)
		var refused *amqp.Error
		switch {
		case errors.As(err, &refused) && refused.Code == amqp.NotFound:
			return fmt.Errorf("the broker has no queue %s: see `revq setup`", DeadQueue)
		case err != nil:
			return fmt.Errorf("read %s: %w", DeadQueue, err)
		case !ok:
			return nil
		}
		if n == 0 {
			atFirst += int(d.MessageCount)
		}
		letter, fate := decodeDead(d), Purge
		if death := letter.identity(); death == 0 || !seen[death] {
			seen[death] = true
			if fate, err = decide(letter); err != nil {
				return err
			}
		}
		if fate == Requeue {
			if err := requeue(ctx, s, d, returns); err != nil {
				return fmt.Errorf("requeue %q: %w; it is still in %s", d.MessageId, err, DeadQueue)
			}
		}
		if fate != Keep {
			if err := d.Ack(false); err != nil {
				return fmt.Errorf("remove %q from %s: %w", d.MessageId, DeadQueue, err)
			}
		}
	}
	return nil
}

// identity is the same for all letters that one death of a task has left; 0 for
// a letter that is no valid task.
func (l DeadLetter) identity() task.Digest {
	if l.Invalid != nil {
		return 0
	}
	t := l.Task
	return task.DigestOf(fmt.Sprintf("%q %s %d %s", t.ID, t.Queue, t.Deaths, t.Text))
}

// ofThePast are the headers that a requeued task does not have: how it died,
// and what its earlier attempts left.
var ofThePast = []string{diedHeader, errorHeader, saidHeader, queueHeader, failedHeader, dueHeader, expiresHeader, carbonCopy}

// requeue publishes d as the task that it was, and waits for the confirmation.
func requeue(ctx context.Context, s *session, d amqp.Delivery, returns <-chan amqp.Return) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	headers := amqp.Table{}
	for name, value := range d.Headers {
		if !strings.HasPrefix(name, "x-") && !slices.Contains(ofThePast, name) {
			headers[name] = value
		}
	}
	headers[deathsHeader] = deaths(d.Headers) + 1
	queue := deadQueueOf(d.Headers)
	confirmation, err := s.ch.PublishWithDeferredConfirm(Exchange, tasksKeyOf(queue), true, false, amqp.Publishing{
		Headers:         headers,
		ContentType:     d.ContentType,
		ContentEncoding: d.ContentEncoding,
		DeliveryMode:    amqp.Persistent,
		MessageId:       d.MessageId,
		Timestamp:       d.Timestamp,
		AppId:           d.AppId,
		Body:            d.Body,
	})
	if err != nil {
		return err
	}
	acked, err := confirmation.WaitContext(ctx)
	if err != nil {
		return ErrTimeout
	}
	select {
	case <-returns: // comes before the confirmation
		return fmt.Errorf("%w, %s: run `%s`", task.ErrNoQueue, queue, Topology{Queue: queue}.setupCommand())
	default:
	}
	if !acked {
		return ErrRefused
	}
	return nil
}

// deadLookInterval is for how long a session believes what it saw of the queues
// of dead letters. A look takes a channel and about a millisecond, too much for
// each of thousands of dead letters.
const deadLookInterval = time.Second

// takeDead is take for a dead letter, once the queues of dead letters were seen.
func (p *pipeline) takeDead(pub *publication) error {
	go p.takeAfter(p.lookForDeadQueue(), pub)
	return nil
}

// lookForDeadQueue begins to look for the queues of dead letters, unless another
// look has not ended or has ended a moment ago.
func (p *pipeline) lookForDeadQueue() *access {
	for {
		last := p.dead.Load()
		if last != nil {
			select {
			case <-last.known:
				if time.Since(last.at) < deadLookInterval {
					return last
				}
			default:
				return last
			}
		}
		a := &access{known: make(chan struct{})}
		if !p.dead.CompareAndSwap(last, a) {
			continue
		}
		go func() {
			defer close(a.known)
			a.err = p.s.ensureDeadQueues(p.cfg.Topology, p.log)
			a.at = time.Now()
		}()
		return a
	}
}

// encodeDead returns t as the dead letter of a worker.
func encodeDead(t task.Task, reason, said string, died time.Time) amqp.Publishing {
	m := encodeTask(t)
	setQueue(m.Headers, t.Queue)
	m.Headers[errorHeader] = beginning(reason)
	if said != "" {
		m.Headers[saidHeader] = ending(said)
	}
	m.Headers[diedHeader] = died.UnixMicro()
	return m
}

// beginning returns as much of an error as a dead letter holds.
func beginning(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), maxError)], "\uFFFD")
}

// ending returns as much of standard error as a dead letter holds.
func ending(text string) string {
	return strings.ToValidUTF8(text[max(0, len(text)-maxSaid):], "\uFFFD")
}

// decodeDead reads what is known of a dead letter: what the worker wrote that
// gave it up, or the broker's newest x-death entry.
func decodeDead(d amqp.Delivery) DeadLetter {
	t, err := decodeTask(d, deadQueueOf(d.Headers))
	letter := DeadLetter{Task: t, Invalid: err}
	if d.MessageId == "" {
		letter.Task.ID = ""
	}
	if letter.Died = timeHeader(d.Headers, diedHeader); !letter.Died.IsZero() {
		letter.Reason, letter.Count = rejected, deaths(d.Headers)+1
		told, _ := d.Headers[errorHeader].(string)
		said, _ := d.Headers[saidHeader].(string)
		letter.Error, letter.Said = beginning(told), ending(said) // which others may have written
		return letter
	}
	death := newestDeath(d.Headers)
	letter.Reason, _ = death["reason"].(string)
	if death == nil {
		letter.Reason, _ = inStream(d.Headers, "reason")
	}
	letter.Died, _ = death["time"].(time.Time)
	letter.Count = deaths(d.Headers) + countHeader(death, "count")
	return letter
}

// inStream returns what a dead letter in a stream says of its death: a stream
// keeps no lists, so not x-death, but the broker repeats the first one, and from
// RabbitMQ 4.0 on the last one, in strings. A task that has waited died first of
// that.
func inStream(headers amqp.Table, what string) (string, bool) {
	for _, which := range []string{"x-last-death-", "x-first-death-"} {
		if s, ok := headers[which+what].(string); ok {
			return s, true
		}
	}
	return "", false
}

func deaths(headers amqp.Table) int64 { return countHeader(headers, deathsHeader) }

// isDead reports whether a message in the stream of results is a dead letter.
// One that was due when its queue was gone names the exchange that could not
// route it.
func isDead(d amqp.Delivery) bool {
	return d.Exchange == Exchange && d.RoutingKey == deadKey || d.Exchange == DueExchange
}

// decodeGivenUp returns what listeners are told of a dead letter. A task that is
// requeued and given up again is told again, so that counts in the digest.
func decodeGivenUp(d amqp.Delivery) (task.Result, error) {
	letter := decodeDead(d)
	r := task.Result{
		Kind:     task.GivenUp,
		ID:       d.MessageId,
		Queue:    letter.Task.Queue,
		Text:     letter.told(d.Exchange == DueExchange),
		Of:       task.DigestOf(letter.Task.Text),
		Accepted: letter.Task.Accepted,
		Done:     letter.Died,
		Trace:    letter.Task.Trace,
	}
	if n := deaths(d.Headers); n > 0 {
		r.Of = task.DigestOf(fmt.Sprintf("%d\x00%s", n, letter.Task.Text))
	}
	return r, wire.CheckID(r.ID)
}

// told is why the task was given up, for people. orphaned: its queue was gone
// when it was due.
func (l DeadLetter) told(orphaned bool) string {
	switch {
	case orphaned:
		return "its queue was removed while it waited"
	case l.Error != "":
		return l.Error
	case l.Invalid != nil:
		return "it is not a valid task: " + l.Invalid.Error()
	case l.Reason == "delivery_limit":
		return "too many attempts failed"
	case l.Reason == rejected:
		return "a worker refused it"
	}
	return "too many attempts failed, or a worker refused it"
}

// newestDeath returns what the broker wrote when it last dead-lettered the
// message; nil if it did not.
func newestDeath(headers amqp.Table) amqp.Table {
	deaths, _ := headers["x-death"].([]any)
	if len(deaths) == 0 {
		return nil
	}
	death, _ := deaths[0].(amqp.Table)
	return death
}

// deadQueueOf returns the name of the queue of tasks that a dead letter comes
// from: as its worker wrote, or as the broker did that dead-lettered it.
func deadQueueOf(headers amqp.Table) string {
	if _, ok := headers[queueHeader]; ok {
		return queueHeaderOf(headers)
	}
	from, ok := newestDeath(headers)["queue"].(string)
	if !ok {
		from, _ = inStream(headers, "queue")
	}
	return cmp.Or(queueOf(from), wire.DefaultQueue)
}
