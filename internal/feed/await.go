package feed

import (
	"bytes"
	"context"
)

// awaited is a task whose last message somebody awaits.
type awaited struct {
	data    []byte        // the message in JSON, once told is closed
	told    chan struct{} // closed when it is there
	waiters int
}

// Await returns the last message about a task in JSON: the newest one that the
// logs hold, or else the next one. It waits until ctx ends, and returns nil
// then. A task that has told of progress since its last message is awaited
// again: somebody has requeued it.
func (f *Feed) Await(ctx context.Context, id string) []byte {
	d := nameOf(id)
	f.mu.Lock()
	if data := f.outcome(d); data != nil || ctx.Err() != nil {
		f.mu.Unlock()
		return data
	}
	a := f.awaited[d]
	if a == nil {
		a = &awaited{told: make(chan struct{})}
		f.awaited[d] = a
	}
	a.waiters++
	f.mu.Unlock()
	select {
	case <-a.told:
		return a.data
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if a.waiters--; a.waiters == 0 && f.awaited[d] == a {
		delete(f.awaited, d)
	}
	return a.data // it may have come just now
}

// Outcome returns the last message about a task in JSON, if the logs hold it,
// and nil otherwise.
func (f *Feed) Outcome(id string) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.outcome(nameOf(id))
}

// outcome returns the newest message about a task, if it is the last one and
// the log holds it.
func (f *Feed) outcome(id digest) []byte {
	number, ok := f.latest(id)
	if !ok || f.at(number).class != last {
		return nil
	}
	begin := f.begin(number, JSON)
	frames, err := f.logs[JSON].Read(begin)
	if err != nil {
		return nil
	}
	return payload(frames[:f.at(number).ends[JSON]-begin])
}

// tell passes the newest message, which is in f.data, to those who await it.
func (f *Feed) tell(r record) {
	if len(f.awaited) == 0 || r.class != last {
		return
	}
	if a := f.awaited[r.id]; a != nil {
		a.data = bytes.Clone(f.data)
		close(a.told)
		delete(f.awaited, r.id)
	}
}
