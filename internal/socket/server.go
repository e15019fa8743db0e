// Package socket is the front that listeners connect to: it sends everything
// that is appended to a feed to everyone who listens.
//
//	GET /listen_results   a greeting, then each result
//	GET /healthz          the process answers
//	GET /readyz           results are arriving, or would be
//
// A websocket gets one text frame a result: the processed text, or with
// ?format=json a feed.Message. With Accept: text/event-stream the same messages
// come as server-sent events. ?after=OFFSET, ?after=OFFSET/ID and
// Last-Event-ID resume behind a result. What listeners send is ignored, within
// limits.
//
// fasthttp does the handshake; then the connection goes to one of a few
// shards, and an idle listener is no more than a socket, an entry in an epoll
// instance and a position in the feed's log. With TLS it goes to the hub, where
// it has two goroutines.
package socket

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/fasthttp/websocket"
	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/problem"
	"github.com/revq/revq/internal/task"
)

// Greeting is the text of the first frame.
const Greeting = "Salut, let's wait some text..."

const (
	listenPath = "/listen_results"
	healthPath = "/healthz"
	readyPath  = "/readyz"
)

// methods lists what each path answers to.
var methods = map[string][]string{
	listenPath: {"GET", "OPTIONS"},
	healthPath: {"GET", "HEAD", "OPTIONS"},
	readyPath:  {"GET", "HEAD", "OPTIONS"},
}

// A Server serves listeners on any number of sites.
type Server struct {
	cfg      Config
	feed     *feed.Feed
	log      *slog.Logger
	gate     *front.Gate
	http     *fasthttp.Server
	upgrader websocket.FastHTTPUpgrader

	source    Source
	err       error // why there are not enough shards
	shards    []*shard
	hub       *hub // for listeners whose connections cannot be polled
	running   sync.WaitGroup
	next      atomic.Uint64 // deals listeners out to shards
	listeners atomic.Int64

	stopped  context.Context // ends with Shutdown
	stop     context.CancelFunc
	resuming chan struct{} // holds a value for each listener that catches up
	noMore   func()        // waits for them, and lets no more do so
}

// A Source is where the results come from that are appended to the feed.
type Source interface {
	// Ready returns nil while results can arrive, otherwise why not.
	Ready() error

	// History calls each with all results from at least before of them in
	// front of an offset on (it may be fifty times as many), and goes on with
	// new ones, until ctx ends or each returns an error, which it returns.
	// What is not kept any more is left out. It calls end, and returns its
	// error if any, where it is known that nothing more is there for now; that
	// nothing comes is not enough.
	History(ctx context.Context, offset, before int64, each func(offset int64, r task.Result) error, end func() error) error
}

// New returns a server of what is appended to f from source. Shutdown must be
// called to release what the server holds.
func New(cfg Config, f *feed.Feed, source Source, log *slog.Logger) *Server {
	s := &Server{cfg: cfg, feed: f, source: source, log: log, gate: front.NewGate(cfg.Pages), resuming: make(chan struct{}, cfg.MaxResuming)}
	s.stopped, s.stop = context.WithCancel(context.Background())
	s.noMore = sync.OnceFunc(func() {
		for range cap(s.resuming) {
			s.resuming <- struct{}{}
		}
	})
	s.upgrader = websocket.FastHTTPUpgrader{
		CheckOrigin: func(*fasthttp.RequestCtx) bool { return true }, // the gate has looked at it
		Error: func(ctx *fasthttp.RequestCtx, status int, reason error) {
			problem.New(status, reason.Error()).Answer(ctx)
		},
		// The connection is used without the library's buffers.
		ReadBufferSize: 1, WriteBufferSize: 1, WriteBufferPool: &sync.Pool{},
	}
	s.http = &fasthttp.Server{
		Handler:            s.handle,
		ErrorHandler:       s.answerUnreadable,
		Logger:             quiet{},
		Concurrency:        cfg.MaxListeners,
		ReadTimeout:        cfg.HandshakeTimeout,
		WriteTimeout:       cfg.HandshakeTimeout,
		IdleTimeout:        cfg.HandshakeTimeout,
		MaxRequestBodySize: 1 << 10, // nobody has to send one
		CloseOnShutdown:    true,
		// Together they leave nothing of fasthttp behind a listener.
		KeepHijackedConns: true,
		ReduceMemoryUsage: true,

		NoDefaultServerHeader:        true,
		DisablePreParseMultipartForm: true,
	}
	onDrop := func() { s.listeners.Add(-1) }
	s.hub = newHub(cfg, onDrop)
	s.running.Go(s.hub.run)
	f.OnAppend(s.hub.wake)
	for range runtime.GOMAXPROCS(0) {
		shard, err := newShard(cfg, log, onDrop)
		if err != nil {
			s.err = fmt.Errorf("start the listeners' poll: %w", err)
			break
		}
		s.shards = append(s.shards, shard)
		s.running.Go(shard.run)
		f.OnAppend(shard.wake)
	}
	return s
}

// Serve answers requests on ln until Shutdown, then returns nil. It is called
// once for each site and takes ln over.
func (s *Server) Serve(ln net.Listener) error {
	if s.err != nil {
		return s.err
	}
	return s.http.Serve(ln)
}

// Shutdown takes no more connections, closes the listeners with the status
// 1012 (service restart), a few at a time, and waits for them to go, until ctx
// ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	err := s.http.ShutdownWithContext(ctx)
	s.noMore() // each write of those that catch up has a deadline
	for _, shard := range s.shards {
		shard.close(byeRestart)
	}
	hubGone := make(chan struct{})
	go func() {
		s.hub.shutdown(byeRestart, ctx.Done())
		close(hubGone)
	}()
	late := context.AfterFunc(ctx, func() {
		for _, shard := range s.shards {
			shard.abort()
		}
	})
	<-hubGone
	s.running.Wait()
	late()
	return err
}

// Listeners returns how many are connected.
func (s *Server) Listeners() int { return int(s.listeners.Load()) }

// Status says in a few words how many listen, and to what.
func (s *Server) Status() string {
	return fmt.Sprintf("%d listeners; offset %d", s.Listeners(), s.feed.Last().Offset)
}

// Alive returns an error if a shard hangs. Listeners that do so are no reason.
func (s *Server) Alive() error {
	errs := []error{s.hub.loop.Alive()}
	for _, shard := range s.shards {
		errs = append(errs, shard.loop.Alive())
	}
	return errors.Join(errs...)
}

func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	ctx.Response.Header.Set("Cache-Control", "no-store")
	if p := s.gate.Admit(ctx); p != nil {
		p.Answer(ctx)
		return
	}
	path := string(ctx.Path())
	if path != listenPath && path != healthPath && path != readyPath {
		problem.New(fasthttp.StatusNotFound, "there is nothing here: listen at "+listenPath).Answer(ctx)
		return
	}
	if ctx.IsOptions() {
		allowed := methods[path]
		ctx.SetStatusCode(fasthttp.StatusNoContent)
		ctx.Response.Header.Set("Allow", strings.Join(allowed, ", "))
		front.AnswerPreflight(ctx, allowed)
		return
	}
	if !ctx.IsGet() && (path == listenPath || !ctx.IsHead()) {
		problem.New(fasthttp.StatusMethodNotAllowed, "use GET").Answer(ctx)
		ctx.Response.Header.Set("Allow", "GET")
		return
	}
	switch path {
	case listenPath:
		s.listen(ctx)
	case healthPath:
		ctx.SetBodyString("ok")
	case readyPath:
		if err := s.source.Ready(); err != nil {
			problem.New(fasthttp.StatusServiceUnavailable, err.Error()).Answer(ctx)
			return
		}
		ctx.SetBodyString("ready")
	}
}

func (s *Server) listen(ctx *fasthttp.RequestCtx) {
	format, err := feed.ParseFormat(string(ctx.QueryArgs().Peek("format")))
	if err != nil {
		problem.New(fasthttp.StatusBadRequest, err.Error()).Answer(ctx)
		return
	}
	after, err := resumeMark(ctx)
	if err != nil {
		problem.New(fasthttp.StatusBadRequest, err.Error()).Answer(ctx)
		return
	}
	if s.listeners.Load() >= int64(s.cfg.MaxListeners) {
		problem.New(fasthttp.StatusServiceUnavailable, fmt.Sprintf("%d listeners are connected, and no more are taken: try another site, or later", s.cfg.MaxListeners)).Answer(ctx)
		return
	}
	switch {
	case acceptsEvents(ctx):
		s.listenEvents(ctx, after)
	case websocket.FastHTTPIsWebSocketUpgrade(ctx):
		// The upgrader has answered by itself if it returns an error.
		_ = s.upgrader.Upgrade(ctx, func(c *websocket.Conn) {
			s.join(&listener{conn: c.NetConn(), dialect: websocketDialect{}}, format, after)
		})
	default:
		problem.New(fasthttp.StatusUpgradeRequired,
			"results come over a websocket: connect with ws:// instead of http://, or accept text/event-stream").Answer(ctx)
		ctx.Response.Header.Set("Upgrade", "websocket")
		ctx.Response.Header.Set("Connection", "Upgrade")
	}
}

// listenEvents answers with server-sent events.
func (s *Server) listenEvents(ctx *fasthttp.RequestCtx, after *feed.Mark) {
	if !ctx.Request.Header.IsHTTP11() {
		problem.New(fasthttp.StatusHTTPVersionNotSupported, "events come in chunks, which need HTTP/1.1").Answer(ctx)
		return
	}
	header := eventsHeader + front.CORSLines(ctx) + "\r\n"
	ctx.HijackSetNoResponse(true)
	ctx.Hijack(func(c net.Conn) {
		s.join(&listener{conn: c, dialect: eventsDialect{}, control: []byte(header)}, feed.Events, after)
	})
}

func acceptsEvents(ctx *fasthttp.RequestCtx) bool {
	return strings.Contains(strings.ToLower(string(ctx.Request.Header.Peek("Accept"))), "text/event-stream")
}

// resumeMark returns where the listener wants to go on; nil for live. A
// browser's EventSource repeats its first URL, so the header wins.
func resumeMark(ctx *fasthttp.RequestCtx) (*feed.Mark, error) {
	text := ctx.Request.Header.Peek("Last-Event-ID")
	if len(text) == 0 {
		if text = ctx.QueryArgs().Peek("after"); len(text) == 0 {
			return nil, nil
		}
	}
	mark, err := feed.ParseMark(string(text))
	return &mark, err
}

// join makes a listener of a connection after its handshake. after is where it
// wants to go on; nil for what comes from now on.
func (s *Server) join(l *listener, format feed.Format, after *feed.Mark) {
	if wrapped, ok := l.conn.(interface{ UnsafeConn() net.Conn }); ok {
		l.conn = wrapped.UnsafeConn() // without fasthttp's reader
	}
	fd, err := descriptor(l.conn)
	pollable := err == nil
	if pollable {
		l.fd = fd
		prepareSocket(fd, s.cfg.PingInterval)
	}
	l.log = s.feed.Log(format)
	switch {
	case s.listeners.Add(1) > int64(s.cfg.MaxListeners):
		l.leaving, l.control = true, l.dialect.appendBye(l.control, byeFull)
	case after != nil:
		s.resume(l, format, *after)
	default:
		var at feed.Mark
		l.pos, at = s.feed.Join(format)
		l.control = feed.AppendGreeting(l.control, format, at, Greeting)
	}
	switch {
	case l.conn == nil:
	case pollable:
		s.shards[s.next.Add(1)%uint64(len(s.shards))].join(l)
	default:
		s.hub.join(l)
	}
}

func (s *Server) answerUnreadable(ctx *fasthttp.RequestCtx, err error) {
	status := fasthttp.StatusBadRequest
	if netErr, ok := err.(net.Error); ok && netErr.Timeout() {
		status = fasthttp.StatusRequestTimeout
	}
	s.gate.Expose(ctx)
	problem.New(status, "this is not a valid HTTP request that came in time").Answer(ctx)
}

// quiet drops what fasthttp logs: the mistakes of clients, which they are told.
type quiet struct{}

func (quiet) Printf(string, ...any) {}
