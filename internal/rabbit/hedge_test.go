package rabbit

import (
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// Whoever waits for the answer to a task does not wait until a connection that
// confirms nothing is given up.
func TestTaskGoesOverAnotherConnection(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	direct := r.url
	stuck := r.proxy()
	defer close(stuck.resume)
	r.cfg.URLs = append(r.cfg.URLs, direct)
	r.cfg.PublishConnections = 2
	p := NewPublisher(r.cfg, r.log)
	for i, l := range p.lanes {
		l.link.first = i
	}
	r.run(p.Run)
	for _, l := range p.lanes {
		r.ready(func() error { _, err := l.current(); return err })
	}
	stuck.after.Store(1)
	if err := r.answered(p.PublishTask(newTask(0))); err != nil {
		t.Fatal(err)
	}
	receive(t, "the broker's last word over the first connection", stuck.stopped)
	// A burst of them goes to that connection, which lasts for 1.75 s.
	for i := range 3 {
		if err := r.answered(p.PublishTask(newTask(i))); err != nil {
			t.Errorf("PublishTask(%d) = %v", i, err)
		}
	}
}

// What is published once more is bounded by what others confirm.
func TestOverdue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := fakePipeline(DefaultConfig("test"))
		p.hedge = func(*publication) {}
		p.answers = func(time.Duration) bool { return true }
		for _, id := range []string{"a", "b", "c"} {
			published(p, id)
		}
		p.next()
		published(p, "d") // the connection does not take it
		for _, pub := range []*publication{{key: resultsKey}, {exchange: Exchange, key: probeKey, probe: true}} {
			pub.answer = make(chan error, 1)
			if err := p.take(pub); err != nil {
				t.Fatal(err)
			}
		}
		overdue := func() (ids []string) {
			for _, pub := range p.overdue(time.Now()) {
				ids = append(ids, pub.message.MessageId)
			}
			return ids
		}
		expect := func(when string, want ...string) {
			t.Helper()
			if got := overdue(); !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", when, got, want)
			}
		}
		time.Sleep(hedgeAfter)
		expect("while it does not lag")
		p.lags.Store(true)
		expect("while nothing is confirmed", "a")
		expect("at once after that")
		time.Sleep(lagsAfter)
		expect("a while after that", "b")
		p.shared.confirmed.Store(time.Now().UnixNano())
		expect("when others are confirmed", "c", "d")
		p.sent[0].hedged = false // since it was confirmed by nobody
		p.sent[1].settled = true
		p.sent[1].hedged = false
		expect("once more", "a")
		published(p, "e")
		expect("at first")
	})
}

// The kernel of a node that hangs accepts connections.
func TestNodeThatSaysNothing(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	hangs, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hangs.Close()
	r.cfg.URLs = []string{"amqp://" + hangs.Addr().String(), r.url}
	r.cfg.DialTimeout = patience
	p := NewPublisher(r.cfg, r.log)
	l := p.lanes[0].link
	l.first = 0
	r.run(p.Run)
	r.ready(p.Ready)
	r.out.Says(t, "no answer within 500ms")
	if url := l.session.Load().url; url != r.url {
		t.Errorf("connected to %s", url)
	}
}
