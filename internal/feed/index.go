package feed

import (
	"cmp"
	"slices"
)

// A class says what a record is to a listener with a filter.
type class uint8

const (
	message class = iota // about a task, and more may come about it
	last                 // about a task, and nothing more will come, unless somebody requeues it
	mark                 // nothing is sent
	gap                  // for everybody
)

// A record says where a result, or another message, is in the logs. It begins
// where the record before it ends.
type record struct {
	offset int64
	id     digest // of the task, or of the mark message
	queue  digest
	ends   [formats]Position
	back   uint32 // how many records before this one the previous one of its bucket is; 0 for none
	class  class
}

// unknown is the digest of an id or a queue that is not known.
const unknown digest = 0

// nameOf returns the digest of an id or of a queue's name.
func nameOf(name string) digest {
	if name == "" {
		return unknown
	}
	return digestOf(name)
}

// buckets is how many chains of records there are, to find a task's newest one.
// The logs hold some hundred thousand messages: a chain has about ten.
const buckets = 1 << 14

// An index has a record of each message in the logs, in their order. A record
// has a number, which counts from the first one ever.
type index struct {
	records []record
	gone    int               // so many at the start are no longer held by a log
	base    [formats]Position // where the first record begins
	first   uint64            // the number of records[0]

	stream uint64          // the number of the first record of this stream; offsets before are of another one
	newest [buckets]uint64 // by id: one more than the number of the newest record, 0 for none
}

// end returns the number that the next record will have.
func (x *index) end() uint64 { return x.first + uint64(len(x.records)) }

// kept returns the number of the first record that all logs hold.
func (x *index) kept() uint64 { return x.first + uint64(x.gone) }

func (x *index) at(number uint64) *record { return &x.records[number-x.first] }

// add appends a record.
func (x *index) add(r record) {
	if r.class <= last && r.id != unknown {
		number, head := x.end(), &x.newest[r.id%buckets]
		if *head > x.first { // it has not been deleted
			r.back = uint32(number - (*head - 1))
		}
		*head = number + 1
	}
	x.records = append(x.records, r)
}

// latest returns the number of the newest record of a task.
func (x *index) latest(id digest) (number uint64, ok bool) {
	next := x.newest[id%buckets] // one more than its number
	for next > x.kept() {
		r := x.at(next - 1)
		switch {
		case r.id == id:
			return next - 1, true
		case r.back == 0:
			return 0, false
		}
		next -= uint64(r.back)
	}
	return 0, false
}

// begin returns where a record begins in the log of one format.
func (x *index) begin(number uint64, format Format) Position {
	if number == x.first {
		return x.base[format]
	}
	return x.at(number - 1).ends[format]
}

// marksInARow is how many mark messages are recorded between two results. A
// listener that stands at another one resumes from the broker.
const marksInARow = 64

// addMark appends the record of a mark message, or replaces the last one by it
// after too many in a row.
func (x *index) addMark(r record) {
	current := x.records[max(x.kept(), x.stream)-x.first:]
	if n := len(current); n > marksInARow && current[n-marksInARow].ends == r.ends {
		current[n-1] = r
		return
	}
	x.add(r)
}

// search returns the number of the first record of this stream whose offset is
// not below offset, and whether it is equal. The offset of a record before it
// is known if it is not the lowest one.
func (x *index) search(offset int64) (number, lowest uint64, found bool) {
	lowest = max(x.kept(), x.stream)
	i, found := slices.BinarySearchFunc(x.records[lowest-x.first:], offset, func(r record, offset int64) int {
		return cmp.Compare(r.offset, offset)
	})
	return lowest + uint64(i), lowest, found
}

// trim drops the records of messages that a log no longer holds, given where
// the logs start. The Text log may hold short texts by the million, but a
// listener that resumes so far back can get them from the broker. trim drops a
// quarter of the records at once, so that the array is reused and the rest is
// seldom moved.
func (x *index) trim(starts [formats]Position) {
	for x.gone < len(x.records) && !x.records[x.gone].held(starts) {
		x.gone++
	}
	if x.gone > len(x.records)/4 {
		x.base = x.records[x.gone-1].ends
		x.records = slices.Delete(x.records, 0, x.gone)
		x.first += uint64(x.gone)
		x.gone = 0
	}
}

func (r record) held(starts [formats]Position) bool {
	for format, start := range starts {
		if r.ends[format] < start {
			return false
		}
	}
	return true
}
