package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"time"
)

// Fanout connects many listeners to a websocket server, and measures how messages reach them.
type Fanout struct {
	Target    *Target
	Listeners int

	// First is a text that each listener sends once it is connected; "" for none.
	First string

	// Publish returns what publishes. nil for messages that come by themselves.
	Publish func(context.Context) (Publisher, error)

	TextBytes int // length of a message
	Window    int // messages published and not received by all; more wait

	Light  time.Duration // of the measurement with few messages; 0 for none. It needs Publish
	Rate   float64       // messages a second in it
	Full   time.Duration // of the one with as many as possible; 0 for none
	Warmup time.Duration // before it
	Settle time.Duration // until an idle server's memory is looked at
	Rounds int           // how often all listeners leave and come again, at the end

	// Server is the process that is measured; nil if it is not to be seen.
	Server Processes
}

// A Publisher publishes messages to the listeners of a server, in their order.
type Publisher interface {
	// Publish has a message on its way, and does not wait.
	Publish(text string)

	// Failed returns why a message was not published, if one was not.
	Failed() error

	// Close ends it.
	Close()
}

// FanoutResult is what a Fanout has measured.
type FanoutResult struct {
	Server    string `json:"server"`
	Listeners int    `json:"listeners"`
	TextBytes int    `json:"text_bytes"`
	Window    int    `json:"window"` // messages on their way at once

	ConnectsPerSecond float64 `json:"connects_per_second"`

	// ResidentBefore and ResidentIdle are the server's memory before the listeners came, and when all were there and
	// nothing had been sent; 0 if it is not to be seen.
	ResidentBefore int64   `json:"resident_before_bytes,omitempty"`
	ResidentIdle   int64   `json:"resident_idle_bytes,omitempty"`
	ResidentFull   int64   `json:"resident_full_bytes,omitempty"` // after as many messages as possible
	PerListener    float64 `json:"resident_per_listener_bytes,omitempty"`

	Light  *FanoutLight `json:"light,omitempty"`
	Full   *FanoutFull  `json:"full,omitempty"`
	Rounds []Round      `json:"rounds,omitempty"`

	Closed int64  `json:"closed"` // listeners that the server has closed
	Reason string `json:"closed_reason,omitempty"`
}

// FanoutLight is with few messages.
type FanoutLight struct {
	Rate    float64 `json:"messages_per_second"`
	Each    Latency `json:"each"` // from publishing to each listener
	Last    Latency `json:"last"` // from publishing to the last listener
	Missing int64   `json:"missing"`
}

// FanoutFull is with as many messages as possible.
type FanoutFull struct {
	Seconds      float64 `json:"seconds"`
	Deliveries   int64   `json:"deliveries"`
	PerSecond    float64 `json:"deliveries_per_second"`
	Messages     float64 `json:"messages_per_second"`
	ServerMicros float64 `json:"server_cpu_us_per_delivery,omitempty"`
	LoadMicros   float64 `json:"load_cpu_us_per_delivery"`
	Others       float64 `json:"others_cpus"` // processors that everything else kept busy, the broker among it
}

// A Round is one of all listeners coming and leaving.
type Round struct {
	Connected int64 `json:"resident_connected_bytes"`
	Left      int64 `json:"resident_left_bytes"`
}

const (
	// handshakes is how many are under way at once: below the usual backlog of a listening socket.
	handshakes = 128

	// connectSilence ends connecting when no listener comes through for so long.
	connectSilence = 15 * time.Second

	// fanoutSilence ends a measurement in which messages are under way and no listener gets any.
	fanoutSilence = 15 * time.Second

	// leaveTimeout is how long a server may take to notice that listeners have left.
	leaveTimeout = 30 * time.Second

	// perSource is how many connections come from one address: a system has some 28,000 ports to give, and those of
	// closed connections are kept back for a minute.
	perSource = 20_000

	// spareFiles are open besides listeners.
	spareFiles = 64
)

// A crowd is a Fanout under way.
type crowd struct {
	*Fanout
	loop      *loop
	listeners []*listener
	dialed    int // in all, for the choice of the next source
	progress  func(what string, done float64)

	published int64 // messages, since the listeners joined
	light     *lightMeter
	total     int64 // marked messages received by all
	closed    int64 // listeners closed by the server
	reason    error // of the first of them
}

// Run measures. When ctx ends, it returns what was measured so far and the error.
func (f *Fanout) Run(ctx context.Context, progress func(what string, done float64)) (*FanoutResult, error) {
	if limit := OpenFiles(); f.Listeners+spareFiles > limit {
		return nil, fmt.Errorf("%d listeners need %d open files, and this program may have %d: raise the hard limit (ulimit -Hn; LimitNOFILE= for a service)",
			f.Listeners, f.Listeners+spareFiles, limit)
	}
	l, err := newLoop()
	if err != nil {
		return nil, err
	}
	defer l.close()
	c := &crowd{Fanout: f, loop: l, progress: progress}
	defer c.leave()
	var pub Publisher
	if f.Publish != nil {
		if pub, err = f.Publish(ctx); err != nil {
			return nil, err
		}
		defer pub.Close()
	}

	result := &FanoutResult{Server: f.Target.URL.Host, Listeners: f.Listeners, TextBytes: f.TextBytes, Window: f.Window, ResidentBefore: f.Server.resident()}
	err = c.measure(ctx, pub, result)
	result.Closed = c.closed
	if c.reason != nil {
		result.Reason = c.reason.Error()
	}
	if result.ConnectsPerSecond == 0 {
		return nil, err
	}
	return result, err
}

func (c *crowd) measure(ctx context.Context, pub Publisher, result *FanoutResult) error {
	descriptors := c.Server.descriptors()
	took, err := c.join(ctx)
	if err != nil {
		return err
	}
	result.ConnectsPerSecond = float64(c.Listeners) / took.Seconds()
	if len(c.Server) > 0 {
		if err := c.wait(ctx, c.Settle, "letting the server settle"); err != nil {
			return err
		}
		result.ResidentIdle = c.Server.resident()
		result.PerListener = float64(result.ResidentIdle-result.ResidentBefore) / float64(c.Listeners)
	}
	if c.Light > 0 && pub != nil {
		if result.Light, err = c.measureLight(ctx, pub); err != nil {
			return err
		}
	}
	if c.Full > 0 {
		if result.Full, err = c.measureFull(ctx, pub); err != nil {
			return err
		}
		result.ResidentFull = c.Server.resident()
	}
	for i := range c.Rounds {
		c.leave()
		if err := c.left(ctx, descriptors); err != nil {
			return err
		}
		round := Round{Left: c.Server.resident()}
		if _, err := c.join(ctx); err != nil {
			return fmt.Errorf("round %d: %w", i+1, err)
		}
		round.Connected = c.Server.resident()
		result.Rounds = append(result.Rounds, round)
	}
	return nil
}

// join connects all listeners.
func (c *crowd) join(ctx context.Context) (took time.Duration, err error) {
	began := time.Now()
	request := handshakeRequest(c.Target.URL)
	var first []byte
	if c.First != "" {
		first = appendMasked(nil, 1, []byte(c.First))
	}
	c.listeners = make([]*listener, 0, c.Listeners)
	c.published = 0
	joined := 0
	lastJoin, shown := began, time.Time{}
	dialNext := func() error {
		if len(c.listeners) == c.Listeners {
			return nil
		}
		l := &listener{
			loop: c.loop, handshake: request, first: first, frames: frameReader{marker: marker},
			received: c.received, closed: c.lost,
		}
		l.connected = func(*listener) error {
			joined++
			lastJoin = time.Now()
			return nil
		}
		c.listeners = append(c.listeners, l)
		return l.connect(c.Target.Addr, c.source())
	}
	err = c.loop.run(ctx, func() bool {
		for len(c.listeners)-joined < handshakes && len(c.listeners) < c.Listeners && err == nil {
			err = dialNext()
		}
		if now := time.Now(); now.Sub(shown) >= showEvery {
			shown = now
			c.progress("connecting listeners", float64(joined)/float64(c.Listeners))
		}
		if err == nil && time.Since(lastJoin) > connectSilence {
			err = fmt.Errorf("no listener came through for %v", connectSilence)
		}
		return joined == c.Listeners || err != nil || c.closed > 0
	})
	if err == nil && c.closed > 0 {
		err = c.reason
	}
	if err != nil {
		err = fmt.Errorf("after %d of %d listeners: %w", joined, c.Listeners, err)
	}
	return time.Since(began), err
}

// source returns the address that the next listener comes from: nil for any.
func (c *crowd) source() net.IP {
	c.dialed++
	if ip := c.Target.Addr.IP.To4(); ip == nil || !ip.IsLoopback() {
		return nil
	}
	return net.IPv4(127, 0, 0, byte(2+c.dialed/perSource%250))
}

func (c *crowd) received(l *listener, n int) {
	c.total += int64(n)
	if c.light != nil {
		c.light.received(l.count-int64(n), l.count)
	}
}

func (c *crowd) lost(_ *listener, err error) error {
	if c.closed++; c.reason == nil {
		c.reason = err
	}
	if c.closed == int64(c.Listeners) {
		return fmt.Errorf("the server closed all listeners, the first one with: %w", c.reason)
	}
	return nil
}

// leave disconnects all listeners.
func (c *crowd) leave() {
	for _, l := range c.listeners {
		l.close()
	}
	c.listeners = nil
}

var errNotLeft = errors.New("the server keeps connections that were closed")

// left waits until the server has noticed that its listeners have left: it has no more files open than before.
func (c *crowd) left(ctx context.Context, descriptors int) error {
	const others = 16 // of its own, which come and go
	deadline := time.Now().Add(leaveTimeout)
	late := false
	err := c.loop.run(ctx, func() bool {
		late = time.Now().After(deadline)
		return late || c.Server.descriptors() <= descriptors+others
	})
	if err == nil && late {
		err = errNotLeft
	}
	return err
}

// wait lets time pass, in which pings are answered.
func (c *crowd) wait(ctx context.Context, d time.Duration, what string) error {
	w := Window{Duration: d}.begin(func(done float64) { c.progress(what, done) })
	return c.loop.run(ctx, func() bool { return w.look(time.Now(), 0) })
}

// A lightMeter measures how long messages take that come one by one.
type lightMeter struct {
	due       []time.Time // when each was to be published
	arrived   []int       // at how many listeners each is
	listeners int
	each      *histogram
	last      *histogram
	missing   int64 // deliveries
}

// received notes that a listener got the messages from number n, from 0, up to but not including m.
func (m *lightMeter) received(from, to int64) {
	now := time.Now()
	for n := from; n < to; n++ {
		if n >= int64(len(m.due)) {
			return // not one of ours
		}
		took := now.Sub(m.due[n])
		m.each.record(took)
		m.missing--
		if m.arrived[n]++; m.arrived[n] == m.listeners {
			m.last.record(took)
		}
	}
}

// measureLight publishes messages at a rate that leaves the server idle most of the time.
func (c *crowd) measureLight(ctx context.Context, pub Publisher) (*FanoutLight, error) {
	m := &lightMeter{listeners: c.Listeners, each: newHistogram(), last: newHistogram()}
	c.light = m
	defer func() { c.light = nil }()
	times := newSchedule(time.Now(), c.Rate)
	text := marked(c.TextBytes)
	var alarm *alarm
	alarm, err := c.loop.newAlarm(func() error {
		now := time.Now()
		for due, ok := times.take(now); ok; due, ok = times.take(now) {
			m.due, m.arrived = append(m.due, due), append(m.arrived, 0)
			m.missing += int64(m.listeners)
			pub.Publish(text)
			c.published++
		}
		return alarm.set(time.Until(times.due(times.next)))
	})
	if err != nil {
		return nil, err
	}
	if err := alarm.set(1); err != nil {
		return nil, err
	}
	w := Window{Duration: c.Light}.begin(func(done float64) { c.progress("few messages to all listeners", done) })
	err = c.loop.run(ctx, func() bool { return w.look(time.Now(), 0) || pub.Failed() != nil })
	alarm.close()
	if err == nil { // the last ones are still on their way
		deadline := time.Now().Add(arriveTimeout)
		err = c.loop.run(ctx, func() bool {
			return m.missing <= 0 || c.closed > 0 || time.Now().After(deadline) || pub.Failed() != nil
		})
	}
	if err == nil {
		err = pub.Failed()
	}
	if m.each.latency().Count == 0 {
		return nil, cmp.Or(err, errNothingCame)
	}
	return &FanoutLight{Rate: c.Rate, Each: m.each.latency(), Last: m.last.latency(), Missing: max(m.missing, 0)}, err
}

// arriveTimeout is how long messages may be on their way before they count as missing.
const arriveTimeout = 10 * time.Second

var errNothingCame = errors.New("no listener received anything that was published: is it the server of that broker?")

// measureFull publishes as many messages as the slowest listener gets.
func (c *crowd) measureFull(ctx context.Context, pub Publisher) (*FanoutFull, error) {
	w := Window{Warmup: c.Warmup, Duration: c.Full}.begin(func(done float64) {
		c.progress("as many messages as possible to all listeners", done)
	})
	const scanEvery = time.Millisecond
	var (
		text             = marked(c.TextBytes)
		began            time.Time
		totalBegan       int64
		usage            *usageMeter
		slowest          = c.slowest()
		scanned, changed time.Time
		totalChanged     = int64(-1)
		stalled          bool
		messagesBegan    int64
		failed           error
	)
	err := c.loop.run(ctx, func() bool {
		now := time.Now()
		if pub != nil {
			if c.published-slowest >= int64(c.Window) && now.Sub(scanned) >= scanEvery {
				slowest, scanned = c.slowest(), now
			}
			for ; c.published-slowest < int64(c.Window); c.published++ {
				pub.Publish(text)
			}
			failed = pub.Failed()
		}
		if c.total != totalChanged {
			changed, totalChanged = now, c.total
		}
		stalled = now.Sub(changed) > fanoutSilence
		over := w.look(now, 0)
		if w.open && began.IsZero() {
			began, totalBegan, messagesBegan = now, c.total, c.slowest()
			usage = measureUsage(map[string]Processes{"server": c.Server, "load": Self()})
		}
		return over || stalled || failed != nil
	})
	if err == nil && stalled {
		err = fmt.Errorf("no listener received anything for %v", fanoutSilence)
	}
	err = cmp.Or(err, failed)
	deliveries := c.total - totalBegan
	if began.IsZero() || deliveries == 0 {
		return nil, cmp.Or(err, errNothingCame)
	}
	full := &FanoutFull{Seconds: w.seconds(), Deliveries: deliveries, PerSecond: float64(deliveries) / w.seconds()}
	full.Messages = float64(c.slowest()-messagesBegan) / full.Seconds
	used := usage.end()
	full.LoadMicros = used["load"].CPU * 1e6 / float64(deliveries)
	full.ServerMicros = used["server"].CPU * 1e6 / float64(deliveries)
	full.Others = used[Others].CPU / full.Seconds
	return full, err
}

// slowest returns how many messages the listener has got that has got the fewest.
func (c *crowd) slowest() int64 {
	least := int64(math.MaxInt64)
	for _, l := range c.listeners {
		if l.fd >= 0 {
			least = min(least, l.count)
		}
	}
	return least
}
