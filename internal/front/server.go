package front

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/valyala/fasthttp"
)

// A Server serves an App on any number of listening sockets.
type Server struct {
	app    App
	routes routes
	gate   *Gate
	bodies *bodies
	http   *fasthttp.Server

	clients *clients

	connections gauge // open ones, at all listening sockets

	draining atomic.Bool // set once, under mu
	mu       sync.Mutex
	open     []*listener
}

// New returns a server of app. It serves nothing until Serve.
func New(app App) *Server {
	s := &Server{app: app, routes: newRoutes(&app), gate: NewGate(app.Pages), bodies: newBodies(app.MaxBodies, app.LargestBody)}
	s.clients = newClients(&app)
	s.http = &fasthttp.Server{
		Handler:        s.Handle,
		ErrorHandler:   s.refuse,
		ExpectHandler:  s.expect,
		HeaderReceived: s.limitBody,
		Logger:         httpLog{app.Log},

		Concurrency:        2 * app.MaxConnections, // the listening sockets refuse sooner, with a reason
		ReadTimeout:        app.ReadTimeout,
		WriteTimeout:       app.WriteTimeout,
		IdleTimeout:        app.IdleTimeout,
		ReadBufferSize:     app.MaxHeader,
		MaxRequestBodySize: 1, // unless limitBody says otherwise
		CloseOnShutdown:    true,

		// Both together free all of fasthttp's memory for a hijacked connection.
		KeepHijackedConns: app.Frugal,
		ReduceMemoryUsage: app.Frugal,

		// Clients do not need the server's name; each answer sets its own type.
		NoDefaultServerHeader: true,
		NoDefaultContentType:  true,
		// A multipart body is refused, not spooled to temporary files.
		DisablePreParseMultipartForm: true,
		// Texts are private and must not appear in the log.
		SecureErrorLogMessage: true,
	}
	return s
}

// Routes returns the methods of each path, without OPTIONS.
func (s *Server) Routes() map[string][]string {
	all := make(map[string][]string)
	for _, to := range s.routes.prefixes {
		all[to.Path] = to.Methods
	}
	for path, to := range s.routes.byPath {
		all[path] = to.Methods
	}
	return all
}

// Serve answers requests on ln until Shutdown, then returns nil. Call it once
// for each listening socket. It takes ownership of ln.
func (s *Server) Serve(ln net.Listener) error {
	guarded := &listener{
		Listener: ln, log: s.app.Log, maxConnections: int64(s.app.MaxConnections),
		maxHeader: s.app.MaxHeader, total: &s.connections, bodies: s.bodies, clients: s.clients, open: make(map[*conn]struct{}),
	}
	s.mu.Lock()
	draining := s.draining.Load()
	if !draining {
		s.open = append(s.open, guarded)
	}
	s.mu.Unlock()
	if draining {
		return guarded.Close()
	}
	return s.http.Serve(guarded)
}

// Connections returns how many are open, without those that were detached.
func (s *Server) Connections() int { return int(s.connections.now.Load()) }

// Handle answers a request.
func (s *Server) Handle(ctx *fasthttp.RequestCtx) {
	// fasthttp does not recover from panics: one request that meets a bug would
	// end all others with the process.
	defer func() {
		if r := recover(); r != nil {
			s.app.Log.Error("request handler panicked", "panic", r, "stack", string(debug.Stack()))
			ctx.Response.Reset()
			s.gate.Expose(ctx)
			NewProblem(fasthttp.StatusInternalServerError, "this is a bug in revq; the server's log has the details").answer(ctx)
		}
		// fasthttp's CloseOnShutdown would do this only after lastCall.
		if s.draining.Load() {
			ctx.SetConnectionClose()
		}
	}()
	if p := s.serve(ctx); p != nil {
		p.answer(ctx)
	}
}

// serve answers the request or returns the problem with it.
func (s *Server) serve(ctx *fasthttp.RequestCtx) *Problem {
	noStore(ctx)
	if p := s.gate.Admit(ctx); p != nil {
		return p
	}
	if !isHealth(string(rawPath(ctx.Request.Header.RequestURI()))) {
		if p := s.clients.allow(s.Client(ctx), ctx.Time()); p != nil {
			return p
		}
	}
	if string(ctx.Request.Header.RequestURI()) == "*" { // the guard lets only OPTIONS do so
		ctx.SetStatusCode(fasthttp.StatusNoContent)
		return nil
	}
	to, p := s.routes.find(&ctx.Request.Header)
	if p != nil {
		return p
	}
	permit, p := to.check(&ctx.Request.Header, s.app.Tokens)
	if p != nil {
		return p
	}
	if ctx.IsOptions() {
		to.answerOptions(ctx)
		return nil
	}
	if permit != nil {
		ctx.SetUserValue(permitKey{}, permit)
	}
	return to.Handle(ctx)
}

// limitBody is fasthttp's hook between a request's headers and its body.
func (s *Server) limitBody(h *fasthttp.RequestHeader) fasthttp.RequestConfig {
	return fasthttp.RequestConfig{MaxRequestBodySize: s.bodyLimit(h)}
}

func (s *Server) bodyLimit(h *fasthttp.RequestHeader) int {
	const minimum = 1 // 0 stands for fasthttp's default, 4 MiB
	if s.app.BodyLimit == nil {
		return minimum
	}
	return max(s.app.BodyLimit(h), minimum)
}

// expect answers Expect: 100-continue. It refuses a request at once if its
// headers show a problem, so that the client need not send the body.
func (s *Server) expect(ctx *fasthttp.RequestCtx) int {
	h := &ctx.Request.Header
	p := s.gate.Admit(ctx)
	if p == nil {
		p = s.headProblem(h)
	}
	if p == nil && h.ContentLength() > s.bodyLimit(h) {
		p = s.tooLarge()
	}
	if p == nil {
		return fasthttp.StatusContinue
	}
	s.last(ctx, p)
	return p.Status
}

// headProblem returns the problem that a request's headers show, or nil.
func (s *Server) headProblem(h *fasthttp.RequestHeader) *Problem {
	to, p := s.routes.find(h)
	if p == nil {
		_, p = to.check(h, s.app.Tokens)
	}
	return p
}

// refuse answers a request that could not be read, and then closes the
// connection.
func (s *Server) refuse(ctx *fasthttp.RequestCtx, err error) {
	s.gate.Expose(ctx)
	s.last(ctx, s.unreadable(ctx, err))
}

// last answers a request that was not read completely. The connection closes
// after the client has had time to read the answer.
func (s *Server) last(ctx *fasthttp.RequestCtx, p *Problem) {
	if c, ok := ctx.Conn().(*conn); ok && c.waitingSince.Load() != evicted {
		c.linger.Store(true)
	}
	p.answer(ctx)
}

func (s *Server) tooLarge() *Problem {
	return NewProblem(fasthttp.StatusRequestEntityTooLarge, s.app.TooLarge)
}

func (s *Server) unreadable(ctx *fasthttp.RequestCtx, err error) *Problem {
	if c, ok := ctx.Conn().(*conn); ok && c.guard.wrong != nil {
		return c.guard.wrong.problem()
	}
	var long *fasthttp.ErrSmallBuffer
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		// If the headers show another problem, a smaller body would not help.
		// (fasthttp has dropped the headers of a chunked request by now.)
		if h := &ctx.Request.Header; len(h.Host()) > 0 {
			if p := s.headProblem(h); p != nil {
				return p
			}
		}
		return s.tooLarge()
	case errors.As(err, &long):
		return NewProblem(fasthttp.StatusRequestHeaderFieldsTooLarge,
			fmt.Sprintf("the request line and headers may have %d bytes together (--max-header)", s.app.MaxHeader))
	case errors.As(err, &timeout) && timeout.Timeout():
		return NewProblem(fasthttp.StatusRequestTimeout,
			fmt.Sprintf("the whole request must arrive within %v", s.app.ReadTimeout))
	}
	return NewProblem(fasthttp.StatusBadRequest,
		"this is not valid HTTP: check the request's path, the values of its headers, the chunks of its body, and the names in its trailer")
}

var (
	headerCacheControl = []byte("Cache-Control")
	valueNoStore       = []byte("no-store")
)

// noStore keeps answers out of caches: each is valid only now.
func noStore(ctx *fasthttp.RequestCtx) {
	ctx.Response.Header.SetCanonical(headerCacheControl, valueNoStore)
}

// Text answers with a text.
func Text(ctx *fasthttp.RequestCtx, status int, text string) {
	ctx.SetStatusCode(status)
	ctx.SetContentType("text/plain; charset=utf-8")
	ctx.SetBodyString(text)
}

// httpLog logs the messages of fasthttp.
type httpLog struct{ log *slog.Logger }

// Printf logs messages that any client can cause at debug level.
func (l httpLog) Printf(format string, args ...any) {
	msg := fmt.Sprintf(format, args...)
	if strings.HasPrefix(format, "error when serving connection") {
		l.log.Debug("a connection failed", "error", msg)
	} else {
		l.log.Warn("message of the HTTP server", "message", msg)
	}
}
