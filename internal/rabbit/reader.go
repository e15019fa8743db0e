package rabbit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/memory"
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

	// quiet is how long nothing comes of a stream that has been read to its
	// end, before the broker is asked for a sign of life, and again after that
	// sign: the stream itself does not mark its end, nor that it is empty.
	quiet = 20 * time.Millisecond

	// silence is how long nothing may come of a stream, after which the broker
	// is asked for a sign of life, and again as long after that sign, before
	// the stream is taken to have nothing there. The silence alone may be that
	// of a broker, or of this process, that hung.
	silence = 2 * time.Second
)

// errMissing means that a reader cannot go on where it was.
var errMissing = errors.New("the last result received is no longer there: too few are kept, or the stream was made anew")

// errNotEmpty means that a stream was taken for empty and was not: otherwise
// all that it holds would be taken for new.
var errNotEmpty = errors.New("the stream of results began with old ones, though it had seemed to be empty")

// A Follower takes in what a Reader reads. Its methods are called one at a time.
type Follower interface {
	// Append takes the next result. Offsets grow, but not always by one: most
	// messages have fewer results than there are places, and the broker uses
	// some offsets for itself.
	Append(offset int64, r task.Result)

	// AppendGap says that results are missing here, and that offsets may
	// begin anew.
	AppendGap(reason string)

	// GoLive says that all that was in the stream at first has been appended.
	GoLive()
}

// A Reader follows the stream of results over a connection of its own. After
// an interruption it goes on behind the last result that it has passed on.
type Reader struct {
	link    *link
	log     *slog.Logger
	cfg     Config
	backlog int64
	started time.Time
	live    chan struct{} // closed after GoLive
	goLive  sync.Once

	// Where the reader stands.
	begun  bool
	empty  bool   // nothing seemed to be in the stream at first, nor has come since
	newest int64  // near the end of the stream as it was at first
	from   int64  // the message to begin with, if nothing was received yet
	last   int64  // offset of the last result; -1: nothing was received yet
	lastID string // and its id
}

// NewReader returns a Reader that begins with the last backlog messages of the
// past, each of which has one result or more.
func NewReader(cfg Config, backlog int, log *slog.Logger) *Reader {
	l := newLink(cfg, "reader", []string{ResultsQueue}, log)
	return &Reader{link: l, log: l.log, cfg: cfg, backlog: int64(backlog), started: time.Now(), live: make(chan struct{}), last: -1}
}

// Ready returns nil while the stream is being followed, otherwise why not.
func (r *Reader) Ready() error { return r.link.Ready() }

// Alive returns an error if the reader hangs. A broker that does so is no reason.
func (r *Reader) Alive() error { return r.link.Alive() }

// Current returns nil while the stream is being followed and all results that
// were in it at first have been passed on, otherwise why not.
func (r *Reader) Current() error {
	if err := r.link.Ready(); err != nil {
		return err
	}
	if !r.isLive() {
		return errors.New("the results of the past are being read")
	}
	return nil
}

// Run follows the stream until ctx ends.
func (r *Reader) Run(ctx context.Context, f Follower) error {
	r.link.run(ctx, func(s *session) error {
		err := r.follow(ctx, s, f)
		if errors.Is(err, errMissing) {
			f.AppendGap(err.Error())
			r.empty, r.newest, r.from, r.last, r.lastID = false, -1, 0, -1, ""
		}
		return err
	})
	return nil
}

// follow reads until the session or ctx ends.
func (r *Reader) follow(ctx context.Context, s *session, f Follower) error {
	if !r.begun {
		newest, err := s.newest(ctx)
		if err != nil {
			return err
		}
		r.begun, r.empty, r.newest, r.from = true, newest < 0, firstOf(newest), max(0, newest-r.backlog)
	}
	// What was received last is asked for again: if it is there, and is the
	// same, then nothing is missing.
	from := r.from
	meeting := r.last >= 0
	if meeting {
		from = messageOf(r.last)
	}
	deliveries, err := s.consume(ctx, s.ch, ResultsQueue, "revq-socket", readerPrefetch, amqp.Table{offsetHeader: from})
	if err != nil {
		return err
	}
	if !meeting {
		r.link.up()
	}
	wait := quiet
	switch {
	case meeting:
		wait = silence
	case r.empty:
		wait = quiet / 2 // newest has waited, too
	}
	idle := time.NewTimer(wait)
	defer idle.Stop()
	unacked, alive := 0, false
	var entries []entry // of one message
	for {
		s.loop.Idle()
		select {
		case d, ok := <-deliveries:
			s.loop.Busy()
			if !ok {
				return s.why(nil)
			}
			if entries, err = decodeEntries(entries[:0], d, r.cfg.MaxResult); err != nil {
				return err
			}
			next := entries
			if meeting {
				if next, err = r.meet(entries); err != nil {
					return err
				}
				meeting, wait = false, quiet
				r.link.up()
			}
			for _, e := range next {
				if err := r.pass(e, f); err != nil {
					return err
				}
			}
			alive = false
			if unacked++; unacked == readerAckEvery {
				unacked = 0
				if err := d.Ack(true); err != nil {
					return fmt.Errorf("acknowledge results: %w", err)
				}
			}
			idle.Reset(wait)
		case <-idle.C:
			s.loop.Busy()
			switch {
			case !meeting && r.isLive():
				continue
			case !alive:
				if err := s.alive(ctx, s.ch); err != nil {
					return err
				}
				alive = true
			case meeting:
				return errMissing
			case r.last >= r.newest:
				r.setLive(f)
			}
			idle.Reset(wait)
		case <-ctx.Done():
			return nil
		}
	}
}

// meet returns the entries that follow the last one received, of the message
// that it was in.
func (r *Reader) meet(entries []entry) ([]entry, error) {
	for i, e := range entries {
		if e.offset == r.last && e.id == r.lastID {
			return entries[i+1:], nil
		}
	}
	return nil, errMissing
}

func (r *Reader) pass(m entry, f Follower) error {
	// If it is live already, it is more likely that a worker's clock is behind:
	// what is found then is passed on, for a hole is worse than an old result.
	if r.empty && m.result.Done.Before(r.started) {
		r.begun = false
		return errNotEmpty
	}
	r.empty = false
	r.last, r.lastID = m.offset, m.id
	if m.invalid != nil {
		r.log.Error("a result cannot be sent; listeners are told", "offset", m.offset, "id", m.id, "error", m.invalid)
	}
	// What is younger than this reader is not of the past, for those who were
	// there before it was connected. And under load the stream is never quiet.
	if m.result.Done.After(r.started) {
		r.setLive(f)
	}
	f.Append(m.offset, m.result)
	return nil
}

func (r *Reader) isLive() bool {
	select {
	case <-r.live:
		return true
	default:
		return false
	}
}

func (r *Reader) setLive(f Follower) {
	r.goLive.Do(func() {
		f.GoLive()
		close(r.live)
	})
}

// History calls each with all results from at least before of them in front of
// an offset on, and goes on with new ones, until ctx ends or each returns an
// error, which it returns. What is not kept any more is left out. Where nothing
// comes for seconds though the broker answers, it calls end, and returns its
// error if any. It uses a connection of its own.
func (r *Reader) History(ctx context.Context, offset, before int64, each func(offset int64, result task.Result) error, end func() error) error {
	s, err := openAny(ctx, r.cfg, "history")
	if err != nil {
		return err
	}
	defer memory.GiveBack() // it may have read a GiB
	defer s.close()
	from := max(0, messageOf(offset)-before) // each message has a result, or more
	deliveries, err := s.consume(ctx, s.ch, ResultsQueue, "revq-history", readerPrefetch, amqp.Table{offsetHeader: from})
	if err != nil {
		return err
	}
	idle := time.NewTimer(silence)
	defer idle.Stop()
	var entries []entry // of one message
	for n, alive := 0, false; ; {
		select {
		case d, ok := <-deliveries:
			if !ok {
				return s.why(nil)
			}
			if entries, err = decodeEntries(entries[:0], d, r.cfg.MaxResult); err != nil {
				return err
			}
			for _, e := range entries {
				if err := each(e.offset, e.result); err != nil {
					return err
				}
			}
			alive = false
			idle.Reset(silence)
			if n++; n%readerAckEvery == 0 {
				if err := d.Ack(true); err != nil {
					return fmt.Errorf("acknowledge results: %w", err)
				}
			}
		case <-idle.C:
			next := end
			if !alive {
				next = func() error { return s.alive(ctx, s.ch) }
			}
			if err := next(); err != nil {
				return err
			}
			alive = !alive
			idle.Reset(silence)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// alive waits until the broker answers in ch, by which the stream comes.
func (s *session) alive(ctx context.Context, ch *amqp.Channel) error {
	err := s.bounded(ctx, func() error { return ch.Qos(readerPrefetch, 0, false) }) // which is for later consumers
	if err != nil {
		return fmt.Errorf("ask the broker for a sign of life: %w", err)
	}
	return nil
}

// newest returns the broker's offset of a message near the end of the stream,
// -1 if it seems to be empty: the stream finds its end no closer than a chunk.
func (s *session) newest(ctx context.Context) (offset int64, err error) {
	err = s.onChannel(func(ch *amqp.Channel) error {
		deliveries, err := s.consume(ctx, ch, ResultsQueue, "revq-newest", 1, amqp.Table{offsetHeader: "last"})
		if err != nil {
			return err
		}
		// An answer of the broker takes longer when it is busy, and then so does
		// a delivery. Whoever reads on looks whether there is none, either.
		if err := s.alive(ctx, ch); err != nil {
			return err
		}
		select {
		case d, ok := <-deliveries:
			if !ok {
				return s.why(errors.New("the channel was closed"))
			}
			offset, err = brokerOffset(d)
			return err
		case <-time.After(quiet / 2):
			offset = -1
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return offset, err
}

// firstOf returns the offset of the first result in a message, of which the
// broker's offset is given, and messageOf the opposite, for any result in it.
// Both leave -1, the beginning, as it is.
func firstOf(message int64) int64 { return max(-1, message*places) }
func messageOf(offset int64) int64 {
	if offset < 0 {
		return -1
	}
	return offset / places
}

// An entry is a result in the stream.
type entry struct {
	offset  int64
	id      string
	result  task.Result
	invalid error // why it is not a proper result, and result is lost; nil if it is
}

// decodeEntries appends the results that a message holds, at least one, of at
// most so many bytes. A message that cannot be read is one invalid result.
func decodeEntries(entries []entry, d amqp.Delivery, most int) ([]entry, error) {
	message, err := brokerOffset(d)
	if err != nil {
		return nil, err
	}
	if len(d.Body) > memory.Large {
		memory.GiveBack() // once it has been passed on
	}
	add := func(place int, id string, r task.Result, invalid error) {
		if invalid != nil {
			r = lost(id, invalid)
		}
		entries = append(entries, entry{firstOf(message) + int64(place), id, r, invalid})
	}
	if d.ContentType != bundleType {
		r, err := decodeResult(d, most)
		add(0, d.MessageId, r, err)
		return entries, nil
	}
	results, err := decodeBundle(d.Body)
	if err != nil {
		add(0, d.MessageId, task.Result{}, err)
	}
	for i, r := range results {
		r.Of = digestAt(d.Headers, i)
		add(i, r.ID, r, checkResult(r, most))
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
