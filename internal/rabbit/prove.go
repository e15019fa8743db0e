package rabbit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/task"
)

const (
	// proveAfter is how long a reader may receive nothing before it asks for
	// proof that it would. It is short, since listeners wait meanwhile.
	proveAfter = 1500 * time.Millisecond

	// proveRarely is how often it asks for more proof while nothing but marks
	// comes. A day of silence leaves 1,440 marks in the stream, and the broker
	// needs up to a millisecond to read each.
	proveRarely = time.Minute

	// proveWithin is how long a message may take to the reader once the broker
	// has confirmed it, or another node has sent it. Measured: 1 to 3 ms; if
	// that is too strict for a broker under heavy load, the reader only
	// connects again.
	proveWithin = 2500 * time.Millisecond

	// proveSteps is in how many steps proveWithin passes. A process that was
	// suspended meanwhile has all the others left to receive the message.
	proveSteps = 10

	// proveBytes is how many bytes show that a message is arriving, which may
	// take long if it is long. Heartbeats alone are a few dozen bytes while a
	// reader is watched.
	proveBytes = 4 << 10

	// storeWithin is how long the nodes together may take to confirm a mark.
	// Beyond that the reader is not ready: no results can come. With
	// proveAfter, that is less than 5 s after the last one.
	storeWithin = 3 * time.Second

	// storeStagger is after how much of it one more node is asked.
	storeStagger = 500 * time.Millisecond
)

// errSilent means that the broker no longer sends what is in the stream.
var errSilent = errors.New("the broker does not send what is in the stream: its consumer has died, or the node was cut off from the others")

// errNotStored means that no node confirms a mark.
var errNotStored = errors.New("the broker stores nothing in the stream at present: most of its nodes are down or cut off")

// A proof finds out whether a reader still receives what is in the stream. A
// consumer can die, and a node can be cut off from the others of its cluster,
// while the connection stays open and heartbeats come.
type proof struct {
	cfg                   Config
	after, rarely, within time.Duration
	report                func(s *session, err error) // that nothing can come, or that it does again

	heard   atomic.Int64 // messages that the reader has received
	news    atomic.Int64 // those of them that are no marks
	newest  atomic.Int64 // the broker's offset of the last one
	doubted atomic.Bool  // an error was reported
}

// received records a message of a session.
func (p *proof) received(s *session, entries []entry) {
	p.newest.Store(messageOf(entries[0].offset))
	p.heard.Add(1)
	if !entries[0].mark {
		p.news.Add(1)
	}
	p.settle(s)
}

// settle reports that messages come again.
func (p *proof) settle(s *session) {
	if p.doubted.Load() && p.doubted.Swap(false) {
		p.report(s, nil)
	}
}

// watch ends the session with errSilent if it does not receive what is in the
// stream. It returns when the session ends. It finds nothing wrong as long as
// the broker is short of memory or disk space.
func (p *proof) watch(s *session) {
	p.doubted.Store(false)
	for {
		before := p.heard.Load()
		if !sleep(s.ctx, p.after) {
			return
		}
		if p.heard.Load() != before {
			continue
		}
		err := p.guard(s)
		switch {
		case errors.Is(err, errSilent):
			s.end(errSilent)
			return
		case s.ctx.Err() != nil:
			return
		case err == nil:
			p.settle(s)
		case !errors.Is(err, ErrBlocked) && p.heard.Load() == before:
			p.doubted.Store(true)
			p.report(s, fmt.Errorf("%w: %w", errNotStored, err))
		}
	}
}

// guard watches a reader that hears nothing, by a consumer of its own at another
// node if there is one. It first has a mark stored. Whatever the other consumer
// gets, the reader must get within p.within; otherwise guard returns errSilent.
// It returns nil when the reader has received something else than marks.
func (p *proof) guard(s *session) error {
	news, before := p.news.Load(), p.heard.Load()
	other, deliveries, err := p.station(s)
	if err != nil {
		return err
	}
	defer other.close()
	defer drop(deliveries)
	for {
		if !p.reaches(s, func() bool { return p.heard.Load() > before }) {
			return errSilent
		}
		p.settle(s)
		if err := p.compare(s, other, deliveries, news); err != nil || s.ctx.Err() != nil || p.news.Load() != news {
			return err
		}
		before = p.heard.Load()
		ctx, cancel := context.WithTimeout(s.ctx, storeWithin)
		err := other.putMark(ctx)
		cancel()
		if err != nil {
			return err
		}
	}
}

// compare checks for p.rarely that the reader gets what the other consumer gets.
// It returns earlier when there are news, the session ends, or the other one
// does.
func (p *proof) compare(s, other *session, deliveries <-chan amqp.Delivery, news int64) error {
	end := time.After(p.rarely)
	for p.news.Load() == news {
		select {
		case d, ok := <-deliveries:
			if !ok {
				return other.why(amqp.ErrClosed)
			}
			offset, err := brokerOffset(d)
			if err != nil {
				return err
			}
			if !p.reaches(s, func() bool { return p.newest.Load() >= offset }) {
				return errSilent
			}
			if err := d.Ack(false); err != nil {
				return err
			}
		case <-end:
			return nil
		case <-s.ctx.Done():
			return nil
		}
	}
	return nil
}

// reaches waits until done, or until a long message is arriving, for p.within.
// It returns false if neither happens.
func (p *proof) reaches(s *session, done func() bool) bool {
	bytes := s.pace.received.Load()
	for range proveSteps {
		if done() || s.pace.received.Load()-bytes > proveBytes {
			return true
		}
		if !sleep(s.ctx, p.within/proveSteps) {
			return true // the session has ended for another reason
		}
	}
	return done()
}

// sleep returns false if ctx ends first.
func sleep(ctx context.Context, wait time.Duration) bool {
	select {
	case <-time.After(wait):
		return true
	case <-ctx.Done():
		return false
	}
}

// station returns a session and a consumer at the end of the stream, by which a
// mark was stored. It is at another node than s, if one can do that. It asks one
// node after the other, and does not wait long for any of them.
func (p *proof) station(s *session) (*session, <-chan amqp.Delivery, error) {
	ctx, cancel := context.WithTimeoutCause(s.ctx, storeWithin, fmt.Errorf("not within %v", storeWithin))
	urls := slices.Clone(p.cfg.urls())
	if at := slices.Index(urls, s.url); at >= 0 {
		urls = slices.Concat(urls[at+1:], urls[:at+1])
	}
	type answer struct {
		other      *session
		deliveries <-chan amqp.Delivery
		err        error
	}
	answers := make(chan answer)
	asked, open := 0, 0
	defer func() {
		cancel() // ends those that are left
		go func() {
			for range open {
				if a := <-answers; a.err == nil {
					drop(a.deliveries)
					a.other.close()
				}
			}
		}()
	}()
	var errs []error
	for {
		if asked < len(urls) {
			url := urls[asked]
			asked++
			open++
			go func() {
				other, deliveries, err := p.stationAt(ctx, url)
				answers <- answer{other, deliveries, err}
			}()
		}
		select {
		case a := <-answers:
			open--
			if a.err == nil {
				return a.other, a.deliveries, nil
			}
			errs = append(errs, a.err)
			if open == 0 && asked == len(urls) {
				return nil, nil, errors.Join(errs...)
			}
		case <-time.After(storeStagger):
		case <-ctx.Done():
			return nil, nil, errors.Join(append(errs, context.Cause(ctx))...)
		}
	}
}

// stationAt is station at one node.
func (p *proof) stationAt(ctx context.Context, url string) (*session, <-chan amqp.Delivery, error) {
	other, err := open(ctx, p.cfg, url, "mark")
	if err != nil {
		return nil, nil, fmt.Errorf("publish a mark over %s: %w", host(url), err)
	}
	deliveries, err := other.consume(ctx, other.ch, ResultsQueue, "revq-proof", 1, amqp.Table{offsetHeader: "next"})
	if err == nil {
		if err = other.putMark(ctx); err == nil {
			return other, deliveries, nil
		}
		drop(deliveries)
	}
	other.close()
	return nil, nil, fmt.Errorf("publish a mark over %s: %w", host(url), err)
}

// putMark publishes a mark, and waits for its confirmation.
func (s *session) putMark(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	// See askEnd.
	defer context.AfterFunc(ctx, func() { s.end(context.Cause(ctx)); s.raw.Close() })()
	blocked := s.whenBlocked()
	var confirmed *amqp.DeferredConfirmation
	err := s.bounded(ctx, func() (err error) {
		if err := s.ch.Confirm(false); err != nil {
			return err
		}
		confirmed, err = s.ch.PublishWithDeferredConfirm(MarksExchange, "", false, false, newMark())
		return err
	})
	if err != nil {
		return err
	}
	select {
	case <-confirmed.Done():
		if !confirmed.Acked() {
			return errors.New("the broker refused it")
		}
		return nil
	case <-blocked:
		s.end(ErrBlocked)
		s.raw.Close()
		return ErrBlocked
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
}

// newMark returns the message of a mark.
func newMark() amqp.Publishing {
	return amqp.Publishing{MessageId: task.NewID(), DeliveryMode: amqp.Persistent, Timestamp: time.Now(), AppId: "revq"}
}
