package rabbit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/revq/revq/internal/task"
)

// errMissing means that a reader cannot continue after the last result that it
// received.
var errMissing = errors.New("the last result received is no longer there: too few are kept, or the stream was re-created")

// A Follower receives what a Reader reads. Its methods are called one at a
// time.
type Follower interface {
	// Remember takes a result from before the backlog, of which a result in
	// the backlog may be a repetition.
	Remember(r task.Result)

	// Append takes the next result. Offsets grow, but not always by one: most
	// messages have fewer results than places, and the broker uses some
	// offsets for itself.
	Append(offset int64, r task.Result)

	// AppendMark takes a mark, which has an id of its own: a place in the
	// stream without a result. A listener can stand after a mark as it can
	// after a result.
	AppendMark(offset int64, id string)

	// AppendGap says that results are missing here, and that offsets may
	// begin again.
	AppendGap(reason string)

	// GoLive says that the whole backlog has been appended.
	GoLive()
}

// A phase is what a session of a Reader is doing.
type phase int

const (
	// meeting: the session asks for the last result or mark that the reader
	// received. If the same one comes again, nothing is missing.
	meeting phase = iota

	// filling: the session reads what was in the stream when it began.
	filling

	// following: the session reads what is new.
	following
)

// A Reader follows the stream of results over a connection of its own. After an
// interruption it continues after the last result that it has passed on.
type Reader struct {
	link      *link
	log       *slog.Logger
	cfg       Config
	backlog   int64
	past      demand        // of each history
	histories atomic.Uint32 // how many have begun: each at another node
	proof     *proof
	live      atomic.Bool // GoLive was called

	// Where the reader stands.
	before int64 // the broker's offset of the first message of the backlog
	gap    bool  // results are missing: it continues at the beginning of the stream
	doubts int   // how many more nodes are to be asked before that is believed
	last   entry // the last one received; its offset is -1 if none was received from this stream
}

// NewReader returns a Reader that begins with a backlog of that many messages,
// and remembers as many before it. Each has at least one result, or is a mark.
func NewReader(cfg Config, backlog int, log *slog.Logger) *Reader {
	l := newLink(cfg, "reader", []string{ResultsQueue, MarksExchange}, log)
	l.serves = func(ctx context.Context, s *session) error {
		_, err := s.askEnd(ctx) // its replica may be missing, or lag
		return err
	}
	past := demand{
		prefetch: historyPrefetch, window: historyWindow, share: historyShare, alone: make(chan struct{}, 1),
		pause: historyPause,
	}
	proof := &proof{cfg: cfg, after: proveAfter, rarely: proveRarely, within: proveWithin}
	if len(cfg.urls()) > 1 {
		proof.rarely, proof.within = proveInCluster, proveWithinInCluster
	}
	proof.report = func(s *session, err error) {
		if l.session.Load() == s {
			l.setState(err)
		}
	}
	return &Reader{link: l, log: l.log, cfg: cfg, backlog: int64(backlog), past: past, proof: proof, last: entry{offset: -1}}
}

// Ready returns nil while the stream is being followed, otherwise the reason.
func (r *Reader) Ready() error { return r.link.Ready() }

// Alive returns an error if the reader's own loop hangs. A broker that hangs
// does not count.
func (r *Reader) Alive() error { return r.link.Alive() }

// Current returns nil while the stream is being followed and the backlog has
// been passed on, otherwise the reason.
func (r *Reader) Current() error {
	if err := r.link.Ready(); err != nil {
		return err
	}
	if !r.live.Load() {
		return errors.New("the backlog of results is being read")
	}
	return nil
}

// Run follows the stream until ctx ends.
func (r *Reader) Run(ctx context.Context, f Follower) {
	r.link.run(ctx, func(s *session) error {
		err := r.follow(ctx, s, f)
		switch {
		case errors.Is(err, errMissing) && r.doubts > 0:
			r.doubts-- // the replica of this node may lag: ask the next one
		case errors.Is(err, errMissing):
			f.AppendGap(errMissing.Error())
			r.gap, r.last = true, entry{offset: -1}
		case errors.Is(err, errMarkLost):
			// If the user may declare the binding, the next session finds it.
			err = errors.Join(err, s.bounded(ctx, func() error { return s.repair(r.cfg.Topology) }))
		}
		return err
	})
}

// follow reads until the session or ctx ends.
func (r *Reader) follow(ctx context.Context, s *session, f Follower) error {
	c, err := r.open(ctx, s)
	if err != nil {
		return permissions(err, r.cfg)
	}
	defer c.close()
	go r.proof.watch(s)
	defer r.proof.ended(s)
	go r.link.homesick(s, func() { s.end(errHome) })
	phase := meeting
	if r.last.offset < 0 {
		r.doubts = len(r.cfg.urls()) - 1
		phase = filling
		r.link.up()
	}
	for {
		entries, err := c.next(ctx)
		if err != nil {
			return err
		}
		r.proof.received(s, entries)
		// Our own mark is part of the backlog: new listeners stand after it.
		newer := messageOf(entries[0].offset) > c.end
		atEnd := messageOf(entries[0].offset) == c.end
		if phase == meeting {
			if entries, err = meet(entries, r.last); err != nil {
				return err
			}
			phase = filling
			r.doubts = len(r.cfg.urls()) - 1
			r.link.up()
		}
		if phase == filling && newer {
			phase = following
			r.goLive(f)
		}
		for _, e := range entries {
			r.pass(e, f)
		}
		if phase == filling && atEnd {
			phase = following
			r.goLive(f)
		}
	}
}

// open returns a cursor that begins where the reader stands. To begin to read
// takes RabbitMQ 4.3 twice net_setuptime while another node hangs, if that is the
// first by its name. So the end is not asked for before that, but meanwhile.
func (r *Reader) open(ctx context.Context, s *session) (*cursor, error) {
	want := demand{prefetch: readerPrefetch, window: readerWindow}
	if !s.many || r.last.offset < 0 {
		return s.openCursor(ctx, r.cfg, "revq-socket", want, r.begin)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	var end int64
	var unknown error
	var asking sync.WaitGroup
	asking.Go(func() { end, unknown = r.askEnd(ctx, s.url) })
	c, err := s.cursorAt(ctx, r.cfg, "revq-socket", want, messageOf(r.last.offset))
	if err != nil {
		cancel()
	}
	asking.Wait()
	if err != nil {
		return nil, err
	}
	if err = unknown; err == nil {
		_, err = r.begin(end)
	}
	if err != nil {
		c.close()
		return nil, err
	}
	c.end = end
	return c, nil
}

// askEnd asks a node for the end of the stream over a connection of its own.
func (r *Reader) askEnd(ctx context.Context, url string) (int64, error) {
	other, err := open(ctx, r.cfg, url, "mark")
	if err != nil {
		return 0, err
	}
	defer func() { go other.close() }() // nobody waits for that
	return other.askEnd(ctx)
}

// begin returns where to begin in a stream with this end. Both are the broker's
// offsets.
func (r *Reader) begin(end int64) (from int64, err error) {
	switch {
	case r.last.offset >= firstOf(end):
		return 0, errMissing // the stream ends earlier: it was re-created
	case r.last.offset >= 0:
		return messageOf(r.last.offset), nil
	}
	r.before = 0
	if from = end - 2*r.backlog; r.gap || from <= 0 {
		return 0, nil // and nothing is left out
	}
	r.before = end - r.backlog
	return from, nil
}

// meet returns the entries after last that are in the same message.
func meet(entries []entry, last entry) ([]entry, error) {
	for i, e := range entries {
		if e.offset == last.offset && e.id == last.id {
			return entries[i+1:], nil
		}
	}
	return nil, errMissing
}

func (r *Reader) pass(e entry, f Follower) {
	r.last = entry{offset: e.offset, id: e.id}
	switch {
	case messageOf(e.offset) < r.before:
		if !e.mark && e.invalid == nil {
			f.Remember(e.result)
		}
	case e.mark && e.invalid == nil:
		f.AppendMark(e.offset, e.id)
	case e.mark: // another program's message: nobody can stand there
	default:
		if e.invalid != nil {
			r.log.Error("a result cannot be sent to listeners; they are told that it is lost", "offset", e.offset, "id", e.id, "error", e.invalid)
		}
		f.Append(e.offset, e.result)
	}
}

func (r *Reader) goLive(f Follower) {
	if !r.live.Load() {
		f.GoLive()
		r.live.Store(true)
	}
}

// permissions adds to err how to give the user the missing permissions, if that
// is the cause of err.
func permissions(err error, cfg Config) error {
	if !isRefused(err) {
		return err
	}
	vhost, user := cfg.Login()
	return fmt.Errorf(`the user lacks a permission: run rabbitmqctl -p '%s' set_permissions '%s' '^$' '^revq\.marks$' '^revq\.results$': %w`, vhost, user, err)
}
