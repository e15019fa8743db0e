package rabbit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/liveness"
)

// ErrNotConnected means that there is no session with the broker at present.
var ErrNotConnected = errors.New("the broker is not connected")

const (
	// closeTimeout bounds the orderly end of a connection.
	closeTimeout = 2 * time.Second

	// quickDial bounds connecting to one of several nodes, until each of them
	// has failed once. One that was cut off would hold a publisher up for the
	// whole DialTimeout while others work.
	quickDial = 1500 * time.Millisecond

	// quickAnswer is how much of that may pass before the node says anything:
	// the kernel of one that hangs accepts connections, too. A node that is not
	// overloaded begins within milliseconds and a few round trips.
	quickAnswer = 500 * time.Millisecond

	// hungFor is for how long a node that did not answer is passed over while
	// there are others. A node that was restarted answers at once, so this is not
	// long.
	hungFor = 10 * time.Second

	// answerTimeout bounds the requests to the broker while a session is set
	// up. Declaring a queue in a busy cluster takes seconds.
	answerTimeout = 30 * time.Second

	// loopLimit is much longer than all of these: a loop that is busy with
	// one thing for longer hangs.
	loopLimit = 2 * time.Minute
)

// errNotInTime means that a node has not accepted a connection in time.
var errNotInTime = errors.New("no answer")

// errEnded is the cause of the end of a session that we ended ourselves.
var errEnded = errors.New("the session was closed")

// A session is one connection with one channel. It lives until either ends, and
// all its deliveries die with it: nothing received in one session is ever
// acknowledged in another, where the same delivery tag names another message.
type session struct {
	conn *amqp.Connection
	ch   *amqp.Channel
	url  string         // of the node
	raw  net.Conn       // below conn
	pace *pacedConn     // below raw
	loop *liveness.Loop // the link's; nil for a session without a link
	many bool           // the broker has several nodes

	// ctx ends with the session; its cause says why.
	ctx context.Context
	end context.CancelCauseFunc
}

// A link keeps a session with the broker: when one ends, it opens another.
type link struct {
	cfg  Config
	role string   // what the connection is for
	uses []string // the objects at the broker that it needs
	log  *slog.Logger
	loop *liveness.Loop // run, and the functions that it calls

	// first is the number of the node to begin with, modulo the number of
	// nodes. It is random, so that the connections of all daemons spread over
	// a cluster. The node is the link's own; see home.
	first int
	home  home

	// step leads to the next node, forward or back. It differs between links,
	// so that those that lose their node do not all go to the same one.
	step int

	// serves asks a node for what the link needs from it; nil if it is enough that
	// the node has the objects. A link does not move back to a node that fails.
	serves func(context.Context, *session) error

	hung map[string]time.Time // by URL, until when a node is passed over

	// looked says that the objects were there a moment ago: only a node went. To
	// look again takes RabbitMQ 4.3 a second while that hangs. If one is missing
	// after all, the session fails, and the next one looks.
	looked bool

	session atomic.Pointer[session] // nil while there is none
	ended   atomic.Int64            // sessions
	depths  depths

	mu  sync.Mutex
	err error // why there is no session; nil while there is one
}

// newLink returns a link for connections called role. uses has the names of the
// objects that they use.
func newLink(cfg Config, role string, uses []string, log *slog.Logger) *link {
	return &link{
		cfg: cfg, role: role, uses: uses, log: log.With("connection", role),
		loop: liveness.New("the "+role+"'s loop", loopLimit), first: rand.IntN(1 << 16),
		home: home{after: homeAfter}, step: 1 - 2*rand.IntN(2), hung: make(map[string]time.Time), err: ErrNotConnected,
	}
}

// Alive returns an error if the link's own loop hangs. A broker that hangs does
// not count.
func (l *link) Alive() error { return l.loop.Alive() }

// Ready returns nil while the link has a working session, otherwise an
// ErrNotConnected with the reason.
func (l *link) Ready() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func (l *link) setState(err error) {
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrNotConnected, err)
	}
	l.mu.Lock()
	l.err = err
	l.mu.Unlock()
}

// run connects, ensures that the objects exist, and calls use with the session,
// again and again until ctx ends. use must return when its context or the
// session ends. run never gives up; it returns after the last use has returned.
func (l *link) run(ctx context.Context, use func(*session) error) {
	defer l.loop.Idle()
	wait := l.cfg.RetryMin
	said := make(map[string]string) // by URL, why there is no session: it is logged when it changes
	failed := 0                     // sessions in a row
	short := 0                      // sessions in a row that did not last
	for at := l.first; ctx.Err() == nil; at += l.step {
		urls := l.cfg.urls()
		cfg := l.cfg
		if len(urls) > 1 && failed < len(urls) {
			cfg.DialTimeout, cfg.answerWithin = min(cfg.DialTimeout, quickDial), quickAnswer
		}
		at = l.next(urls, at)
		url := urls[at]
		began := time.Now()
		l.loop.Busy()
		err := l.once(ctx, cfg, url, func(s *session) error {
			failed = 0
			level := slog.LevelDebug
			if len(said) > 0 {
				level = slog.LevelInfo
			}
			l.log.Log(ctx, level, "connected to the broker", "broker", host(url))
			clear(said)
			return use(s)
		})
		failed++
		if ctx.Err() != nil {
			l.setState(err)
			return
		}
		noAnswer, notInTime := errors.Is(err, errNoAnswer), errors.Is(err, errNotInTime)
		if noAnswer || notInTime {
			l.hung[url] = time.Now().Add(hungFor)
		}
		l.looked = noAnswer || notInTime && l.looked
		if l.home.ended(err, time.Since(began)) {
			at = l.first - l.step
			l.log.Debug("moves back to its own node", "broker", host(url))
			continue
		}
		l.setState(err)
		// Only a session that lasted shows that the trouble is over. If the
		// broker ends each session right away, the waits must still grow.
		if time.Since(began) > l.cfg.RetryMax {
			wait, short = l.cfg.RetryMin, 0
		}
		pause := wait/2 + rand.N(wait/2+1)
		level := slog.LevelWarn
		if said[url] == err.Error() {
			level = slog.LevelDebug
		}
		said[url] = err.Error()
		l.log.Log(ctx, level, "no session with the broker; will connect again",
			"broker", host(url), "error", err, "wait", pause.Round(time.Millisecond))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		// It grows once all nodes were tried: while a stream gets another leader,
		// each of them refuses to read it for a moment.
		if short++; short%len(urls) == 0 {
			wait = min(2*wait, l.cfg.RetryMax)
		}
	}
}

// next returns the number of the node to connect to: at, or one after it if that
// did not answer a moment ago, and others may.
func (l *link) next(urls []string, at int) int {
	n := len(urls)
	for i := range n {
		if next := ((at+i*l.step)%n + n) % n; time.Now().After(l.hung[urls[next]]) {
			return next
		}
	}
	return (at%n + n) % n
}

// once runs a single session and returns why it ended. cfg is the link's, but
// for the DialTimeout.
func (l *link) once(ctx context.Context, cfg Config, url string, use func(*session) error) error {
	s, err := open(ctx, cfg, url, l.role)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", host(url), err)
	}
	s.loop = l.loop
	l.session.Store(s)
	defer l.ended.Add(1)
	defer l.session.Store(nil)
	defer s.close()
	defer s.loop.Busy()
	if !l.looked {
		err = s.bounded(ctx, func() error { return s.ensure(l.cfg.Topology, l.uses) })
	}
	if err == nil {
		err = use(s)
	}
	// The cause of the session's end says more than an error that followed
	// from it, unless the broker refused something.
	var refused *amqp.Error
	if cause := context.Cause(s.ctx); cause != nil && !errors.Is(cause, errEnded) &&
		(!errors.As(err, &refused) || errors.Is(err, amqp.ErrClosed)) {
		err = cause
	}
	if err == nil {
		err = errEnded
	}
	err = advise(err)
	if !errors.Is(err, errHome) {
		l.setState(err) // before the session is closed, which may take a while
	}
	return err
}

// advise adds to an error of the broker what to do, if the broker's words do
// not say it.
func advise(err error) error {
	var e *amqp.Error
	if errors.As(err, &e) && e.Code == amqp.InternalError {
		return fmt.Errorf("%w: RabbitMQ itself has failed; its log says why; if this lasts, restart RabbitMQ", err)
	}
	return err
}

// up records that the session works.
func (l *link) up() { l.setState(nil) }

// open connects to one node. ctx bounds the opening only.
func open(ctx context.Context, cfg Config, url, role string) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.DialTimeout)
	defer cancel()

	var raw net.Conn
	var paced *pacedConn
	stop := func() bool { return true }
	properties := amqp.NewConnectionProperties()
	properties.SetClientConnectionName(cfg.Name + " " + role)
	if _, err := amqp.ParseURI(url); err != nil {
		return nil, errUnusableURL // the error itself may show the password
	}
	conn, err := amqp.DialConfig(url, amqp.Config{
		Heartbeat:  cfg.Heartbeat,
		Locale:     "en_US",
		Properties: properties,
		Dial: func(network, addr string) (net.Conn, error) {
			d := net.Dialer{Timeout: cfg.answerWithin}
			conn, err := d.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			paced = pace(conn)
			if cfg.answerWithin > 0 {
				time.AfterFunc(cfg.answerWithin, paced.mustHaveSpoken)
			}
			raw = gather(paced)
			// The handshake takes no context: closing the connection ends it.
			stop = context.AfterFunc(ctx, func() { raw.Close() })
			return raw, nil
		},
	})
	var ch *amqp.Channel
	if err == nil {
		ch, err = conn.Channel()
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		if raw != nil {
			raw.Close()
		}
		var slow net.Error
		switch {
		case errors.Is(ctx.Err(), context.DeadlineExceeded):
			err = fmt.Errorf("%w within %v: %w", errNotInTime, cfg.DialTimeout, err)
		case cfg.answerWithin > 0 && (errors.As(err, &slow) && slow.Timeout() || paced != nil && paced.mute.Load()):
			err = fmt.Errorf("%w within %v: %w", errNotInTime, cfg.answerWithin, err)
		}
		return nil, err
	}

	s := &session{conn: conn, ch: ch, url: url, raw: raw, pace: paced, many: len(cfg.urls()) > 1}
	s.ctx, s.end = context.WithCancelCause(context.Background())
	go s.watch(
		conn.NotifyClose(make(chan *amqp.Error, 1)),
		ch.NotifyClose(make(chan *amqp.Error, 1)),
		ch.NotifyCancel(make(chan string, 1)),
	)
	return s, nil
}

// openAny connects to the first node that answers.
func openAny(ctx context.Context, cfg Config, role string) (*session, error) {
	var errs []error
	for _, url := range cfg.urls() {
		s, err := open(ctx, cfg, url, role)
		if err == nil {
			return s, nil
		}
		errs = append(errs, fmt.Errorf("connect to %s: %w", host(url), err))
	}
	return nil, errors.Join(errs...)
}

// watch ends the session when the broker does.
func (s *session) watch(connection, channel <-chan *amqp.Error, cancelled <-chan string) {
	var err *amqp.Error
	select {
	case err = <-connection:
	case err = <-channel:
	case tag, ok := <-cancelled:
		if ok {
			// The queue was deleted or moved, or (from RabbitMQ 4.3) a
			// delivery was held longer than the consumer timeout.
			s.end(fmt.Errorf("the broker cancelled the consumer %q", tag))
			return
		}
		err = <-channel // gets its value, or is closed, before cancelled is closed
	case <-s.ctx.Done():
		return
	}
	// The end of a connection also ends its channel, and either notification
	// may have been chosen above.
	what := "channel"
	if s.conn.IsClosed() {
		what = "connection"
	}
	if err == nil {
		s.end(fmt.Errorf("the %s was closed", what))
		return
	}
	s.end(fmt.Errorf("the %s was closed: %w", what, err))
}

// bounded calls do, which makes requests to the broker. It drops the connection
// when ctx ends or no answer comes within answerTimeout: the calls of
// amqp091-go wait for an answer as long as there are heartbeats.
func (s *session) bounded(ctx context.Context, do func() error) error {
	s.loop.Busy()
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { s.raw.Close() })
	err := do()
	if !stop() {
		s.end(fmt.Errorf("the broker did not answer: %w", context.Cause(ctx)))
	}
	return err
}

// onChannel calls do with a channel of its own, since the broker closes the
// channel on which it refuses something.
func (s *session) onChannel(do func(*amqp.Channel) error) error {
	ch, err := s.conn.Channel()
	if err != nil {
		return fmt.Errorf("open a channel: %w", err)
	}
	defer ch.Close() // an error means that the broker has closed it already
	return do(ch)
}

// consume subscribes to a queue. At most prefetch messages are unacknowledged
// at once.
func (s *session) consume(ctx context.Context, ch *amqp.Channel, queue, tag string, prefetch int, args amqp.Table) (deliveries <-chan amqp.Delivery, err error) {
	err = s.bounded(ctx, func() error {
		if err := ch.Qos(prefetch, 0, false); err != nil {
			return fmt.Errorf("set the prefetch: %w", err)
		}
		deliveries, err = ch.Consume(queue, tag, false, false, false, false, args)
		if err != nil {
			return fmt.Errorf("consume from %s: %w", queue, err)
		}
		return nil
	})
	return deliveries, err
}

// why returns the reason why the session has ended. It waits for the reason,
// which may become known a moment after consequences such as err. If it does
// not become known, why returns err.
func (s *session) why(err error) error {
	select {
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	case <-time.After(closeTimeout):
		return err
	}
}

// close ends the session. It closes a live connection in agreement with the
// broker, within closeTimeout, and drops a dead one.
func (s *session) close() { s.closeFor(errEnded, func() {}) }

// closeFor is close with another cause of the session's end. It calls do once
// the session has ended.
func (s *session) closeFor(cause error, do func()) {
	if s.ctx.Err() != nil {
		s.raw.Close()
	}
	defer time.AfterFunc(closeTimeout, func() { s.raw.Close() }).Stop()
	s.end(cause)
	do()
	s.conn.Close() // an error means that the connection had ended already
}
