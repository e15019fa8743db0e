package rabbit

import (
	"container/list"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/memory"
)

// ackInterval is the least time between two times that acknowledgements are
// sent, unless many have come. Nobody waits for one, but each is an operation
// of the quorum queue, with a write to the disk of its own. If the worker dies
// meanwhile, some tasks more are done again.
const ackInterval = 10 * time.Millisecond

// loans are the deliveries of one session that the broker waits for: those for
// which nothing was sent yet, in the order of their delivery tags.
//
// Acknowledgements that come within ackInterval are sent together, or sooner
// when they are half of the prefetch: the broker sends no more tasks otherwise.
// From the oldest loan on, those that are done need only one, for the last of
// them and all before, which the broker handles as one operation of the queue.
// Behind a loan that is not done, each is acknowledged by itself.
type loans struct {
	ch   *amqp.Channel
	most int // acknowledgements that are gathered

	gaveUp func() // called when a loan ends with what may be the last attempt

	mu    sync.Mutex  // held while something is sent, too: open is what the broker was told
	open  list.List   // of *Delivery; at most the prefetch
	done  []*Delivery // those of open whose acknowledgement is to be sent
	sent  time.Time   // when that was done last
	timed bool        // it will be done when it is time
}

func newLoans(ch *amqp.Channel, prefetch int) *loans {
	return &loans{ch: ch, most: max(1, prefetch/2), gaveUp: func() {}}
}

// begin adds d, which is the newest.
func (l *loans) begin(d amqp.Delivery) *Delivery {
	if len(d.Body) > memory.Large {
		memory.GiveBack() // once it is handled, if it ever is
	}
	t, err := decodeTask(d)
	loan := &Delivery{d: d, task: t, invalid: err, loans: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	loan.place = l.open.PushBack(loan)
	return loan
}

// end ends the loan of d by send.
func (l *loans) end(d *Delivery, send func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open.Remove(d.place)
	return send()
}

// ack acknowledges d, soon.
func (l *loans) ack(d *Delivery) error {
	if l.ch.IsClosed() {
		return amqp.ErrClosed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	d.done = true
	l.done = append(l.done, d)
	wait := ackInterval - time.Since(l.sent)
	if wait <= 0 || len(l.done) >= l.most {
		return l.sendDone()
	}
	if !l.timed {
		l.timed = true
		time.AfterFunc(wait, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.timed = false
			l.sendDone() // fails if the session has ended, which the link tells
		})
	}
	return nil
}

// flush sends what has been gathered.
func (l *loans) flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sendDone()
}

// sendDone acknowledges all that are done. It only names tags that are still
// open: told of one that it does not know "and all before", a broker would
// have to guess, and ends the channel.
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
