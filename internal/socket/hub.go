package socket

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/liveness"
)

// recordBytes is the maximum length of one write to a listener that is not
// polled. It must receive that within the write timeout. It is the length of a
// TLS record.
const recordBytes = 16 << 10

// A hub serves the listeners whose connections a shard cannot poll, such as
// those with TLS. Each has two goroutines, one that reads and one that writes.
// The hub's own goroutine wakes them, pings them, and closes slow ones.
type hub struct {
	cfg    Config
	onDrop func(*listener) // called for each listener that is gone
	loop   *liveness.Loop

	news  chan struct{} // of capacity 1
	awake atomic.Bool
	over  chan struct{} // closed by end, when there will be no more listeners
	end   func()

	serving sync.WaitGroup // goroutines of listeners

	mu       sync.Mutex
	members  map[*unpolled]struct{}
	stopping bool
}

// An unpolled is a listener with goroutines of its own.
type unpolled struct {
	hub *hub

	news   chan struct{} // of capacity 1: there may be something to write
	closed chan struct{}
	close  sync.Once

	mu sync.Mutex // guards the rest
	l  *listener
}

func newHub(cfg Config, onDrop func(*listener)) *hub {
	h := &hub{
		cfg: cfg, onDrop: onDrop, loop: liveness.New("the hub of the listeners with TLS", loopLimit),
		news: make(chan struct{}, 1), over: make(chan struct{}), members: make(map[*unpolled]struct{}),
	}
	h.end = sync.OnceFunc(func() { close(h.over) })
	return h
}

// wake makes all listeners check for new results.
func (h *hub) wake() {
	if !h.awake.Swap(true) {
		h.news <- struct{}{} // does not block: the last value was received before awake was reset
	}
}

// join starts to serve l.
func (h *hub) join(l *listener) {
	p := &unpolled{hub: h, l: l, news: make(chan struct{}, 1), closed: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopping {
		l.conn.Close()
		h.onDrop(l)
		return
	}
	h.members[p] = struct{}{}
	h.serving.Go(p.read)
	h.serving.Go(p.write)
}

// run wakes, pings and closes listeners until end is called.
func (h *hub) run() {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		h.loop.Idle()
		select {
		case <-h.news:
			h.loop.Busy()
			h.awake.Store(false)
			for _, p := range h.all() {
				p.wake()
			}
		case now := <-ticker.C:
			h.loop.Busy()
			for _, p := range h.all() {
				p.look(now)
			}
		case <-h.over:
			h.loop.Idle()
			return
		}
	}
}

func (h *hub) all() []*unpolled {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]*unpolled, 0, len(h.members))
	for p := range h.members {
		all = append(all, p)
	}
	return all
}

// shutdown dismisses all listeners, spread over some time, and returns when
// they are gone, or soon after abort is closed.
func (h *hub) shutdown(why farewell, abort <-chan struct{}) {
	h.mu.Lock()
	h.stopping = true
	h.mu.Unlock()
	all := h.all()
	awaitSent(all, abort)
	ticker := time.NewTicker(dismissTick)
	defer ticker.Stop()
	began := time.Now()
	for told := 0; told < len(all); {
		for due := toldBy(time.Since(began), len(all)); told < due; told++ {
			all[told].dismiss(why)
		}
		select {
		case <-ticker.C:
		case <-abort:
			told = len(all)
		}
	}
	gone := make(chan struct{})
	go func() {
		h.serving.Wait()
		close(gone)
	}()
	select {
	case <-gone:
	case <-abort:
		for _, p := range h.all() {
			p.drop()
		}
		<-gone
	}
	h.end()
}

// lastWrites is how long shutdown waits for the results that were appended
// before it. It has to end, since under load there are always more.
const lastWrites = 500 * time.Millisecond

// awaitSent waits until everything is written to all, for at most lastWrites.
func awaitSent(all []*unpolled, abort <-chan struct{}) {
	waiting := slices.Clone(all)
	late := time.After(lastWrites)
	ticker := time.NewTicker(dismissTick)
	defer ticker.Stop()
	for {
		waiting = slices.DeleteFunc(waiting, (*unpolled).isSent)
		if len(waiting) == 0 {
			return
		}
		select {
		case <-ticker.C:
		case <-late:
			return
		case <-abort:
			return
		}
	}
}

// isSent returns true if everything was written.
func (p *unpolled) isSent() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	b, _, err := p.l.next()
	return len(b) == 0 || err != nil
}

// dismiss sends the listener a farewell.
func (p *unpolled) dismiss(why farewell) {
	p.mu.Lock()
	p.l.dismiss(why)
	p.mu.Unlock()
	p.wake()
}

func (p *unpolled) wake() {
	select {
	case p.news <- struct{}{}:
	default: // it was woken already
	}
}

// drop closes the connection and forgets the listener.
func (p *unpolled) drop() {
	p.close.Do(func() {
		close(p.closed)
		p.hub.mu.Lock()
		delete(p.hub.members, p)
		p.hub.mu.Unlock()
		front.Below(p.l.conn).Close() // before that of TLS, which would first send an alert, and wait to do so
		p.l.conn.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.hub.onDrop(p.l)
	})
}

// read reads what the listener sends.
func (p *unpolled) read() {
	defer p.drop()
	var parser inbound
	for b := make([]byte, 512); ; {
		n, err := p.l.conn.Read(b)
		if n > 0 {
			p.mu.Lock()
			gone := p.l.receive(b[:n], &p.hub.cfg, &parser)
			p.mu.Unlock()
			if gone {
				return
			}
			p.wake()
		}
		if err != nil {
			return
		}
	}
}

// write writes what the listener was not sent yet, and waits for more.
func (p *unpolled) write() {
	defer func() { // nobody else writes
		p.mu.Lock()
		p.l.release()
		p.mu.Unlock()
	}()
	for {
		p.mu.Lock()
		b, fromLog, err := p.l.next()
		if len(b) > 0 {
			p.l.phase, p.l.since = blocked, time.Now()
		}
		p.mu.Unlock()
		if err != nil {
			p.drop()
			return
		}
		if len(b) == 0 {
			select {
			case <-p.news:
				continue
			case <-p.closed:
				return
			}
		}
		n, err := p.l.conn.Write(b[:min(len(b), recordBytes)]) // look closes the connection if this takes too long
		p.l.counts.bytes.Add(int64(n))
		p.mu.Lock()
		last := err == nil && p.l.wrote(b, n, fromLog, time.Now())
		p.mu.Unlock()
		if err != nil {
			p.drop()
			return
		}
		if last {
			if c, ok := p.l.conn.(interface{ CloseWrite() error }); ok {
				_ = c.CloseWrite() // fails if the listener has closed already
			}
			return // read waits for the end of the connection, and look limits that wait
		}
	}
}

// look does for the listener what is to be done in this tick.
func (p *unpolled) look(now time.Time) {
	p.mu.Lock()
	do := p.l.look(now, &p.hub.cfg)
	p.mu.Unlock()
	switch do {
	case ping, dismiss:
		p.wake()
	case force:
		makeRoom(p.l.fd) // ends the write that hangs
	case drop:
		p.drop()
	}
}
