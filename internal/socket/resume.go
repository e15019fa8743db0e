package socket

import (
	"context"
	"errors"
	"time"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

const (
	// aheadPatience is how long the server waits for the feed to reach a
	// listener's mark before it asks the broker. The listener may come from
	// another site that was a little faster than this one.
	aheadPatience = 100 * time.Millisecond

	// fillPatience is how long a listener that resumes waits for the backlog
	// to be read, after a start.
	fillPatience = 10 * time.Second

	// endPatience is how long a listener that has read the stream to its end
	// waits for the feed to reach the same place.
	endPatience = 10 * time.Second

	// waitTick is how often a waiting listener checks the feed.
	waitTick = 10 * time.Millisecond

	// remembered is how many results are remembered to detect repetitions.
	remembered = 20_000

	// catchUpBytes is how many bytes are collected for one write.
	catchUpBytes = 64 << 10

	// longText is the length of a text, in bytes, beyond which only one
	// catch-up at a time may write one. The results of revq's workers have
	// 1 MiB at most by default.
	longText = 1 << 20
)

// lookBack is how many results before the mark are read at least, so that a
// repetition of one of them is not sent. It equals the backlog of the feed,
// which exists for the same reason.
var lookBack = int64(feed.DefaultConfig().Backlog)

// resume greets l and brings it to its place in the live log, after a mark. It
// sends l the results that the log no longer holds from the source, before it
// returns. Afterwards, l.conn is nil if the listener is gone.
func (s *Server) resume(l *listener, what wanted, after wire.Mark) {
	l.control = feed.AppendGreeting(l.control, what.format, after, wire.Greeting)
	c := catchUp{s: s, l: l, format: what.format, filter: what.filter}
	err := c.resume(s.stopped, after)
	s.counts.resumed(err, c.turn != nil)
	switch {
	case err == nil:
		l.pos = c.pos
		if len(l.control) == 0 {
			l.control = nil // it had room for a frame
		}
	case errors.Is(err, errWrite), errors.Is(err, errLeft):
		l.conn.Close()
		l.conn = nil
		s.left(l)
	case errors.Is(err, errTold):
		l.leaving, l.dismissed = true, true // its last words are in control
		s.counts.closes[gapClose].Add(1)
	case s.stopped.Err() != nil:
		s.sayBye(l, byeRestart)
	case errors.Is(err, errTooMany):
		s.sayBye(l, byeNoHistory)
	case errors.Is(err, errTurnOver):
		c.place()
		s.sayBye(l, byeTurnOver)
	case errors.Is(err, errOver):
		s.sayBye(l, byeOver)
	case errors.Is(err, errNoResult):
		s.sayBye(l, byeNoResult)
	default:
		s.log.Warn("a listener could not resume", "after", after.String(), "error", err)
		s.sayBye(l, byeNoHistory)
	}
}

func (s *Server) sayBye(l *listener, why farewell) {
	l.dismiss(why)
}

var (
	errWrite = errors.New("the listener takes nothing")
	errTold  = errors.New("the listener was told of a gap and is closed")
	errThere = errors.New("the live log continues from here")

	errOver     = errors.New("the last message about the task was read")
	errNoResult = errors.New("the last message about the task was read, and the format has none for it")

	// Reasons for gaps, as listeners receive them.
	errAnotherStream = errors.New("the stream of results was re-created: the offset belongs to the old stream")
	errExpired       = errors.New("the offset is too old: results of that age are no longer kept")
)

// A catchUp brings one listener from a mark to the live log. It writes to the
// connection itself, since no shard serves that connection yet.
type catchUp struct {
	s      *Server
	l      *listener
	format feed.Format
	filter *feed.Filter // nil for everything
	turn   *turn

	after   wire.Mark     // the last message that the listener has received
	at      wire.Mark     // the last message read from the stream
	leftOut int           // number of results that the filter left out after the last one that was sent
	earlier bool          // a message before the mark was read
	met     bool          // the message at the mark was read
	seen    *feed.Window  // results before and after the mark
	pos     feed.Position // in the log, once the catch-up is complete
}

// resume sets c.pos to the listener's place in the log. It takes a turn to read
// from the broker only if the log does not hold that place.
func (c *catchUp) resume(ctx context.Context, after wire.Mark) error {
	verdict, err := c.await(ctx, after)
	if err != nil || verdict == feed.Here {
		return err
	}
	if c.turn, err = c.s.turns.begin(ctx, c.l.conn); err != nil {
		return err
	}
	defer c.s.turns.finish(c.turn)
	err = c.run(c.turn.ctx, after, verdict)
	if cause := context.Cause(c.turn.ctx); cause != nil && err != nil && !errors.Is(err, errWrite) && !errors.Is(err, errOver) && !errors.Is(err, errNoResult) {
		return cause
	}
	return err
}

func (c *catchUp) run(ctx context.Context, after wire.Mark, verdict feed.Verdict) (err error) {
	if verdict == feed.Foreign {
		after, err = c.gap(after, errAnotherStream.Error())
	}
	for err == nil {
		err = c.read(ctx, after)
		if errors.Is(err, errAnotherStream) || errors.Is(err, errExpired) {
			after, err = c.gap(after, err.Error())
		}
	}
	if errors.Is(err, errThere) {
		c.place()
		return c.flush()
	}
	return err
}

// place tells the listener where it stands, if results were left out.
func (c *catchUp) place() {
	if c.leftOut > 0 {
		c.l.control = feed.AppendPlace(c.l.control, c.format, c.filter.Hide(c.at)) // messages are left out only with a filter
		c.leftOut = 0
	}
}

// find returns the place after a mark in the log.
func (c *catchUp) find(m wire.Mark) (feed.Position, feed.Verdict) {
	if c.l.view != nil {
		return c.l.view.Find(m)
	}
	return c.s.feed.Find(c.format, m)
}

// await waits until the backlog was read, and then for aheadPatience until the
// feed reaches the mark.
func (c *catchUp) await(ctx context.Context, after wire.Mark) (feed.Verdict, error) {
	tick := time.NewTicker(waitTick)
	defer tick.Stop()
	began := time.Now()
	live := began
	for {
		now := time.Now()
		if pos, _ := c.l.log.Live(); pos == feed.Pending {
			live = now
			if now.Sub(began) > fillPatience {
				return 0, errors.New("the backlog of results is not read yet")
			}
		} else {
			pos, verdict := c.find(after)
			if verdict != feed.Ahead || now.Sub(live) > aheadPatience {
				c.pos = pos
				return verdict, nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// read reads the history, from lookBack results before the mark on.
func (c *catchUp) read(ctx context.Context, after wire.Mark) error {
	c.after, c.at, c.seen = after, after, feed.NewWindow(remembered)
	c.earlier, c.met = false, after.Offset < 0 // a mark at the beginning always exists
	return c.s.source.History(ctx, after.Offset, lookBack, c.take, c.takeMark, func() error { return c.end(ctx) })
}

// end is called at the end of the stream. The feed may not be there yet.
func (c *catchUp) end(ctx context.Context) error {
	if !c.met {
		return errAnotherStream
	}
	if err := c.flush(); err != nil {
		return err
	}
	tick := time.NewTicker(waitTick)
	defer tick.Stop()
	for began := time.Now(); ; {
		pos, verdict := c.find(wire.Mark{Offset: c.at.Offset})
		switch {
		case verdict == feed.Here:
			c.pos = pos
			return errThere
		case verdict != feed.Ahead: // the feed is further already, so the stream has more
			return nil
		case time.Since(began) > endPatience:
			return errors.New("the feed does not reach the end of the stream: is the broker connected?")
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// handOver returns errThere if the log continues after the last message read.
func (c *catchUp) handOver() error {
	pos, verdict := c.find(wire.Mark{Offset: c.at.Offset})
	if verdict != feed.Here {
		return nil
	}
	c.pos = pos
	return errThere
}

// gap tells the listener that results after a mark are missing, and returns the
// mark after which it continues: the beginning of what is kept.
func (c *catchUp) gap(after wire.Mark, reason string) (wire.Mark, error) {
	c.s.counts.gaps.Add(1)
	c.l.control = feed.AppendGap(c.l.control, c.format, after, reason)
	if c.format == feed.Text {
		return wire.Mark{}, errTold
	}
	return wire.Mark{Offset: -1}, nil
}

// take is called with each result of the history.
func (c *catchUp) take(offset int64, r task.Result) error {
	further, err := c.step(offset, r.ID)
	if err != nil {
		return err
	}
	if c.seen.Add(r) && further {
		if err := c.send(offset, r); err != nil {
			return err
		}
	}
	if further {
		return c.handOver()
	}
	return nil
}

// placeEvery is how many results in a row are left out before the listener is
// told where it stands: if its connection breaks, it need not begin again.
const placeEvery = 10_000

// send collects a result for the next write, or leaves it out.
func (c *catchUp) send(offset int64, r task.Result) error {
	if c.filter != nil && !c.filter.Wants(r) {
		c.turn.sent.Add(int64(len(r.Text))) // it is not the listener who is slow
		if c.leftOut++; c.leftOut < placeEvery {
			return nil
		}
		c.place()
		return c.flush()
	}
	if len(r.Text) > longText {
		if err := c.s.turns.long.begin(c.turn); err != nil {
			return err
		}
		defer c.s.turns.long.end()
	}
	before := len(c.l.control)
	c.l.control = feed.AppendResult(c.l.control, c.format, offset, r)
	c.leftOut = 0
	switch {
	case c.filter != nil && c.filter.Ends(r) && len(c.l.control) == before:
		return errNoResult
	case c.filter != nil && c.filter.Ends(r):
		return errOver
	case len(c.l.control) >= catchUpBytes:
		return c.flush()
	}
	return nil
}

// takeMark is called with each mark of the history that has no result.
func (c *catchUp) takeMark(offset int64, id string) error {
	further, err := c.step(offset, id)
	if err == nil && further {
		err = c.handOver()
	}
	return err
}

// step advances to the next message of the stream, and returns whether that
// message is after the listener's mark.
func (c *catchUp) step(offset int64, id string) (further bool, err error) {
	switch {
	case offset < c.after.Offset:
		c.earlier = true
		return false, nil
	case offset == c.after.Offset:
		if c.after.ID != "" && id != c.after.ID {
			return false, errAnotherStream
		}
		c.met = true
		return false, nil
	case !c.met && c.earlier:
		return false, errAnotherStream
	case !c.met:
		return false, errExpired
	}
	c.at = wire.Mark{Offset: offset, ID: id}
	return true, nil
}

// flush writes what was collected in control. If the turn was cut, the rest
// stays in control, and the farewell is appended to it. A long rest would take
// memory for as long as the listener likes, so that one is closed without.
func (c *catchUp) flush() error {
	n, err := c.turn.write(c.l.control, c.s.cfg.WriteTimeout)
	c.s.counts.bytes.Add(int64(n))
	if n == len(c.l.control) && n > 2*catchUpBytes {
		c.l.control = nil // the next ones need not keep room for a long text
		return err
	}
	c.l.control = c.l.control[:copy(c.l.control, c.l.control[n:])]
	if err != nil && len(c.l.control) > longText {
		err = errWrite
	}
	return err
}
