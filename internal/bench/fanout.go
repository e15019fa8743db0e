package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"time"

	"github.com/revq/revq/internal/bench/load"
	"github.com/revq/revq/internal/bench/report"
)

// Fanout connects many listeners to a websocket server, and measures how
// messages reach them.
type Fanout struct {
	Target    *Target
	Listeners int

	// First is a text that each listener sends once it is connected; "" for
	// none.
	First string

	// Publish returns a publisher; nil if another program publishes.
	Publish func(context.Context) (load.Publisher, error)

	TextBytes int // length of a message
	Window    int // messages that not all listeners have, at most; others wait

	Light  time.Duration // of the measurement with few messages, which needs Publish; 0 for none
	Rate   float64       // messages a second in it
	Full   time.Duration // of the measurement with as many messages as possible; 0 for none
	Warmup time.Duration // before that
	Settle time.Duration // until the memory of the idle server is measured
	Rounds int           // how often all listeners leave and connect again, at the end

	// Server is the process that is measured; nil if it is not visible.
	Server Processes
}

const (
	// handshakes is how many are in flight at once: fewer than the usual
	// backlog of a listening socket.
	handshakes = 128

	// connectSilence is how long no listener may connect before the measurement
	// ends.
	connectSilence = 15 * time.Second

	// fanoutSilence is how long no listener may receive a published message
	// before the measurement ends.
	fanoutSilence = 15 * time.Second

	// leaveTimeout is the time limit for a server to notice that listeners have
	// left.
	leaveTimeout = 30 * time.Second

	// arriveTimeout is how long messages may take before they count as missing.
	arriveTimeout = 10 * time.Second

	// perSource is how many connections come from one address. A system has
	// some 28,000 ports for them, and keeps those of closed connections for a
	// minute.
	perSource = 20_000

	// spareFiles are open besides listeners.
	spareFiles = 64
)

var (
	errNotLeft     = errors.New("the server keeps connections that were closed")
	errNothingCame = errors.New("no listener received anything that was published: is it the server of that broker?")
)

// A crowd is the state of a Fanout that runs.
type crowd struct {
	*Fanout
	loop      *load.Loop
	listeners []*load.Listener
	dialed    int // connections in all, for the choice of the next source
	progress  func(what string, done float64)

	published int64 // messages, since the listeners connected
	light     *lightMeter
	total     int64 // marked messages received by all
	closed    int64 // listeners closed by the server
	reason    error // of the first of them
}

// Run measures. If ctx ends first, it returns what was measured so far and the
// error.
func (f *Fanout) Run(ctx context.Context, progress func(what string, done float64)) (*report.FanoutResult, error) {
	if limit := OpenFiles(); f.Listeners+spareFiles > limit {
		return nil, fmt.Errorf("%d listeners need %d open files, and this program may have %d: raise the hard limit (ulimit -Hn; LimitNOFILE= for a service)",
			f.Listeners, f.Listeners+spareFiles, limit)
	}
	loop, err := load.NewLoop()
	if err != nil {
		return nil, err
	}
	defer loop.Close()
	c := &crowd{Fanout: f, loop: loop, progress: progress}
	defer c.leave()
	var pub load.Publisher
	if f.Publish != nil {
		if pub, err = f.Publish(ctx); err != nil {
			return nil, err
		}
		defer pub.Close()
	}

	result := &report.FanoutResult{Server: f.Target.URL.Host, Listeners: f.Listeners, TextBytes: f.TextBytes, Window: f.Window, ResidentBefore: f.Server.resident()}
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

func (c *crowd) measure(ctx context.Context, pub load.Publisher, result *report.FanoutResult) error {
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
		round := report.Round{Left: c.Server.resident()}
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
	request := load.HandshakeRequest(c.Target.URL)
	c.listeners = make([]*load.Listener, 0, c.Listeners)
	c.published = 0
	joined := 0
	lastJoin, shown := began, time.Time{}
	connected := func() error {
		joined++
		lastJoin = time.Now()
		return nil
	}
	dialNext := func() error {
		if len(c.listeners) == c.Listeners {
			return nil
		}
		l := &load.Listener{
			Loop: c.loop, Handshake: request, First: c.First,
			Connected: connected, Received: c.received, Closed: c.lost,
		}
		c.listeners = append(c.listeners, l)
		return l.Connect(c.Target.Addr, c.source())
	}
	err = c.loop.Run(ctx, func() bool {
		for len(c.listeners)-joined < handshakes && len(c.listeners) < c.Listeners && err == nil {
			err = dialNext()
		}
		if now := time.Now(); now.Sub(shown) >= showEvery {
			shown = now
			c.progress("connecting listeners", float64(joined)/float64(c.Listeners))
		}
		if err == nil && time.Since(lastJoin) > connectSilence {
			err = fmt.Errorf("no listener got connected for %v", connectSilence)
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

// source returns the address from which the next listener connects, nil for
// any.
func (c *crowd) source() net.IP {
	c.dialed++
	if ip := c.Target.Addr.IP.To4(); ip == nil || !ip.IsLoopback() {
		return nil
	}
	return net.IPv4(127, 0, 0, byte(2+c.dialed/perSource%250))
}

func (c *crowd) received(l *load.Listener, n int) {
	c.total += int64(n)
	if c.light != nil {
		c.light.received(l.Count()-int64(n), l.Count())
	}
}

func (c *crowd) lost(err error) error {
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
		l.Close()
	}
	c.listeners = nil
}

// left waits until the server has noticed that its listeners have left: until
// it has as few files open as before.
func (c *crowd) left(ctx context.Context, descriptors int) error {
	const others = 16 // files that the server itself opens and closes
	deadline := time.Now().Add(leaveTimeout)
	late := false
	err := c.loop.Run(ctx, func() bool {
		late = time.Now().After(deadline)
		return late || c.Server.descriptors() <= descriptors+others
	})
	if err == nil && late {
		err = errNotLeft
	}
	return err
}

// wait answers pings for a while.
func (c *crowd) wait(ctx context.Context, d time.Duration, what string) error {
	w := Window{Duration: d}.begin(func(done float64) { c.progress(what, done) })
	return c.loop.Run(ctx, func() bool { return w.look(time.Now(), 0) })
}

// A lightMeter measures how long messages take that are published one by one.
type lightMeter struct {
	due       []time.Time // when each was to be published
	arrived   []int       // at how many listeners each is
	listeners int
	each      *histogram
	last      *histogram
	missing   int64 // deliveries
}

// received records that a listener has received the messages from number from,
// counted from 0, up to number to, which is not among them.
func (m *lightMeter) received(from, to int64) {
	now := time.Now()
	for n := from; n < to; n++ {
		if n >= int64(len(m.due)) {
			return // another program's message
		}
		took := now.Sub(m.due[n])
		m.each.record(took)
		m.missing--
		if m.arrived[n]++; m.arrived[n] == m.listeners {
			m.last.record(took)
		}
	}
}

// measureLight publishes messages at a rate that leaves the server idle most of
// the time.
func (c *crowd) measureLight(ctx context.Context, pub load.Publisher) (*report.FanoutLight, error) {
	m := &lightMeter{listeners: c.Listeners, each: newHistogram(), last: newHistogram()}
	c.light = m
	defer func() { c.light = nil }()
	times := load.NewSchedule(time.Now(), c.Rate)
	text := load.Marked(c.TextBytes)
	var alarm *load.Alarm
	alarm, err := c.loop.NewAlarm(func() error {
		now := time.Now()
		for due, ok := times.Take(now); ok; due, ok = times.Take(now) {
			m.due, m.arrived = append(m.due, due), append(m.arrived, 0)
			m.missing += int64(m.listeners)
			pub.Publish(text)
			c.published++
		}
		return alarm.Set(time.Until(times.Next()))
	})
	if err != nil {
		return nil, err
	}
	if err := alarm.Set(1); err != nil {
		return nil, err
	}
	w := Window{Duration: c.Light}.begin(func(done float64) { c.progress("few messages to all listeners", done) })
	err = c.loop.Run(ctx, func() bool { return w.look(time.Now(), 0) || pub.Failed() != nil })
	alarm.Close()
	if err == nil { // the last messages have not arrived yet
		deadline := time.Now().Add(arriveTimeout)
		err = c.loop.Run(ctx, func() bool {
			return m.missing <= 0 || c.closed > 0 || time.Now().After(deadline) || pub.Failed() != nil
		})
	}
	if err == nil {
		err = pub.Failed()
	}
	if m.each.latency().Count == 0 {
		return nil, cmp.Or(err, errNothingCame)
	}
	return &report.FanoutLight{Rate: c.Rate, Each: m.each.latency(), Last: m.last.latency(), Missing: max(m.missing, 0)}, err
}

// measureFull publishes as many messages as the slowest listener can receive.
func (c *crowd) measureFull(ctx context.Context, pub load.Publisher) (*report.FanoutFull, error) {
	flood := &flood{crowd: c, pub: pub, text: load.Marked(c.TextBytes), slowest: c.fewest()}
	var (
		w = Window{Warmup: c.Warmup, Duration: c.Full}.begin(func(done float64) {
			c.progress("as many messages as possible to all listeners", done)
		})
		usage         *usageMeter // nil until the window opens
		totalBegan    int64
		messagesBegan int64
		changed       time.Time // when the total last changed
		totalChanged  = int64(-1)
		stalled       bool
		failed        error
	)
	err := c.loop.Run(ctx, func() bool {
		now := time.Now()
		failed = flood.publish(now)
		if c.total != totalChanged {
			changed, totalChanged = now, c.total
		}
		stalled = now.Sub(changed) > fanoutSilence
		over := w.look(now, 0)
		if w.open && usage == nil {
			totalBegan, messagesBegan = c.total, c.fewest()
			usage = measureUsage(map[string]Processes{"server": c.Server, "load": Self()})
		}
		return over || stalled || failed != nil
	})
	if err == nil && stalled {
		err = fmt.Errorf("no listener received anything for %v", fanoutSilence)
	}
	err = cmp.Or(err, failed)
	deliveries := c.total - totalBegan
	if usage == nil || deliveries == 0 {
		return nil, cmp.Or(err, errNothingCame)
	}
	full := &report.FanoutFull{Seconds: w.seconds(), Deliveries: deliveries, PerSecond: float64(deliveries) / w.seconds()}
	full.Messages = float64(c.fewest()-messagesBegan) / full.Seconds
	used := usage.end()
	full.LoadMicros = used["load"].CPU * 1e6 / float64(deliveries)
	full.ServerMicros = used["server"].CPU * 1e6 / float64(deliveries)
	full.Others = used[report.Others].CPU / full.Seconds
	return full, err
}

// A flood publishes as many messages as the window of a crowd allows.
type flood struct {
	*crowd
	pub     load.Publisher // nil if another program publishes
	text    string
	slowest int64     // messages that the slowest listener had received
	scanned time.Time // when that was so
}

// scanEvery is how often a flood looks for the slowest of all listeners.
const scanEvery = time.Millisecond

// publish publishes until the window is full. It returns why a message was not
// published, if one was not.
func (f *flood) publish(now time.Time) error {
	if f.pub == nil {
		return nil
	}
	if f.published-f.slowest >= int64(f.Window) && now.Sub(f.scanned) >= scanEvery {
		f.slowest, f.scanned = f.fewest(), now
	}
	for ; f.published-f.slowest < int64(f.Window); f.published++ {
		f.pub.Publish(f.text)
	}
	return f.pub.Failed()
}

// fewest returns how many messages the slowest listener has received.
func (c *crowd) fewest() int64 {
	n := int64(math.MaxInt64)
	for _, l := range c.listeners {
		if l.Open() {
			n = min(n, l.Count())
		}
	}
	return n
}
