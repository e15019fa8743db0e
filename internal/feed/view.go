package feed

import (
	"slices"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// A Filter selects what a listener gets: messages about the tasks of some
// queues, about one task, or both. Gaps pass every filter, and so does a lost
// result whose task or queue is not known: it may be one that is wanted.
type Filter struct {
	queues  []digest
	id      digest
	private bool
}

// NewFilter returns a filter for the tasks of some queues (all if there is
// none), and if id is not empty, for this task only.
func NewFilter(queues []string, id string) *Filter {
	f := &Filter{id: nameOf(id)}
	for _, queue := range queues {
		if d := nameOf(queue); !slices.Contains(f.queues, d) {
			f.queues = append(f.queues, d)
		}
	}
	return f
}

// Private makes f keep from its listener the ids of tasks of other queues, which
// marks have otherwise. A mark without an id still says where to resume, but not
// whether the stream is the same.
func (f *Filter) Private() { f.private = true }

// Hide returns a mark that the listener may see in place of that of a message
// that is not for it.
func (f *Filter) Hide(m wire.Mark) wire.Mark {
	if f.private {
		m.ID = ""
	}
	return m
}

func (f *Filter) wants(id, queue digest) bool {
	return (f.id == unknown || id == unknown || id == f.id) &&
		(len(f.queues) == 0 || queue == unknown || slices.Contains(f.queues, queue))
}

// Wants reports whether r passes the filter.
func (f *Filter) Wants(r task.Result) bool { return f.wants(nameOf(r.ID), nameOf(r.Queue)) }

// Ends reports whether r is the last message about the only task of the filter.
func (f *Filter) Ends(r task.Result) bool {
	return f.id != unknown && nameOf(r.ID) == f.id && classOf(r.Kind) == last
}

// passes reports whether the message of a record passes the filter.
func (f *Filter) passes(r *record) bool {
	return r.class == gap || r.class != mark && f.wants(r.id, r.queue)
}

func (f *Filter) endsAt(r *record) bool {
	return f.id != unknown && r.id == f.id && r.class == last
}

// A View is the place of a listener with a filter: a position in a log, as for
// others, and the number of a record. It belongs to one listener and needs no
// lock of its own.
type View struct {
	feed   *Feed
	filter *Filter
	format Format

	next    uint64 // the number of the first record that was neither skipped nor sent as a whole
	skipped bool   // messages were skipped after the last one that was sent
}

// View returns a view of the log of one format. Join, Live or Find must come
// before Next.
func (f *Feed) View(filter *Filter, format Format) *View {
	return &View{feed: f, filter: filter, format: format}
}

// Join is Feed.Join for a listener with a filter. If its filter has one task
// and memory holds a message about it, the listener begins at the newest one.
func (v *View) Join() (Position, wire.Mark) {
	v.feed.mu.RLock()
	defer v.feed.mu.RUnlock()
	if !v.feed.logs[v.format].isLive() {
		return Pending, wire.Mark{Offset: -1}
	}
	v.next = v.feed.end()
	return v.newest(v.feed.logs[v.format].End(), v.shown(v.feed.last))
}

// Live is Log.Live for a listener with a filter.
func (v *View) Live() (Position, wire.Mark) {
	v.feed.mu.RLock()
	defer v.feed.mu.RUnlock()
	pos, at := v.feed.logs[v.format].Live()
	if pos == Pending {
		return pos, at
	}
	v.next = v.feed.live
	return v.newest(pos, v.shown(at))
}

// shown returns m as the listener may see it: with the id of a mark message, or
// of a task of its queues.
func (v *View) shown(m wire.Mark) wire.Mark {
	if number, _, found := v.feed.search(m.Offset); found {
		if r := v.feed.at(number); r.class == mark || slices.Contains(v.filter.queues, r.queue) {
			return m
		}
	}
	return v.filter.Hide(m)
}

// newest returns where a new listener begins: at the newest message about its
// only task, or else at pos, after at.
func (v *View) newest(pos Position, at wire.Mark) (Position, wire.Mark) {
	x := &v.feed.index
	number, ok := x.latest(v.filter.id)
	if v.filter.id == unknown || !ok {
		return pos, at
	}
	v.next = number
	at = wire.Mark{Offset: -1}
	if number >= x.stream {
		at.Offset = x.at(number).offset - 1
	}
	return x.begin(number, v.format), at
}

// Find is Feed.Find for a listener with a filter.
func (v *View) Find(m wire.Mark) (Position, Verdict) {
	v.feed.mu.RLock()
	defer v.feed.mu.RUnlock()
	pos, next, verdict := v.feed.find(v.format, m)
	v.next = next
	return pos, verdict
}

// A Run is what a listener with a filter gets next: the frames between two
// positions, none if they are equal. Everything before From was sent or is not
// for it.
type Run struct {
	From, To Position

	// Over is set if From and To are equal and the last message about the only
	// task of the filter was sent. The Text format says nothing about a task
	// that has no result: Without is set then.
	Over, Without bool
}

// recordsAtOnce is how many records are looked at under one lock, so that an
// append need not wait for long.
const recordsAtOnce = 4096

// Next returns what follows a position, at which the listener has arrived by
// Join, Live or Find, or by what Next returned before. The error is ErrGone or
// nil.
func (v *View) Next(pos Position) (Run, error) {
	for {
		run, more, err := v.some(pos)
		if !more || err != nil {
			return run, err
		}
		pos = run.From
	}
}

// some is Next for recordsAtOnce records; more is set if it has found nothing
// among these.
func (v *View) some(pos Position) (run Run, more bool, err error) {
	v.feed.mu.RLock()
	defer v.feed.mu.RUnlock()
	return v.look(pos)
}

func (v *View) look(pos Position) (run Run, more bool, err error) {
	x := &v.feed.index
	if v.next < x.kept() {
		return Run{}, false, ErrGone
	}
	records := x.records[v.next-x.first:]
	more = len(records) > recordsAtOnce
	records = records[:min(len(records), recordsAtOnce)]
	for i := range records {
		r := &records[i]
		end, passes := r.ends[v.format], v.filter.passes(r)
		switch {
		case passes && end > pos:
			v.skipped = false
			return Run{From: pos, To: v.extend(records[i:])}, false, nil
		case passes && v.filter.endsAt(r):
			return Run{From: pos, To: pos, Over: true, Without: v.format == Text && x.begin(v.next, v.format) == end}, false, nil
		case end > pos:
			pos, v.skipped = end, true
		}
		v.next++
	}
	return Run{From: pos, To: pos}, more, nil
}

// extend returns the end of the messages that pass, of which the first does.
func (v *View) extend(records []record) Position {
	end := records[0].ends[v.format]
	for i := range records {
		r := &records[i]
		if !v.filter.passes(r) {
			break
		}
		end = r.ends[v.format]
		if v.filter.endsAt(r) {
			break
		}
	}
	return end
}

// Mark returns the mark to tell a listener that stands at pos, if messages were
// skipped since the last one that it was sent and nothing is left to send.
// Whether or not there is one, the listener stands at after from then on: the
// view has passed what is before that.
func (v *View) Mark(pos Position) (at wire.Mark, after Position, ok bool) {
	v.feed.mu.RLock()
	defer v.feed.mu.RUnlock()
	run, more, err := v.look(pos)
	if err != nil {
		return wire.Mark{}, pos, false
	}
	if more || run.From != run.To || run.Over || !v.skipped {
		return wire.Mark{}, run.From, false
	}
	v.skipped = false
	return v.shown(v.feed.last), run.From, true
}
