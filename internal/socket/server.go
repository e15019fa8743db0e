// Package socket is the HTTP front for listeners. It sends every result that is
// appended to a feed to every listener.
//
//	GET /                 a page that shows the results as they arrive
//	GET /listen_results   a greeting, then each result
//	GET /results/ID       the last message about one task
//	GET /healthz          the process answers
//	GET /readyz           results can arrive
//
// A websocket gets one text frame for each result: the processed text, or with
// ?format=json a wire.Message. With Accept: text/event-stream the same messages
// come as server-sent events. ?after=OFFSET, ?after=OFFSET/ID and Last-Event-ID
// resume after a result, or after a greeting. The server ignores what listeners
// send, within limits.
//
// fasthttp does the handshake. Then one of a few shards takes the connection,
// and an idle listener is only a socket, an entry in an epoll instance and a
// position in the feed's log. A connection with TLS goes to the hub, which runs
// two goroutines for it.
package socket

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/token"
	"github.com/revq/revq/internal/wire"
)

// A Server serves listeners on any number of sites.
type Server struct {
	cfg   Config
	feed  *feed.Feed
	log   *slog.Logger
	front *front.Server

	source    Source
	err       error // why there are not enough shards
	shards    []*shard
	hub       *hub // for listeners whose connections cannot be polled
	running   sync.WaitGroup
	next      atomic.Uint64 // distributes listeners over the shards
	listeners atomic.Int64
	counts    *counts
	waiting   atomic.Int64 // requests for one result that wait

	stopped context.Context // ends with Shutdown
	stop    context.CancelFunc
	turns   *turns
}

// A Source is where the results in the feed come from.
type Source interface {
	// Ready returns nil while results can arrive, otherwise why not.
	Ready() error

	// History reads the stream, starting a number of messages (before) ahead of
	// an offset. A message may hold fifty results. It leaves out messages that
	// the broker no longer keeps, and continues with new ones, until ctx ends or
	// one of the functions returns an error, which it returns. It calls result
	// with each result, and mark with each mark that has no result. It calls end
	// once: after everything that was in the stream when History was called, or
	// at once if the stream ends before the offset.
	History(ctx context.Context, offset, before int64,
		result func(offset int64, r task.Result) error, mark func(offset int64, id string) error, end func() error) error
}

// New returns a server of the results that source appends to f. The caller must
// call Shutdown to release the server's resources.
func New(cfg Config, f *feed.Feed, source Source, log *slog.Logger) *Server {
	s := &Server{cfg: cfg, feed: f, source: source, log: log, counts: newCounts(f), turns: newTurns(cfg.MaxResuming)}
	s.stopped, s.stop = context.WithCancel(context.Background())
	s.front = front.New(front.App{
		Config: cfg.Config,
		Routes: slices.Concat(pageRoutes(cfg), []front.Route{
			{Path: wire.ListenPath, Methods: []string{fasthttp.MethodGet}, Scope: token.Listen, Queues: queuesOf, Tickets: true, Handle: s.listen},
			{Path: wire.ResultPath, Methods: []string{fasthttp.MethodGet}, Scope: token.Listen, Handle: s.result},
			{Path: wire.TicketPath, Methods: []string{fasthttp.MethodPost}, Scope: token.Listen, Queues: queuesOf, Handle: ticket},
		}),
		Elsewhere:        "listen at " + wire.ListenPath,
		Ready:            source.Ready,
		TooLarge:         "a request to listen has no body",
		AddressListeners: cfg.AddressListeners,
		MaxConnections:   cfg.MaxHandshakes, // listeners have their own limit, and do not count
		ReadTimeout:      cfg.HandshakeTimeout,
		WriteTimeout:     cfg.HandshakeTimeout,
		IdleTimeout:      cfg.HandshakeTimeout,
		Frugal:           true,
		Log:              log,
	})
	s.hub = newHub(cfg, s.left)
	s.running.Go(s.hub.run)
	f.OnAppend(s.hub.wake)
	for range runtime.GOMAXPROCS(0) {
		shard, err := newShard(cfg, log, s.counts, s.left)
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

// left uncounts a listener that is gone.
func (s *Server) left(l *listener) {
	s.listeners.Add(-1)
	s.counts.left(l)
	l.client.Leave()
}

// Serve answers requests on ln until Shutdown, then returns nil. Call it once
// for each site. It takes ownership of ln.
func (s *Server) Serve(ln net.Listener) error {
	if s.err != nil {
		return s.err
	}
	return s.front.Serve(ln)
}

// Shutdown accepts no more connections, closes the listeners with the status
// 1012 (service restart), a few at a time, and waits until they have left or ctx
// ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	err := s.front.Shutdown(ctx, 0)
	s.awaitTurns(ctx)
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

// awaitTurns waits for the listeners that catch up, so that they are dismissed
// like the others. The stop has cut their writes. The wait is limited, since a
// read from the broker may take long.
func (s *Server) awaitTurns(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*closeGrace)
	defer cancel()
	s.turns.await(ctx)
}

// Listeners returns how many listeners are connected.
func (s *Server) Listeners() int { return int(s.listeners.Load()) }

// Status returns the number of listeners and the last offset, in words.
func (s *Server) Status() string {
	return fmt.Sprintf("%d listeners; offset %d", s.Listeners(), s.feed.Last().Offset)
}

// Alive returns an error if a shard or the hub hangs. A listener that hangs is
// not an error.
func (s *Server) Alive() error {
	errs := []error{s.hub.loop.Alive()}
	for _, shard := range s.shards {
		errs = append(errs, shard.loop.Alive())
	}
	return errors.Join(errs...)
}

// wanted is what a listener asks for.
type wanted struct {
	format feed.Format
	filter *feed.Filter // nil for everything
	after  *wire.Mark   // the mark after which it resumes, nil for new results only
	permit *token.Permit
	client *front.Client
}

// listen lets a client listen, or returns the problem with its request.
func (s *Server) listen(ctx *fasthttp.RequestCtx) *front.Problem {
	format, err := feed.ParseFormat(string(ctx.QueryArgs().Peek(wire.FormatParameter)))
	if err != nil {
		return front.NewProblem(fasthttp.StatusBadRequest, err.Error())
	}
	filter, err := parseFilter(ctx.QueryArgs(), front.PermitOf(ctx))
	if err != nil {
		return front.NewProblem(fasthttp.StatusBadRequest, err.Error())
	}
	events := acceptsEvents(ctx)
	if events && string(ctx.Request.Header.Peek(wire.LastEventIDHeader)) == wire.EndEventID {
		ctx.SetStatusCode(fasthttp.StatusNoContent) // a browser that was sent the last message about a task
		return nil
	}
	after, err := resumeMark(ctx)
	if err != nil {
		return front.NewProblem(fasthttp.StatusBadRequest, err.Error())
	}
	what := wanted{format, filter, after, front.PermitOf(ctx), s.front.Client(ctx)}
	if events {
		what.format = feed.Events
	} else if p := checkHandshake(&ctx.Request.Header); p != nil {
		return p
	}
	if full := s.full(what.client); full != nil {
		if !events {
			return full
		}
		ctx.SetContentType(wire.EventsType)
		ctx.Response.Header.Set("Cache-Control", "no-store")
		ctx.Response.Header.Set("Retry-After", wire.RetryAfter) // tells programs that they are not listening, in spite of the 200
		ctx.SetConnectionClose()
		ctx.SetBody(unavailable(full))
		return nil
	}
	if events {
		return s.listenEvents(ctx, what)
	}
	s.listenWebsocket(ctx, what)
	return nil
}

// full returns why a client may not have another listener, or nil.
func (s *Server) full(client *front.Client) *front.Problem {
	if s.listeners.Load() >= int64(s.cfg.MaxListeners) {
		return front.NewProblem(fasthttp.StatusServiceUnavailable, fmt.Sprintf("%d listeners are connected already, which is the maximum: try another site, or later", s.cfg.MaxListeners))
	}
	p := client.Listen()
	if p == nil {
		client.Leave() // join counts it, once the connection is taken over
	}
	return p
}

// listenEvents answers with server-sent events.
func (s *Server) listenEvents(ctx *fasthttp.RequestCtx, what wanted) *front.Problem {
	if !ctx.Request.Header.IsHTTP11() {
		return front.NewProblem(fasthttp.StatusHTTPVersionNotSupported,
			"events come in chunks, which need HTTP/1.1; a proxy in between must use it too (nginx: proxy_http_version 1.1)")
	}
	header := eventsHeader + front.CORSLines(ctx) + "\r\n"
	ctx.HijackSetNoResponse(true)
	ctx.Hijack(func(c net.Conn) {
		s.join(&listener{conn: c, dialect: eventsDialect{}, control: []byte(header)}, what)
	})
	return nil
}

// listenWebsocket answers the handshake of a websocket, which is complete.
func (s *Server) listenWebsocket(ctx *fasthttp.RequestCtx, what wanted) {
	ctx.SetStatusCode(fasthttp.StatusSwitchingProtocols)
	ctx.Response.Header.Set("Upgrade", "websocket")
	ctx.Response.Header.Set("Connection", "Upgrade")
	ctx.Response.Header.Set("Sec-WebSocket-Accept", acceptKey(ctx.Request.Header.Peek("Sec-WebSocket-Key")))
	front.AgreeOnProtocol(ctx)
	ctx.Hijack(func(c net.Conn) {
		s.join(&listener{conn: c, dialect: websocketDialect{}}, what)
	})
}

func acceptsEvents(ctx *fasthttp.RequestCtx) bool {
	return strings.Contains(strings.ToLower(string(ctx.Request.Header.Peek("Accept"))), wire.EventsType)
}

// resumeMark returns the mark after which the listener wants to resume, or nil
// for new results only. The header wins, since a browser's EventSource repeats
// the URL of its first request.
func resumeMark(ctx *fasthttp.RequestCtx) (*wire.Mark, error) {
	text := ctx.Request.Header.Peek(wire.LastEventIDHeader)
	if len(text) == 0 {
		if text = ctx.QueryArgs().Peek(wire.AfterParameter); len(text) == 0 {
			return nil, nil
		}
	}
	mark, err := wire.ParseMark(string(text))
	return &mark, err
}

// join starts to serve l, whose handshake is complete.
func (s *Server) join(l *listener, what wanted) {
	l.conn = front.Detach(l.conn)
	socket := front.Below(l.conn)
	l.fd, _ = descriptor(socket) // -1 if it has none
	prepareSocket(l.fd, &s.cfg)
	l.log, l.permit = s.feed.Log(what.format), what.permit
	l.counts = s.counts
	s.counts.listeners[what.format].Add(1)
	if what.filter != nil {
		l.view = s.feed.View(what.filter, what.format)
	}
	crowded := what.client.Listen()
	if crowded == nil {
		l.client = what.client
	}
	switch {
	case s.listeners.Add(1) > int64(s.cfg.MaxListeners), crowded != nil:
		l.dismiss(byeFull)
	case what.after != nil:
		s.resume(l, what, *what.after)
	default:
		var at wire.Mark
		if l.view != nil {
			l.pos, at = l.view.Join()
		} else {
			l.pos, at = s.feed.Join(what.format)
		}
		if l.pos != feed.Pending {
			l.control = feed.AppendGreeting(l.control, what.format, at, wire.Greeting)
		}
	}
	l.pingAt = time.Now().Add(rand.N(s.cfg.PingInterval)) // at random: not all at once
	switch {
	case l.conn == nil:
	case l.fd >= 0 && socket == l.conn:
		s.shards[s.next.Add(1)%uint64(len(s.shards))].join(l)
	default:
		s.hub.join(l)
	}
}
