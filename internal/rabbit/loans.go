package rabbit

import (
	"container/list"
	"runtime"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"
)

// loans are the deliveries of one session that the broker waits for: those for
// which nothing was sent yet, in the order of their delivery tags.
//
// Acknowledgements that come at about the same time are sent together. From
// the oldest loan on, those that are done need only one, for the last of them
// and all before, which the broker handles as one operation of the queue.
// Behind a loan that is not done, each is acknowledged by itself.
type loans struct {
	ch *amqp.Channel

	mu   sync.Mutex  // held while something is sent, too: open is what the broker was told
	open list.List   // of *Delivery; at most the prefetch
	done []*Delivery // those of open whose acknowledgement is to be sent
}

// begin adds d, which is the newest.
func (l *loans) begin(d amqp.Delivery) *Delivery {
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

// ack acknowledges d. The first of several to do so lets every goroutine run
// that could, and then sends what they have added with its own. So nothing is
// held back where there is nothing to gather, and nothing is left when all
// have returned.
func (l *loans) ack(d *Delivery) error {
	if l.ch.IsClosed() {
		return amqp.ErrClosed // for those that would leave it to another
	}
	l.mu.Lock()
	d.done = true
	l.done = append(l.done, d)
	first := len(l.done) == 1
	l.mu.Unlock()
	if !first {
		return nil
	}
	runtime.Gosched()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sendDone()
}

// sendDone acknowledges all that are done. It only names tags that are still
// open: told of one that it does not know "and all before", a broker would
// have to guess, and ends the channel.
func (l *loans) sendDone() (err error) {
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
