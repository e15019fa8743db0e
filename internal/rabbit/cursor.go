package rabbit

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/memory"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

const (
	// readerPrefetch is how many messages may be on their way to the reader.
	// The broker reads as many before it sends the first one, each with its own
	// accesses to a file if they arrived one by one. Of 4,000 such messages the
	// first one came after 0.7 s with 4,096, and after 0.11 s with 512, and the
	// last one after 0.75 and 0.52 s. On a machine that was far too busy the
	// reader waited for more than 16 s, and gave the broker up. Others come as
	// fast with 512, 56,000 a second, and with 256 a fifth less.
	readerPrefetch = 512

	// readerWindow is how many bytes are read for the reader before it takes
	// the messages in them. A longer message is read as a whole.
	readerWindow = 1 << 20

	// historyPrefetch is how many messages may be on their way to a listener
	// that resumes. Such a listener may be slow, and there may be many of
	// them. What it has not taken waits at the broker.
	historyPrefetch = 64

	// historyWindow is the same as readerWindow for a listener that resumes,
	// and the size of the kernel's buffer.
	historyWindow = 256 << 10

	// historyPause is how long the broker may wait until something is read for
	// a listener that resumes. Then the session is closed, and another one goes
	// on when the listener does. The broker itself drops a connection that takes
	// nothing, and logs an error (measured: after less than 40 s).
	historyPause = 10 * time.Second

	// historyShare is the length in bytes of a message that may be read for
	// each listener that resumes. Only one longer message is read at a time.
	// The results of revq's workers have 1 MiB at most by default.
	historyShare = 1<<20 + historyWindow

	// ackWithin is the time after which a smaller number of messages is
	// acknowledged, too. The broker cancels a consumer that holds a message
	// for longer than its consumer_timeout, half an hour by default.
	ackWithin = time.Second

	// markTimeout bounds the time that a mark takes through the stream.
	// Measured: 1 to 3 ms, and seconds when the broker is overloaded.
	markTimeout = 10 * time.Second

	// markAgain is after how long one of several nodes is sent a mark again. A
	// mark is lost if it is published while the stream has no leader.
	markAgain = time.Second

	// markPrefetch is how many messages may be on their way to askEnd. Under
	// load, other messages arrive before the mark.
	markPrefetch = 256

	// markWindow is the same as readerWindow for askEnd.
	markWindow = 256 << 10
)

// errMarkLost means that the broker returned a mark as unroutable.
var errMarkLost = errors.New("the exchange " + MarksExchange + " does not lead to " + ResultsQueue + ": see `revq setup`")

// askEnd returns the end of the stream of results, as the broker's offset. A
// stream does not say where it ends, nor that it is empty. So askEnd publishes
// a message, a mark, and waits until the broker delivers it: everything that
// was in the stream before has a smaller offset.
func (s *session) askEnd(ctx context.Context) (offset int64, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, markTimeout, fmt.Errorf("the mark did not arrive within %v", markTimeout))
	defer cancel()
	// A broker that takes no messages stops reading from the connection, so
	// even closing a channel would hang.
	giveUp := func(err error) error {
		s.end(err)
		s.raw.Close()
		return err
	}
	defer context.AfterFunc(ctx, func() { giveUp(context.Cause(ctx)) })()
	blocked := s.whenBlocked()
	err = s.onChannel(func(ch *amqp.Channel) error {
		s.pace.begin(markWindow)
		defer s.pace.end()
		deliveries, err := s.consume(ctx, ch, ResultsQueue, "revq-mark", markPrefetch, amqp.Table{offsetHeader: "next"})
		if err != nil {
			return err
		}
		defer drop(deliveries)
		returned := ch.NotifyReturn(make(chan amqp.Return, 1))
		closed := ch.NotifyClose(make(chan *amqp.Error, 1))
		mark := newMark()
		publish := func() error {
			return s.bounded(ctx, func() error {
				return ch.PublishWithContext(ctx, MarksExchange, "", true, false, mark)
			})
		}
		if err := publish(); err != nil {
			return err
		}
		var again <-chan time.Time
		if s.many {
			ticker := time.NewTicker(markAgain)
			defer ticker.Stop()
			again = ticker.C
		}
		for unacked := 0; ; {
			s.loop.Idle()
			select {
			case d, ok := <-deliveries:
				s.loop.Busy()
				switch {
				case !ok: // the channel was closed, or the stream was deleted
					deliveries = nil
				case d.Exchange == MarksExchange && d.MessageId == mark.MessageId:
					offset, err = brokerOffset(d)
					return err
				default:
					if unacked++; unacked == markPrefetch/4 {
						unacked = 0
						if err := d.Ack(true); err != nil {
							return err
						}
					}
				}
			case err := <-closed:
				if err == nil {
					return s.why(amqp.ErrClosed)
				}
				return err
			case <-s.pace.starved:
				s.pace.grant(markWindow)
			case <-again:
				if err := publish(); err != nil {
					return err
				}
			case <-returned:
				return errMarkLost
			case <-blocked:
				return giveUp(ErrBlocked)
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-s.ctx.Done():
				return context.Cause(s.ctx)
			}
		}
	})
	s.loop.Busy()
	if err != nil {
		return 0, fmt.Errorf("ask for the end of the stream with a mark: %w", err)
	}
	return offset, nil
}

// whenBlocked returns a channel that is closed when the broker says that it
// takes no messages. amqp091-go waits until these notifications are received,
// so a goroutine receives them as long as the connection lasts.
func (s *session) whenBlocked() <-chan struct{} {
	blocks := s.conn.NotifyBlocked(make(chan amqp.Blocking, 1))
	blocked := make(chan struct{})
	go func() {
		first := sync.OnceFunc(func() { close(blocked) })
		for b := range blocks {
			if b.Active {
				first()
			}
		}
	}()
	return blocked
}

// drop drops what still comes until the channel of deliveries is closed, so
// that it does not wait in memory.
func drop(deliveries <-chan amqp.Delivery) {
	go func() {
		for range deliveries {
		}
	}()
}

// A demand is how much of the stream a cursor reads ahead.
type demand struct {
	prefetch int // how many messages may be on their way
	window   int // how many bytes are read before the messages in them are taken

	// share is the length in bytes of a message that may always be read. A
	// longer one needs the place in alone, if that is not nil: cursors share
	// it, so that only one of them reads such a message at a time.
	share int
	alone chan struct{}

	// pause is how long the broker may wait until something is read; 0: for
	// ever. Then the session ends with errPaused.
	pause time.Duration
}

// errPaused ends a session whose listener takes its time.
var errPaused = errors.New("the session was closed while the listener took nothing")

// A cursor reads the stream of results, beginning at a given message. It must
// be closed.
type cursor struct {
	s          *session
	deliveries <-chan amqp.Delivery

	// end is the end of the stream when the cursor was opened, as the broker's
	// offset. Messages with a smaller offset were there before. The mark at
	// the end guarantees that a message with this offset or a greater one
	// arrives.
	end int64

	demand  demand
	hungry  bool // the connection has waited for a grant since the last one
	granted int  // bytes since the last message
	isAlone bool // it has the place in demand.alone

	maxLength int           // maximum length of a result, in bytes
	newest    amqp.Delivery // the last one received, without its body
	unacked   int           // messages processed since the last acknowledgement
	due       *time.Timer   // when they are to be acknowledged
	entries   []entry       // of one message
}

// openCursor returns a cursor. It calls begin with the end of the stream; begin
// returns the broker's offset to begin at. It must not be greater than the end:
// the broker would send nothing until the stream has grown to it.
func (s *session) openCursor(ctx context.Context, cfg Config, tag string, demand demand, begin func(end int64) (from int64, err error)) (*cursor, error) {
	end, err := s.askEnd(ctx)
	if err != nil {
		return nil, err
	}
	from, err := begin(end)
	if err != nil {
		return nil, err
	}
	c, err := s.cursorAt(ctx, cfg, tag, demand, from)
	if err != nil {
		return nil, err
	}
	c.end = end
	return c, nil
}

// cursorAt returns a cursor that begins at the broker's offset from, without its
// end.
func (s *session) cursorAt(ctx context.Context, cfg Config, tag string, demand demand, from int64) (*cursor, error) {
	s.pace.begin(demand.window) // more than the answer needs, which comes first
	deliveries, err := s.consume(ctx, s.ch, ResultsQueue, tag, demand.prefetch, amqp.Table{offsetHeader: from})
	if err != nil {
		s.pace.end()
		return nil, err
	}
	due := time.NewTimer(ackWithin)
	due.Stop()
	c := &cursor{s: s, deliveries: deliveries, demand: demand, granted: demand.window, maxLength: cfg.MaxResult, due: due}
	s.pace.expire(demand.pause, func() {
		s.closeFor(errPaused, func() {
			drop(deliveries)
			s.pace.end()
		})
	})
	return c, nil
}

// next returns the entries of the next message, at least one. They are valid
// until the next call. The next call means that they have been processed.
func (c *cursor) next(ctx context.Context) ([]entry, error) {
	if c.newest.DeliveryTag > 0 {
		if c.unacked++; c.unacked == 1 {
			c.due.Reset(ackWithin)
		}
		// On a stream, an acknowledgement only lets the broker send more.
		if c.unacked >= c.demand.prefetch/4 {
			if err := c.acknowledge(); err != nil {
				return nil, err
			}
		}
	}
	clear(c.entries) // a listener may take a long time for the next message
	for {
		if c.hungry {
			select {
			case d, ok := <-c.deliveries:
				return c.take(d, ok)
			default:
				if err := c.readOn(ctx); err != nil {
					return nil, err
				}
			}
		}
		c.s.loop.Idle()
		select {
		case d, ok := <-c.deliveries:
			c.s.loop.Busy()
			return c.take(d, ok)
		case <-c.s.pace.starved:
			c.s.loop.Busy()
			c.hungry = true
			runtime.Gosched() // amqp091-go may be passing a delivery on
		case <-c.due.C:
			c.s.loop.Busy()
			if err := c.acknowledge(); err != nil {
				return nil, err
			}
		case <-c.s.ctx.Done():
			return nil, context.Cause(c.s.ctx)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// take returns the entries of a message.
func (c *cursor) take(d amqp.Delivery, ok bool) ([]entry, error) {
	if !ok || c.s.ctx.Err() != nil { // earlier ones may have been dropped
		return nil, c.s.why(amqp.ErrClosed)
	}
	var err error
	c.entries, err = decodeEntries(c.entries[:0], d, c.maxLength)
	c.newest, c.newest.Body = d, nil
	c.granted = 0
	c.leave()
	return c.entries, err
}

// readOn lets the connection read, since all that it has read was taken, except
// for a part of a message.
func (c *cursor) readOn(ctx context.Context) error {
	if d := c.demand; c.granted >= d.share && d.alone != nil && !c.isAlone {
		select {
		case d.alone <- struct{}{}:
			c.isAlone = true
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.s.ctx.Done():
			return context.Cause(c.s.ctx)
		}
	}
	c.hungry = false
	c.granted += c.demand.window
	c.s.pace.grant(c.demand.window)
	return nil
}

// leave frees the place in demand.alone.
func (c *cursor) leave() {
	if c.isAlone {
		c.isAlone = false
		<-c.demand.alone
	}
}

// close has what is still on its way dropped. The session must be closed, too.
func (c *cursor) close() {
	c.due.Stop()
	c.leave()
	drop(c.deliveries)
	c.s.pace.end()
}

// acknowledge acknowledges all messages received so far.
func (c *cursor) acknowledge() error {
	c.due.Stop()
	c.unacked = 0
	if err := c.newest.Ack(true); err != nil {
		if c.s.ctx.Err() != nil {
			return context.Cause(c.s.ctx)
		}
		return fmt.Errorf("acknowledge results: %w", err)
	}
	return nil
}

// firstOf returns the offset of the first result in the message with the given
// broker's offset. messageOf returns the broker's offset of the message that
// holds the result with the given offset. Both return -1, the beginning, for
// -1.
func firstOf(message int64) int64 { return max(-1, message*places) }
func messageOf(offset int64) int64 {
	if offset < 0 {
		return -1
	}
	return offset / places
}

// An entry is a result in the stream, or a mark.
type entry struct {
	offset  int64
	id      string
	mark    bool // it is a mark: there is no result
	result  task.Result
	invalid error // why it is not a valid result (result is then a lost one) or mark; nil if it is valid
}

// decodeEntries appends the entries of a message, at least one. A result with
// more than maxLength bytes is invalid. A message that cannot be read is one invalid
// result.
func decodeEntries(entries []entry, d amqp.Delivery, maxLength int) ([]entry, error) {
	message, err := brokerOffset(d)
	if err != nil {
		return nil, err
	}
	if d.Exchange == MarksExchange {
		return append(entries, entry{offset: firstOf(message), id: d.MessageId, mark: true, invalid: wire.CheckID(d.MessageId)}), nil
	}
	if len(d.Body) > memory.Large {
		memory.GiveBack() // takes effect once the message has been passed on
	}
	add := func(place int, id string, r task.Result, invalid error) {
		if invalid != nil {
			r = lost(id, invalid)
		}
		entries = append(entries, entry{offset: firstOf(message) + int64(place), id: id, result: r, invalid: invalid})
	}
	if isDead(d) {
		r, err := decodeGivenUp(d)
		add(0, d.MessageId, r, err)
		return entries, nil
	}
	if d.ContentType != bundleType {
		if strings.HasPrefix(d.ContentType, ownTypes) {
			add(0, "", task.Result{}, errNewer) // it may hold results of others than its id
			return entries, nil
		}
		r, err := decodeResult(d, maxLength)
		add(0, d.MessageId, r, err)
		return entries, nil
	}
	results, err := decodeBundle(d.Body)
	if err != nil {
		add(0, d.MessageId, task.Result{}, err)
	}
	queue, traces := queueHeaderOf(d.Headers), tracesOf(d.Headers)
	for i, r := range results {
		r.Queue, r.Of = queue, digestAt(d.Headers, i)
		if i < len(traces) {
			r.Trace = traces[i]
		}
		add(i, r.ID, r, checkResult(r, maxLength))
	}
	return entries, nil
}

func brokerOffset(d amqp.Delivery) (int64, error) {
	offset, ok := d.Headers[offsetHeader].(int64)
	if !ok {
		return 0, errors.New("a result came without an offset: is " + ResultsQueue + " a stream?")
	}
	return offset, nil
}
