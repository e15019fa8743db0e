package rabbit

import (
	"container/list"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/memory"
)

// ackInterval is the minimum time between two sendings of acknowledgements,
// unless many are waiting. Nobody waits for an acknowledgement, but each is an
// operation of the quorum queue with its own write to the disk. If the worker
// dies meanwhile, a few more tasks are done again.
const ackInterval = 10 * time.Millisecond

// loans are the deliveries of one session for which no answer was sent to the
// broker yet, in the order of their delivery tags.
//
// Acknowledgements within ackInterval are sent together. They are sent sooner
// when they are half of the prefetch, since the broker would send no more
// tasks. If the oldest loans are done, one acknowledgement names the last of
// them and includes all before it; the broker handles that as one operation of
// the queue. Loans that are done after one that is not are acknowledged one by
// one.
type loans struct {
	ch       *amqp.Channel
	queue    string // whose tasks they are
	prefetch int    // maximum number of open ones
	maxDone  int    // acknowledgements to gather

	gaveUp func() // called when the task of a loan may have become a dead letter

	mu    sync.Mutex  // also held while sending: open is what the broker was told
	open  list.List   // of *Delivery; at most the prefetch
	done  []*Delivery // those in open that are to be acknowledged
	sent  time.Time   // when acknowledgements were last sent
	timed bool        // a timer will send them
}

func newLoans(ch *amqp.Channel, queue string, prefetch int) *loans {
	return &loans{ch: ch, queue: queue, prefetch: prefetch, maxDone: max(1, prefetch/2), gaveUp: func() {}}
}

// begin adds d, the newest delivery.
func (l *loans) begin(d amqp.Delivery) *Delivery {
	if len(d.Body) > memory.Large {
		memory.GiveBack() // takes effect once the task has been handled
	}
	t, err := decodeTask(d, l.queue)
	loan := &Delivery{d: d, task: t, invalid: err, loans: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	loan.place = l.open.PushBack(loan)
	return loan
}

// isFull reports whether the broker sends no more tasks before it gets an answer.
func (l *loans) isFull() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open.Len() >= l.prefetch
}

// isEmpty reports whether the broker has been told of all tasks.
func (l *loans) isEmpty() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open.Len() == 0
}

// end removes the loan of d and calls send, which tells the broker.
func (l *loans) end(d *Delivery, send func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open.Remove(d.place)
	return send()
}

// ack acknowledges d, at once or within ackInterval.
func (l *loans) ack(d *Delivery) error {
	if l.ch.IsClosed() {
		return amqp.ErrClosed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	d.done = true
	l.done = append(l.done, d)
	wait := ackInterval - time.Since(l.sent)
	if wait <= 0 || len(l.done) >= l.maxDone {
		return l.sendDone()
	}
	if !l.timed {
		l.timed = true
		time.AfterFunc(wait, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.timed = false
			l.sendDone() // an error means that the session ended; the link logs that
		})
	}
	return nil
}

// flush sends the gathered acknowledgements.
func (l *loans) flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sendDone()
}

// sendDone acknowledges all loans that are done. It names only tags that are
// still open: a broker closes the channel when it gets a tag that it does not
// know.
func (l *loans) sendDone() (err error) {
	l.sent = time.Now()
	var through uint64 // the tag up to which everything is done
	for e := l.open.Front(); e != nil && e.Value.(*Delivery).done; e = l.open.Front() {
		through = l.open.Remove(e).(*Delivery).d.DeliveryTag
	}
	if through > 0 {
		err = l.ch.Ack(through, true)
	}
	for _, d := range l.done {
		if d.d.DeliveryTag > through && err == nil {
			l.open.Remove(d.place)
			err = l.ch.Ack(d.d.DeliveryTag, false)
		}
	}
	clear(l.done)
	l.done = l.done[:0]
	return err
}
