package rabbit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
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

	// quiet is how long nothing comes after the last result of a chunk. The
	// broker sends a chunk in one go, but a busy one may be interrupted.
	quiet = 250 * time.Millisecond

	// empty is how long nothing comes from a stream that has nothing, or
	// nothing as young as is asked for. The stream itself does not say so, and
	// its message count is seconds old.
	empty = time.Second
)

// ErrReplaced means that the stream of results was deleted and declared again:
// its offsets have started over, and say nothing about those seen before.
var ErrReplaced = errors.New("the stream of results was replaced by another one, with offsets of its own")

// A Reader follows the stream of results over a connection of its own. After
// an interruption it goes on behind the last result that it has passed on.
type Reader struct {
	link    *link
	log     *slog.Logger
	since   time.Time     // where to begin while nothing was received
	next    int64         // the offset to go on at; 0: nothing received yet
	current chan struct{} // closed once caught up
}

// NewReader returns a Reader of the results from since on, the zero time for
// all that are kept. It may pass on some that are older: the stream finds a
// time no closer than a chunk.
func NewReader(cfg Config, since time.Time, log *slog.Logger) *Reader {
	l := newLink(cfg, "reader", log)
	return &Reader{link: l, log: l.log, since: since, current: make(chan struct{})}
}

// Ready returns nil while the stream is being followed, otherwise why not.
func (r *Reader) Ready() error { return r.link.Ready() }

// Current is closed when all results that were in the stream when it was first
// reached have been passed on.
func (r *Reader) Current() <-chan struct{} { return r.current }

// Run follows the stream until ctx ends. It calls each, always from the same
// goroutine, with one result after another in the stream's order. Offsets
// grow, but not always by one: the broker uses some for itself. Run returns
// ErrReplaced when the offsets that it has passed on are void.
func (r *Reader) Run(ctx context.Context, each func(offset int64, result task.Result)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.link.run(ctx, func(s *session) error {
		err := r.read(ctx, s, each)
		if errors.Is(err, ErrReplaced) {
			cancel(err)
		}
		return err
	})
	if err := context.Cause(ctx); errors.Is(err, ErrReplaced) {
		return err
	}
	return nil
}

func (r *Reader) read(ctx context.Context, s *session, each func(int64, task.Result)) error {
	deliveries, err := s.consume(ctx, s.ch, ResultsQueue, "revq-socket", readerPrefetch, amqp.Table{offsetHeader: r.from()})
	if err != nil {
		return err
	}
	r.link.up()

	// Meanwhile, look where the stream ends.
	ends, failed := make(chan int64, 1), make(chan error, 1)
	go func(next int64) {
		end, err := s.streamEnd(ctx, next)
		if err != nil {
			failed <- err
			return
		}
		ends <- end
	}(r.next)
	end := int64(math.MaxInt64)
	idle := time.NewTimer(empty)
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
			if r.next > end {
				r.caughtUp()
			}
			if unacked++; unacked == readerAckEvery {
				unacked = 0
				if err := d.Ack(true); err != nil {
					return fmt.Errorf("acknowledge results: %w", err)
				}
			}
			idle.Reset(empty)
		case <-idle.C:
			r.caughtUp()
		case end = <-ends:
			if r.next > end {
				r.caughtUp()
			}
		case err := <-failed:
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

// streamEnd returns the offset of the newest result, once there is one. A
// stream from which everything before next was received must have an end there
// or behind, otherwise it is another one by now: the broker would silently
// leave out whatever comes below next. (One that has grown beyond next by now
// cannot be told from the old one.)
func (s *session) streamEnd(ctx context.Context, next int64) (end int64, err error) {
	ch, err := s.conn.Channel()
	if err != nil {
		return 0, fmt.Errorf("open a channel: %w", err)
	}
	defer ch.Close()
	lastChunk, err := s.consume(ctx, ch, ResultsQueue, "revq-socket-end", readerPrefetch, amqp.Table{offsetHeader: "last"})
	if err != nil {
		return 0, err
	}
	var chunk <-chan time.Time
	sure := false
	for {
		select {
		case d, ok := <-lastChunk:
			if !ok {
				return 0, s.why(errors.New("the channel was closed"))
			}
			end, _ = d.Headers[offsetHeader].(int64)
			if chunk == nil {
				chunk = time.After(quiet)
			}
		case <-chunk:
			if end+1 >= next {
				return end, nil
			}
			if sure {
				return 0, ErrReplaced
			}
			sure, chunk = true, time.After(empty)
		case <-s.ctx.Done():
			return 0, context.Cause(s.ctx)
		case <-ctx.Done():
			return 0, ctx.Err()
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
	return nil
}

func (r *Reader) caughtUp() {
	select {
	case <-r.current:
	default:
		close(r.current)
	}
}
