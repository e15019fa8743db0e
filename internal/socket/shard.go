package socket

import (
	"errors"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/revq/revq/internal/liveness"
)

const (
	// tick is how often a shard and the hub look for listeners to ping or to
	// close.
	tick = time.Second

	// loopLimit is far longer than one round takes, which is at most a write to
	// each of 100,000 listeners.
	loopLimit = time.Minute
)

// A shard serves a part of the listeners with one goroutine. It reads what they
// send when its poller reports it, and writes to each what was appended to its
// log since the last time. All its socket calls are non-blocking.
type shard struct {
	cfg    Config
	log    *slog.Logger
	counts *counts
	onDrop func(*listener) // called for each listener that is gone
	loop   *liveness.Loop

	poller *poller
	news   chan struct{} // of capacity 1: there may be work for lookAround

	mu      sync.Mutex
	joining []*listener // not yet in listeners
	stop    *farewell   // if set, closes all listeners and then ends the goroutine
	aborted bool        // ends the goroutine without waiting for listeners
	ended   bool        // the goroutine has ended

	// The rest belongs to the goroutine.
	listeners []*listener
	byFD      map[int]*listener
	stopping  time.Time // when the stop began; zero before
	bye       farewell
	toDismiss []*listener // those at the start of the stop that are not yet dismissed
	dismissed int         // how many were dismissed
	written   int64       // bytes that are not in counts yet
	newest    time.Time   // when the task of the newest result sent was done
	now       time.Time
	received  [4096]byte
	parser    inbound // for listeners that are between messages
}

func newShard(cfg Config, log *slog.Logger, counts *counts, onDrop func(*listener)) (*shard, error) {
	poller, err := newPoller()
	if err != nil {
		return nil, err
	}
	return &shard{
		cfg: cfg, log: log, counts: counts, onDrop: onDrop, loop: liveness.New("a shard of the listeners", loopLimit),
		poller: poller, news: make(chan struct{}, 1), byFD: make(map[int]*listener),
	}, nil
}

// wake makes the goroutine call lookAround. It never blocks, and costs almost
// nothing if the goroutine was woken already.
func (s *shard) wake() {
	select {
	case s.news <- struct{}{}:
	default: // it was woken already
	}
}

// join passes l to the shard.
func (s *shard) join(l *listener) {
	s.mu.Lock()
	ended := s.ended
	if !ended {
		s.joining = append(s.joining, l)
	}
	s.mu.Unlock()
	if ended {
		s.turnAway(l)
		return
	}
	s.wake()
}

// turnAway closes a listener that the shard has not admitted.
func (s *shard) turnAway(l *listener) {
	l.conn.Close()
	s.onDrop(l)
}

// close makes the shard dismiss all listeners. Then run returns.
func (s *shard) close(why farewell) {
	s.mu.Lock()
	s.stop = &why
	s.mu.Unlock()
	s.wake()
}

// abort makes run return without waiting for listeners.
func (s *shard) abort() {
	s.mu.Lock()
	s.aborted = true
	s.mu.Unlock()
	s.wake()
}

// run serves until close was called and all listeners are gone, or until abort.
func (s *shard) run() {
	defer s.loop.Idle()
	defer s.release()
	s.now = time.Now()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		var dismissal <-chan time.Time
		if len(s.toDismiss) > 0 {
			dismissal = time.After(dismissTick)
		}
		s.loop.Busy() // includes the wait, which is at most one tick
		select {
		case events := <-s.poller.ready:
			s.now = time.Now()
			for _, e := range events {
				s.handle(int(e.Fd), e.Events)
			}
			s.poller.handled <- struct{}{}
		case <-s.news:
			s.now = time.Now()
			if !s.lookAround() {
				return
			}
		case <-ticker.C:
			s.now = time.Now()
			s.look()
		case <-dismissal:
			s.now = time.Now()
		}
		s.counts.bytes.Add(s.written)
		s.written = 0
		if !s.stopping.IsZero() {
			s.dismissDue()
			if len(s.listeners) == 0 {
				return
			}
		}
	}
}

// handle handles the events of one listener's socket. If the socket with this
// descriptor was closed since the poll, and a new one has the same number, the
// events belong to the old one. This is harmless: the new one is only less
// ready than they say.
func (s *shard) handle(fd int, events uint32) {
	l, ok := s.byFD[fd]
	if !ok {
		return
	}
	if events&unix.EPOLLOUT != 0 {
		l.phase = open
		s.poller.control(unix.EPOLL_CTL_MOD, fd, unix.EPOLLIN)
		s.send(l)
	}
	if events&^unix.EPOLLOUT != 0 && s.byFD[fd] == l {
		s.receive(l)
	}
}

// lookAround does the work that wake announces: it admits listeners, begins a
// stop, and sends what is new. It returns false if the shard must end at once.
func (s *shard) lookAround() bool {
	s.mu.Lock()
	joining, stop, aborted := s.joining, s.stop, s.aborted
	s.joining = nil
	s.mu.Unlock()

	for _, l := range joining {
		s.admit(l)
	}
	if stop != nil && s.stopping.IsZero() {
		s.stopping, s.bye = s.now, *stop
		s.toDismiss = slices.Clone(s.listeners)
	}
	newest := s.counts.newest()
	for _, l := range s.backwards() {
		s.send(l)
	}
	if newest.After(s.newest) {
		if len(s.listeners) > 0 {
			s.counts.delivery.Add(time.Since(newest))
		}
		s.newest = newest
	}
	return !aborted
}

// dismissDue dismisses the listeners that are due. The others still receive
// results until then.
func (s *shard) dismissDue() {
	due := toldBy(s.now.Sub(s.stopping), len(s.toDismiss)+s.dismissed)
	for ; s.dismissed < due; s.dismissed++ {
		l := s.toDismiss[0]
		s.toDismiss = s.toDismiss[1:]
		if s.byFD[l.fd] == l { // it was not dropped meanwhile
			l.dismiss(s.bye)
			s.send(l)
		}
	}
}

// backwards iterates over the listeners in an order that allows the loop to
// drop the current one.
func (s *shard) backwards() iter.Seq2[int, *listener] { return slices.Backward(s.listeners) }

func (s *shard) admit(l *listener) {
	if err := s.poller.control(unix.EPOLL_CTL_ADD, l.fd, unix.EPOLLIN); err != nil {
		s.log.Error("could not poll a listener's socket; closed it", "error", err)
		s.turnAway(l)
		return
	}
	if !s.stopping.IsZero() {
		l.dismiss(s.bye)
	}
	l.index = len(s.listeners)
	s.listeners = append(s.listeners, l)
	s.byFD[l.fd] = l
}

// drop closes l's connection and forgets l.
func (s *shard) drop(l *listener) {
	last := len(s.listeners) - 1
	s.listeners[l.index] = s.listeners[last]
	s.listeners[l.index].index = l.index
	s.listeners[last] = nil
	s.listeners = s.listeners[:last]
	delete(s.byFD, l.fd)
	l.close() // also removes the descriptor from the poll
	s.onDrop(l)
}

// send writes to l what was not sent yet, until its socket takes no more.
func (s *shard) send(l *listener) {
	for l.phase == open {
		b, fromLog, err := l.next()
		if err != nil {
			s.drop(l)
			return
		}
		if len(b) == 0 {
			return
		}
		n, err := unix.Write(l.fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			l.phase, l.since = blocked, s.now
			s.poller.control(unix.EPOLL_CTL_MOD, l.fd, unix.EPOLLIN|unix.EPOLLOUT)
			return
		case err != nil:
			s.drop(l)
			return
		}
		s.written += int64(n)
		if last := l.wrote(b, n, fromLog, s.now); last {
			unix.Shutdown(l.fd, unix.SHUT_WR) // fails if the peer has closed already
		}
	}
}

// receive reads what l has sent.
func (s *shard) receive(l *listener) {
	n, err := unix.Read(l.fd, s.received[:])
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return // the poller reports it again
	case err != nil || n == 0:
		s.drop(l)
		return
	}
	if gone := l.receive(s.received[:n], &s.cfg, &s.parser); gone {
		s.drop(l)
		return
	}
	s.send(l)
}

// look does for each listener what is to be done in this tick.
func (s *shard) look() {
	for _, l := range s.backwards() {
		switch l.look(s.now, &s.cfg) {
		case ping, dismiss:
			s.send(l)
		case force:
			makeRoom(l.fd) // the poller reports it
		case drop:
			s.drop(l)
		}
	}
}

// release closes all listeners and the poller.
func (s *shard) release() {
	for _, l := range s.backwards() {
		s.drop(l)
	}
	s.poller.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for _, l := range s.joining {
		s.turnAway(l)
	}
}
