package rabbit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/task"
)

const (
	// readerPrefetch is how many results may be on the way to a reader. The
	// stream sends whole chunks; a few thousand keep it from waiting for
	// acknowledgements.
	readerPrefetch = 4096

	// readerAckEvery is how many results are acknowledged together. For a
	// stream an acknowledgement only means that more may be sent.
	readerAckEvery = readerPrefetch / 4

	// quiet is how long nothing comes once the stream has been read to its
	// end; the stream itself does not mark it.
	quiet = 100 * time.Millisecond
)

// A Reader follows the stream of results over a connection of its own. After
// an interruption it goes on behind the last result that it has passed on.
type Reader struct {
	link    *link
	log     *slog.Logger
	since   time.Time // where to begin while nothing was received
	started time.Time
	next    int64         // the offset to go on at; 0: nothing received yet
	current chan struct{} // closed once caught up
}

// NewReader returns a Reader of the results from since on, the zero time for
// all that are kept. It may pass on some that are older: the stream finds a
// time no closer than a chunk.
func NewReader(cfg Config, since time.Time, log *slog.Logger) *Reader {
	l := newLink(cfg, "reader", log)
	return &Reader{link: l, log: l.log, since: since, started: time.Now(), current: make(chan struct{})}
}

// Ready returns nil while the stream is being followed, otherwise why not.
func (r *Reader) Ready() error { return r.link.Ready() }

// Current is closed when all results that were in the stream at the start
// have been passed on.
func (r *Reader) Current() <-chan struct{} { return r.current }

// Run follows the stream until ctx ends. It calls each, always from the same
// goroutine, with one result after another in the stream's order. Offsets
// grow, but not always by one: the broker uses some for itself.
func (r *Reader) Run(ctx context.Context, each func(offset int64, result task.Result)) error {
	r.link.run(ctx, func(s *session) error {
		return r.read(ctx, s, each)
	})
	return nil
}

func (r *Reader) read(ctx context.Context, s *session, each func(int64, task.Result)) error {
	deliveries, err := s.consume(ctx, ResultsQueue, "revq-socket", readerPrefetch, amqp.Table{offsetHeader: r.from()})
	if err != nil {
		return err
	}
	r.link.up()

	idle := time.NewTimer(quiet)
	defer idle.Stop()
	unacked := 0
	for {
		select {
		case d, ok := <-deliveries:
			if !ok {
				return s.why(nil)
			}
			if err := r.pass(d, each); err != nil {
				return err
			}
			if unacked++; unacked == readerAckEvery {
				unacked = 0
				if err := d.Ack(true); err != nil {
					return fmt.Errorf("acknowledge results: %w", err)
				}
			}
			idle.Reset(quiet)
		case <-idle.C:
			r.caughtUp()
		case <-ctx.Done():
			return nil
		}
	}
}

// from returns where the stream is to begin.
func (r *Reader) from() any {
	if r.next > 0 {
		return r.next
	}
	if r.since.IsZero() {
		return "first"
	}
	return r.since
}

func (r *Reader) pass(d amqp.Delivery, each func(int64, task.Result)) error {
	offset, ok := d.Headers[offsetHeader].(int64)
	if !ok {
		return errors.New("a result came without an offset: is " + ResultsQueue + " a stream?")
	}
	r.next = offset + 1
	result, err := decodeResult(d)
	if err != nil {
		r.log.Error("a result that cannot be read was left out", "offset", offset, "id", d.MessageId, "error", err)
		return nil
	}
	each(offset, result)
	// Under load the stream is never quiet, but its newest results are then
	// younger than this reader.
	if result.Done.After(r.started) {
		r.caughtUp()
	}
	return nil
}

func (r *Reader) caughtUp() {
	select {
	case <-r.current:
	default:
		close(r.current)
	}
}
