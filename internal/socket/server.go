// Package socket is the websocket front: it sends everything that is appended
// to a feed to everyone who listens.
//
//	GET /listen_results   websocket: a greeting, then one text frame a result
//	GET /healthz          the process answers
//	GET /readyz           results are arriving, or would be
//
// With ?format=json the frames hold a feed.Message each. What listeners send
// is ignored, within limits.
//
// fasthttp does the handshake; then the connection goes to one of a few
// shards, and an idle listener is no more than a socket, an entry in an epoll
// instance and a position in the feed's log.
package socket

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/fasthttp/websocket"
	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/problem"
)

// Greeting is the text of the first frame.
const Greeting = "Salut, let's wait some text..."

const (
	listenPath = "/listen_results"
	healthPath = "/healthz"
	readyPath  = "/readyz"
)

// A Server serves listeners on any number of sites.
type Server struct {
	cfg      Config
	feed     *feed.Feed
	ready    func() error
	log      *slog.Logger
	http     *fasthttp.Server
	upgrader websocket.FastHTTPUpgrader

	shards    []*shard
	running   sync.WaitGroup
	next      atomic.Uint64 // deals listeners out to shards
	listeners atomic.Int64
	stopping  atomic.Bool
}

// New returns a server of what is appended to f. ready returns nil while
// results can arrive, otherwise why not. Shutdown must be called to release
// what the server holds.
func New(cfg Config, f *feed.Feed, ready func() error, log *slog.Logger) (*Server, error) {
	s := &Server{cfg: cfg, feed: f, ready: ready, log: log}
	s.upgrader = websocket.FastHTTPUpgrader{
		CheckOrigin: s.originAllowed,
		Error: func(ctx *fasthttp.RequestCtx, status int, reason error) {
			problem.New(status, reason.Error()).Answer(ctx)
		},
		// The connection is used without the library's buffers.
		ReadBufferSize: 1, WriteBufferSize: 1, WriteBufferPool: &sync.Pool{},
	}
	s.http = &fasthttp.Server{
		Handler:            s.handle,
		ErrorHandler:       answerUnreadable,
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
	for range runtime.GOMAXPROCS(0) {
		shard, err := newShard(cfg, log, func() { s.listeners.Add(-1) })
		if err != nil {
			return nil, fmt.Errorf("start the listeners' poll: %w", err)
		}
		s.shards = append(s.shards, shard)
		s.running.Go(shard.run)
		f.OnAppend(shard.wake)
	}
	return s, nil
}

// Serve answers requests on ln until Shutdown, then returns nil. It is called
// once for each site and takes ln over.
func (s *Server) Serve(ln net.Listener) error { return s.http.Serve(ln) }

// Shutdown takes no more connections, closes the listeners with the status
// 1012 (service restart), and waits for them to go, until ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stopping.Store(true)
	err := s.http.ShutdownWithContext(ctx)
	for _, shard := range s.shards {
		shard.close(violation{closeRestart, "the server restarts: connect again"})
	}
	stop := context.AfterFunc(ctx, func() {
		for _, shard := range s.shards {
			shard.abort()
		}
	})
	s.running.Wait()
	stop()
	return err
}

// Listeners returns how many are connected.
func (s *Server) Listeners() int { return int(s.listeners.Load()) }

func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	ctx.Response.Header.Set("Cache-Control", "no-store")
	path := string(ctx.Path())
	if path != listenPath && path != healthPath && path != readyPath {
		problem.New(fasthttp.StatusNotFound, "there is nothing here: listen at "+listenPath).Answer(ctx)
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
		if err := s.ready(); err != nil {
			problem.New(fasthttp.StatusServiceUnavailable, err.Error()).Answer(ctx)
			return
		}
		ctx.SetBodyString("ready")
	}
}

func (s *Server) listen(ctx *fasthttp.RequestCtx) {
	format, err := feed.ParseFormat(string(ctx.QueryArgs().Peek("format")))
	switch {
	case err != nil:
		problem.New(fasthttp.StatusBadRequest, err.Error()).Answer(ctx)
		return
	case !websocket.FastHTTPIsWebSocketUpgrade(ctx):
		problem.New(fasthttp.StatusUpgradeRequired, "results come over a websocket: connect with ws:// instead of http://").Answer(ctx)
		ctx.Response.Header.Set("Upgrade", "websocket")
		ctx.Response.Header.Set("Connection", "Upgrade")
		return
	case s.listeners.Load() >= int64(s.cfg.MaxListeners):
		problem.New(fasthttp.StatusServiceUnavailable, fmt.Sprintf("%d listeners are connected, and no more are taken: try another site, or later", s.cfg.MaxListeners)).Answer(ctx)
		return
	}
	// The upgrader has answered by itself if it returns an error.
	_ = s.upgrader.Upgrade(ctx, func(c *websocket.Conn) { s.join(c.NetConn(), format) })
}

// join makes a listener of a connection after its handshake.
func (s *Server) join(conn net.Conn, format feed.Format) {
	if wrapped, ok := conn.(interface{ UnsafeConn() net.Conn }); ok {
		conn = wrapped.UnsafeConn() // without fasthttp's reader
	}
	fd, err := descriptor(conn)
	if err != nil {
		s.log.Error("closed a listener's connection that cannot be polled", "error", err)
		conn.Close()
		return
	}
	l := &listener{conn: conn, fd: fd, log: s.feed.Log(format)}
	if s.listeners.Add(1) > int64(s.cfg.MaxListeners) || s.stopping.Load() {
		l.leaving = true
		l.control = feed.AppendClose(nil, closeTryAgain, "no more listeners are taken: try another site, or later")
	} else {
		l.pos, l.control = s.feed.Join(format, Greeting)
	}
	s.shards[s.next.Add(1)%uint64(len(s.shards))].join(l)
}

// descriptor returns conn's file descriptor. It stays valid while conn is
// referred to and not closed.
func descriptor(conn net.Conn) (fd int, err error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return 0, fmt.Errorf("a %T has no file descriptor", conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, err
	}
	err = raw.Control(func(f uintptr) { fd = int(f) })
	return fd, err
}

// originAllowed lets programs in, which send no Origin, and pages of this host
// (on any port) and of the configured origins.
func (s *Server) originAllowed(ctx *fasthttp.RequestCtx) bool {
	origin := string(ctx.Request.Header.Peek("Origin"))
	if origin == "" || slices.Contains(s.cfg.AllowOrigins, "*") || slices.Contains(s.cfg.AllowOrigins, origin) {
		return true
	}
	from, err := url.Parse(origin)
	if err != nil {
		return false
	}
	to, err := url.Parse("//" + string(ctx.Host()))
	return err == nil && strings.EqualFold(from.Hostname(), to.Hostname())
}

func answerUnreadable(ctx *fasthttp.RequestCtx, err error) {
	status := fasthttp.StatusBadRequest
	if netErr, ok := err.(net.Error); ok && netErr.Timeout() {
		status = fasthttp.StatusRequestTimeout
	}
	problem.New(status, "this is not a valid HTTP request that came in time").Answer(ctx)
}

// quiet drops what fasthttp logs: the mistakes of clients, which they are told.
type quiet struct{}

func (quiet) Printf(string, ...any) {}
