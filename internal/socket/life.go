package socket

import (
	"time"

	"github.com/revq/revq/internal/feed"
)

// A phase is where a connection is in its life.
type phase uint8

const (
	open    phase = iota
	blocked       // its socket takes no bytes, or something is being written to it
	left          // its farewell was written, and its client is to close
)

// An action is what is to be done about a listener.
type action uint8

const (
	keep    action = iota
	ping           // send a ping
	dismiss        // send a farewell
	force          // send a farewell, and make room for it
	drop           // close the connection
)

// decide decides what is to be done about l. Its shard or the hub asks in each
// tick. If that ends l's connection with a farewell, why is not nil.
func (l *listener) decide(now time.Time, cfg *Config) (do action, why *farewell) {
	lasted := now.Sub(l.since) // of the phase
	switch {
	case !l.leaving && l.permit != nil && !l.permit.Valid(now):
		return dismiss, &byeRevoked
	case l.phase == left && lasted > closeGrace:
		return drop, nil
	case l.phase == blocked && !l.slow && lasted > cfg.WriteTimeout:
		return force, &byeTooSlow
	case l.phase == blocked && l.slow && lasted > closeGrace: // not even the farewell fits into the send buffer
		return drop, nil
	case l.leaving || now.Before(l.pingAt):
		return keep, nil
	case l.pos == feed.Pending && l.waited: // another site may serve it
		return dismiss, &byeNoBroker
	case l.silent && l.dialect.answersPings():
		return drop, nil
	}
	return ping, nil
}

// look does what decide says as far as it concerns the state of l. The rest is
// input and output, and up to the caller.
func (l *listener) look(now time.Time, cfg *Config) action {
	do, why := l.decide(now, cfg)
	if why != nil {
		l.dismiss(*why)
	}
	switch do {
	case force:
		l.slow, l.since = true, now
	case ping:
		l.pingAt, l.silent, l.heard = now.Add(cfg.PingInterval), true, 0
		l.waited = l.pos == feed.Pending
		l.appendPlace()
		l.control = l.dialect.appendPing(l.control)
	}
	return do
}

const (
	// When a server stops, a shard or the hub dismisses one of its listeners in
	// each dismissEach, or faster, so that it has dismissed all of them after
	// dismissAll. The pauses keep them from reconnecting all at once.
	dismissEach = time.Millisecond
	dismissAll  = 3 * time.Second
	dismissTick = 10 * time.Millisecond

	// closeGrace is how long a listener has to close its side, after it was
	// sent a farewell, and how long a farewell may take.
	closeGrace = 2 * time.Second
)

// toldBy returns how many of all listeners are to be dismissed when a stop has
// lasted for elapsed.
func toldBy(elapsed time.Duration, all int) int {
	total := min(time.Duration(all)*dismissEach, dismissAll)
	if elapsed >= total {
		return all
	}
	return int(int64(all) * int64(elapsed) / int64(total))
}
