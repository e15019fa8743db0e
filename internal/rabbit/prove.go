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
	proveAfter = 3 * time.Second

	// proveRarely is the same once nothing but marks has come for a while. A
	// day of silence leaves 1,440 marks in the stream, and the broker needs up
	// to a millisecond to read each.
	proveRarely = time.Minute

	// proveWithin is how long a mark may take to the reader once the broker has
	// confirmed it. Measured: 1 to 3 ms; if that is too strict for a broker
	// under heavy load, the reader only connects again.
	proveWithin = 5 * time.Second

	// proveSteps is in how many steps proveWithin passes. A process that was
	// suspended meanwhile has all the others left to receive the mark.
	proveSteps = 10

	// proveBytes is how many bytes show that a message is arriving, which may
	// take long if it is long. Heartbeats alone are a few dozen bytes while a
	// reader is watched.
	proveBytes = 4 << 10
)

// errSilent means that the broker no longer sends what is in the stream.
var errSilent = errors.New("the broker does not send what is in the stream: its consumer has died, or the node was cut off from the others")

// A proof finds out whether a reader still receives what is in the stream. A
// consumer can die, and a node can be cut off from the others of its cluster,
// while the connection stays open and heartbeats come.
type proof struct {
	cfg                   Config
	after, rarely, within time.Duration

	heard atomic.Int64 // messages that the reader has received
	news  atomic.Int64 // those of them that are no marks
}

// received records a message.
func (p *proof) received(entries []entry) {
	p.heard.Add(1)
	if !entries[0].mark {
		p.news.Add(1)
	}
}

// watch ends the session with errSilent if a mark that the broker has confirmed
// does not arrive. It returns when the session ends. It publishes marks only
// after a silence, and finds nothing wrong as long as the broker confirms none.
func (p *proof) watch(s *session) {
	for wait := p.after; ; {
		heard, news, bytes := p.heard.Load(), p.news.Load(), s.pace.received.Load()
		alive := func() bool { return p.heard.Load() != heard || s.pace.received.Load()-bytes > proveBytes }
		if !sleep(s.ctx, wait) {
			return
		}
		if alive() {
			if p.news.Load() != news {
				wait = p.after
			}
			continue
		}
		if err := p.putMark(s); err != nil {
			continue // Ready of publishers says what is wrong
		}
		for range proveSteps {
			if alive() {
				break
			}
			if !sleep(s.ctx, p.within/proveSteps) {
				return
			}
		}
		if !alive() {
			s.end(errSilent)
			return
		}
		wait = min(2*wait, p.rarely)
	}
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

// putMark has a mark confirmed by a node: another one than that of s, if one
// answers.
func (p *proof) putMark(s *session) error {
	urls := slices.Clone(p.cfg.urls())
	if at := slices.Index(urls, s.url); at >= 0 {
		urls = slices.Concat(urls[at+1:], urls[:at+1])
	}
	var errs []error
	for _, url := range urls {
		other, err := open(s.ctx, p.cfg, url, "mark")
		if err == nil {
			err = other.putMark(s.ctx)
			other.close()
		}
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("publish a mark over %s: %w", host(url), err))
	}
	return errors.Join(errs...)
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
