package rabbit

import "time"

// hedgeAfter is how long a task may be in flight over a connection that lags
// before it is published over another one, too. A node that hangs confirms
// nothing; neither does a connection that began while a queue had no leader,
// for up to 3.4 s (seen with RabbitMQ 3.10.8). Both end before long, but whoever
// waits for the answer should not wait for that. Otherwise the broker confirms
// within milliseconds.
const hedgeAfter = 500 * time.Millisecond

// overdue returns the tasks that are to be published over another connection,
// too: those that have waited for hedgeAfter, if other connections confirm what
// they get, otherwise one of them each lagsAfter. So a broker that is slow as a
// whole gets little more to do.
func (p *pipeline) overdue(now time.Time) (late []*publication) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hedge == nil || !p.lags.Load() {
		return nil
	}
	othersWork := now.Sub(time.Unix(0, p.shared.confirmed.Load())) < lagsAfter // since p itself lags
	if !othersWork && now.Sub(p.hedged) < lagsAfter {
		return nil
	}
	for _, list := range [][]*publication{p.sent, p.waiting} {
		for _, pub := range list {
			waited := p.cfg.ConfirmTimeout - pub.deadline.Sub(now)
			if pub.settled || pub.hedged || waited < hedgeAfter || kindOf(pub.key) != taskKind || pub.probe {
				continue
			}
			pub.hedged, p.hedged = true, now
			late = append(late, pub)
			if !othersWork {
				return late
			}
		}
	}
	return late
}

// hedge publishes a task that is in flight over one connection over another one.
// Whichever is confirmed first answers it. If both are, the task comes twice, as
// it does when a client posts it again.
func (p *Publisher) hedge(from *pipeline, late *publication) {
	again := &publication{
		exchange: late.exchange, key: late.key, message: late.message, optional: late.optional,
		answer: make(chan error, 1), hedged: true,
	}
	err := p.any(p.turn.Add(1)/burst, func(pipe *pipeline) error {
		if pipe == from || pipe.lags.Load() {
			return ErrTimeout
		}
		return pipe.accept(again)
	})
	answered := func(err error) {
		from.mu.Lock()
		defer from.mu.Unlock()
		if err == nil {
			late.settle(nil)
		} else {
			late.hedged = false // it may be tried once more
		}
	}
	if err != nil {
		answered(err)
		return
	}
	go func() { answered(<-again.answer) }() // within the ConfirmTimeout
}
