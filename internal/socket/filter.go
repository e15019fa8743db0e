package socket

import (
	"fmt"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/token"
	"github.com/revq/revq/internal/wire"
)

// maxQueues is how many queues one listener may name: each costs a comparison
// for each result.
const maxQueues = token.MaxQueues

// parseFilter returns what a listener wants, nil for everything. One that names
// no queue gets those that its token is for.
func parseFilter(args *fasthttp.Args, permit *token.Permit) (*feed.Filter, error) {
	var queues []string
	for _, name := range args.PeekMulti(wire.QueueParameter) {
		if err := wire.CheckQueue(string(name)); err != nil {
			return nil, fmt.Errorf("?%s=%.100s: %w", wire.QueueParameter, name, err)
		}
		queues = append(queues, string(name))
	}
	if len(queues) == 0 && permit != nil {
		queues = permit.Queues
	}
	ids := args.PeekMulti(wire.IDParameter)
	id := ""
	switch {
	case len(queues) > maxQueues:
		return nil, fmt.Errorf("%d queues, at most %d are taken: listen without ?%s= and skip the others", len(queues), maxQueues, wire.QueueParameter)
	case len(ids) > 1:
		return nil, fmt.Errorf("%d ids, at most one is taken: listen once for each task", len(ids))
	case len(ids) == 1:
		id = string(ids[0])
		if err := wire.CheckID(id); err != nil {
			return nil, fmt.Errorf("?%s=: %w", wire.IDParameter, err)
		}
	case len(queues) == 0:
		return nil, nil
	}
	filter := feed.NewFilter(queues, id)
	if permit != nil && permit.Queues != nil {
		filter.Private()
	}
	return filter, nil
}

// nextWanted is next for a listener with a filter and without anything in
// control.
func (l *listener) nextWanted() (b []byte, fromLog bool, err error) {
	run, err := l.view.Next(l.pos)
	switch {
	case err != nil:
		l.dismiss(byeFellBehind)
		return l.next()
	case run.Over:
		l.pos = run.From
		l.dismiss(byeOf(run.Without))
		return l.next()
	}
	l.pos = run.From
	if b, err = l.log.Read(run.From); err != nil {
		l.dismiss(byeFellBehind)
		return l.next()
	}
	return b[:min(len(b), int(run.To-run.From))], true, nil
}

// byeOf returns the farewell after the last message about the only task that a
// listener wants. without is set if the format had no message for it.
func byeOf(without bool) farewell {
	if without {
		return byeNoResult
	}
	return byeOver
}

// appendPlace tells a listener that was sent nothing for a while where it
// stands, so that it need not read all that was left out when it resumes.
func (l *listener) appendPlace() {
	if l.view == nil || l.pos == feed.Pending || l.held != nil || l.phase == blocked {
		return // a frame before this place may be on its way
	}
	at, pos, ok := l.view.Mark(l.pos)
	l.pos = pos
	if ok {
		l.control = feed.AppendPlace(l.control, l.log.Format(), at)
	}
}
