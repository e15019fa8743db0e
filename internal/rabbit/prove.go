package rabbit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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

	// hangsAfter is how long a reader may receive nothing before its node must
	// answer a question, if there are other nodes.
	hangsAfter = 500 * time.Millisecond

	// silentAfter is how long a reader of a broker with several nodes may receive
	// nothing, not even a mark, and be ready. A mark comes each proveInCluster,
	// and within proveAfter and storeWithin when something fails. The rest of 5 s
	// is a margin for whoever asks whether the reader is ready.
	silentAfter = 4 * time.Second

	// proveRarely is how often it asks for more proof while nothing but marks
	// comes. A day of silence leaves 1,440 marks in the stream, and the broker
	// needs up to a millisecond to read each.
	proveRarely = time.Minute

	// proveInCluster is the same for a broker with several nodes, most of which
	// may be lost without a word to the clients of another one. A mark of any
	// reader serves all of them.
	proveInCluster = 2 * time.Second

	// proveWithin is how long a message may take to the reader once the broker
	// has confirmed it, or another node has sent it. Measured: 1 to 3 ms; if
	// that is too strict for a broker under heavy load, the reader only
	// connects again.
	proveWithin = 2 * time.Second

	// proveWithinInCluster is the same for a broker with several nodes. Another
	// one is at hand, and a node that the others have given up sends nothing.
	proveWithinInCluster = time.Second

	// proveBytes is how many bytes show that a message is arriving, which may
	// take long if it is long. Heartbeats alone are a few dozen bytes while a
	// reader is watched.
	proveBytes = 4 << 10

	// storeWithin is how long the nodes together may take to confirm a mark.
	// Beyond that the reader is not ready: no results can come.
	storeWithin = 2500 * time.Millisecond

	// storeStagger is after how much of it one more node is asked.
	storeStagger = 500 * time.Millisecond

	// answerWithin is how long a node may take to answer a question that needs
	// neither another node nor a disk. Measured: less than 1 ms.
	answerWithin = 1500 * time.Millisecond

	// mostPatience is how often a reader doubles proveWithin while its sessions
	// receive nothing: up to 16 s. Otherwise a broker that takes longer to begin
	// to send would be asked to begin again and again.
	mostPatience = 3

	// waitSteps is in how many steps these times pass. A process that was
	// suspended meanwhile has all the others left to receive the message.
	waitSteps = 10
)

// errSilent means that the broker no longer sends what is in the stream.
var errSilent = errors.New("the broker does not send what is in the stream: its consumer has died, or the node was cut off from the others")

// errNoAnswer means that a node is connected and does not answer.
var errNoAnswer = errors.New("the node does not answer: it hangs or was cut off")

// errNothingComes means that neither results nor marks have come for a while.
var errNothingComes = fmt.Errorf("nothing came from the stream of results for %v, not even a mark", silentAfter)

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
	excused atomic.Int64 // how often the broker has said that it takes no marks
	news    atomic.Int64 // those of them that are no marks
	newest  atomic.Int64 // the broker's offset of the last one
	doubted atomic.Bool  // an error was reported
	silent  atomic.Int64 // sessions that have ended with errSilent since the last message
}

// patience returns how long a message may take.
func (p *proof) patience() time.Duration { return p.within << min(p.silent.Load(), mostPatience) }

// ended records the end of a session.
func (p *proof) ended(s *session) {
	if errors.Is(context.Cause(s.ctx), errSilent) {
		p.silent.Add(1)
	}
}

// received records a message of a session.
func (p *proof) received(s *session, entries []entry) {
	p.newest.Store(messageOf(entries[0].offset))
	p.heard.Add(1)
	p.silent.Store(0)
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
	if s.many {
		go p.doubt(s)
	}
	for silent(s.ctx, p.heard.Load, p.after) {
		before := p.heard.Load()
		err := p.guard(s)
		switch {
		case errors.Is(err, errSilent):
			s.end(errSilent)
			return
		case s.ctx.Err() != nil:
			return
		case err == nil:
			p.settle(s)
		case errors.Is(err, ErrBlocked):
			p.excused.Add(1)
		case p.heard.Load() == before:
			p.doubted.Store(true)
			p.report(s, fmt.Errorf("%w: %w", errNotStored, err))
		}
	}
}

// doubt watches a reader of a broker with several nodes. When nothing comes, its
// node must answer, and before long the reader is not ready, whatever watch is
// waiting for. It returns when the session ends.
func (p *proof) doubt(s *session) {
	const step = 100 * time.Millisecond
	signs := func() int64 { return p.heard.Load() + p.excused.Load() }
	before, quiet := signs(), time.Duration(0)
	for sleep(s.ctx, step) {
		if now := signs(); now != before {
			before, quiet = now, 0
			continue
		}
		quiet += step // not the time, in which the process may have been suspended
		if (quiet-hangsAfter)%proveInCluster == 0 {
			go s.mustAnswer()
		}
		if quiet != silentAfter || p.doubted.Swap(true) {
			continue
		}
		p.report(s, errNothingComes)
		if signs() != before { // at this moment
			p.settle(s)
		}
	}
}

// guard watches a reader that hears nothing, by a consumer of its own at another
// node if there is one. It first has a mark stored. That, and whatever the other
// consumer gets, the reader must get within p.patience; otherwise guard returns
// errSilent, or ends the session with it. It returns nil when the reader has
// received something else than marks.
func (p *proof) guard(s *session) error {
	news, before := p.news.Load(), p.heard.Load()
	other, deliveries, err := p.station(s, before)
	if err != nil {
		return err
	}
	defer other.close()
	defer drop(deliveries)
	for {
		if !s.reaches(p.patience(), func() bool { return p.heard.Load() > before }) {
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

// compare checks that the reader gets what the other consumer gets. It returns
// when the other one has got nothing for p.rarely or a little less, so that the
// mark of one reader comes before those of the others; also when there are news,
// the session ends, or the other one does.
func (p *proof) compare(s, other *session, deliveries <-chan amqp.Delivery, news int64) error {
	wait := func() time.Duration { return p.rarely - rand.N(p.rarely/4+1) }
	end := time.NewTimer(wait())
	defer end.Stop()
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
			if !s.reaches(p.patience(), func() bool { return p.newest.Load() >= offset }) {
				return errSilent
			}
			if err := d.Ack(false); err != nil {
				return err
			}
			end.Reset(wait())
		case <-end.C:
			return nil
		case <-s.ctx.Done():
			return nil
		}
	}
	return nil
}

// reaches waits until done, or until a long message is arriving, for within. It
// returns false if neither happens.
func (s *session) reaches(within time.Duration, done func() bool) bool {
	bytes := s.pace.received.Load()
	for range waitSteps {
		if done() || s.pace.received.Load()-bytes > proveBytes {
			return true
		}
		if !sleep(s.ctx, within/waitSteps) {
			return true // the session has ended for another reason
		}
	}
	return done()
}

// mustAnswer ends the session if its node does not answer and there are others.
func (s *session) mustAnswer() {
	if s.many && !s.answers(answerWithin) {
		s.end(errNoAnswer)
	}
}

// answers reports whether the node answers in time. Its heartbeats are too slow
// for that.
func (s *session) answers(within time.Duration) bool {
	var answered atomic.Bool
	go func() {
		// An error is an answer, too, and ends the session if it is more.
		_ = s.onChannel(func(*amqp.Channel) error { return nil })
		answered.Store(true)
	}()
	return s.reaches(within, answered.Load)
}

// silent waits until count has been the same for a time. It returns false if ctx
// ends first. The time passes in steps, as in reaches.
func silent(ctx context.Context, count func() int64, after time.Duration) bool {
	before := count()
	for step := 0; step < waitSteps; step++ {
		if !sleep(ctx, after/waitSteps) {
			return false
		}
		if now := count(); now != before {
			before, step = now, -1
		}
	}
	return true
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

// mustHear ends the session with errSilent if the reader, which has heard that
// many messages before a mark was stored, gets none in time.
func (p *proof) mustHear(s *session, before int64) {
	if !s.reaches(p.patience(), func() bool { return p.heard.Load() > before }) {
		s.end(errSilent)
	}
}

// station returns a session by which a mark was stored, and a consumer at the
// end of the stream. It is at another node than s, if one can do that.
func (p *proof) station(s *session, before int64) (*session, <-chan amqp.Delivery, error) {
	type station struct {
		other      *session
		deliveries <-chan amqp.Delivery
	}
	at, err := elsewhere(s.ctx, around(p.cfg.urls(), s.url), storeWithin, func(ctx context.Context, url string) (station, error) {
		other, deliveries, err := p.stationAt(ctx, s, url, before)
		return station{other, deliveries}, err
	}, func(at station) {
		drop(at.deliveries)
		at.other.close()
	})
	return at.other, at.deliveries, err
}

// around returns all URLs, beginning after url, which comes last.
func around(urls []string, url string) []string {
	at := slices.Index(urls, url) + 1
	return slices.Concat(urls[at:], urls[:at])
}

// elsewhere asks one node after the other until one of them answers, and does
// not wait long for any of them. It asks each twice: a queue or stream may get a
// leader meanwhile, and what was sent to the previous one may be lost. It calls
// discard with answers that come too late.
func elsewhere[T any](ctx context.Context, urls []string, within time.Duration, ask func(ctx context.Context, url string) (T, error), discard func(T)) (found T, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("not within %v", within))
	urls = slices.Concat(urls, urls)
	type answer struct {
		found T
		err   error
	}
	answers := make(chan answer)
	asked, open := 0, 0
	defer func() {
		cancel() // ends those that are left
		go func() {
			for range open {
				if a := <-answers; a.err == nil {
					discard(a.found)
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
				found, err := ask(ctx, url)
				answers <- answer{found, err}
			}()
		}
		select {
		case a := <-answers:
			open--
			if a.err == nil {
				return a.found, nil
			}
			errs = append(errs, a.err)
			if open == 0 && asked == len(urls) {
				return found, errors.Join(errs...)
			}
		case <-time.After(storeStagger):
		case <-ctx.Done():
			return found, errors.Join(append(errs, context.Cause(ctx))...)
		}
	}
}

// stationAt is station at one node. The reader must hear of the mark while the
// consumer is begun, for which RabbitMQ 4.3 waits when another node hangs.
func (p *proof) stationAt(ctx context.Context, s *session, url string, before int64) (*session, <-chan amqp.Delivery, error) {
	other, err := open(ctx, p.cfg, url, "mark")
	if err != nil {
		return nil, nil, fmt.Errorf("publish a mark over %s: %w", host(url), err)
	}
	var deliveries <-chan amqp.Delivery
	if err = other.putMark(ctx); err == nil {
		go p.mustHear(s, before)
		if deliveries, err = other.consume(ctx, other.ch, ResultsQueue, "revq-proof", 1, amqp.Table{offsetHeader: "next"}); err == nil {
			return other, deliveries, nil
		}
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
