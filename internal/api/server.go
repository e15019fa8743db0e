// Package api is the HTTP front: it takes texts, hands them to the broker and
// answers 202 once the broker has confirmed them, never before.
//
//	POST /queue_reverse_text   queue a text, or many
//	GET  /healthz              the process answers
//	GET  /readyz               tasks can be published
//
// A text comes as a form (text=...), a JSON object ({"text": ..., "id": ...}),
// text/plain, or NDJSON: many such objects, answered line by line. The id is
// the client's own (the Idempotency-Key header or "id" in JSON) or a new one;
// the answer's Revq-Task-Id header tells it, also when the broker did not
// confirm, so that a retry can name the same task. Errors are problem details
// (RFC 9457).
package api

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/problem"
	"github.com/revq/revq/internal/task"
)

// Publisher hands tasks to the broker.
type Publisher interface {
	// PublishTask sends t. The channel returned (buffered) gets exactly one
	// value, within the publisher's own deadline: nil once the broker has
	// confirmed t, otherwise why it's not known to be queued. The reason is
	// shown to the client.
	PublishTask(t task.Task) <-chan error

	// Ready returns nil while tasks can be published, otherwise why not. The
	// reason is shown to the client.
	Ready() error
}

const (
	queuePath  = "/queue_reverse_text"
	healthPath = "/healthz"
	readyPath  = "/readyz"
)

// methods lists what each path answers to.
var methods = map[string][]string{
	queuePath:  {"OPTIONS", "POST"},
	healthPath: {"GET", "HEAD", "OPTIONS"},
	readyPath:  {"GET", "HEAD", "OPTIONS"},
}

const (
	// headerLimit is the longest request line and headers, together. It is
	// also each connection's read buffer, and large enough that a usual text
	// arrives in one read.
	headerLimit = 8 << 10

	// defaultLastCall is how long Shutdown leaves idle connections open. A client
	// that has just read an answer sends its next request within this time
	// and is told to close, where closing at once would break that request
	// off. Meanwhile new connections wait, so it is kept short.
	defaultLastCall = 250 * time.Millisecond
)

// A Server answers HTTP requests on any number of listeners.
type Server struct {
	cfg  Config
	pub  Publisher
	log  *slog.Logger
	gate *front.Gate
	http *fasthttp.Server

	lastCall time.Duration // defaultLastCall, except in tests
	inFlight atomic.Int64  // tasks given to pub and not yet confirmed or failed

	connections atomic.Int64 // open ones, of all listeners

	draining atomic.Bool // set once, under mu
	mu       sync.Mutex
	open     []net.Listener
}

// New returns a server that publishes to p. It serves nothing until Serve.
func New(cfg Config, p Publisher, log *slog.Logger) *Server {
	s := &Server{cfg: cfg, pub: p, log: log, gate: front.NewGate(cfg.Pages), lastCall: defaultLastCall}
	s.http = &fasthttp.Server{
		Handler:        s.handle,
		ErrorHandler:   s.refuse,
		HeaderReceived: s.limitBody,
		Logger:         httpLog{log},

		Concurrency:        2 * cfg.MaxConnections, // listeners refuse sooner, and say why
		ReadTimeout:        cfg.ReadTimeout,
		WriteTimeout:       cfg.WriteTimeout,
		IdleTimeout:        cfg.IdleTimeout,
		ReadBufferSize:     headerLimit,
		MaxRequestBodySize: s.bodyLimit(unsupported),

		// Name and version are nobody's business; each answer sets its own type.
		NoDefaultServerHeader: true,
		NoDefaultContentType:  true,
		// A multipart body is refused, not spooled to temporary files.
		DisablePreParseMultipartForm: true,
		// Texts are the clients' own and stay out of the log.
		SecureErrorLogMessage: true,
	}
	return s
}

// Serve answers requests on ln until Shutdown, then returns nil. It is called
// once for each listener and takes ln over.
func (s *Server) Serve(ln net.Listener) error {
	ln = &listener{Listener: ln, log: s.log, most: int64(s.cfg.MaxConnections), total: &s.connections}
	s.mu.Lock()
	draining := s.draining.Load()
	if !draining {
		s.open = append(s.open, ln)
	}
	s.mu.Unlock()
	if draining {
		return ln.Close()
	}
	return s.http.Serve(ln)
}

// Shutdown stops taking connections, lets requests in hand be answered, and
// closes connections as they fall idle. It returns ctx's error if some are
// still busy when ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.draining.Store(true)
	for _, ln := range s.open {
		if err := ln.Close(); err != nil {
			s.log.Warn("closing a listener", "addr", ln.Addr().String(), "err", err)
		}
	}
	s.open = nil
	s.mu.Unlock()

	select {
	case <-time.After(s.lastCall):
	case <-ctx.Done():
	}
	return s.http.ShutdownWithContext(ctx)
}

// InFlight returns the number of tasks that wait for the broker's confirmation.
func (s *Server) InFlight() int { return int(s.inFlight.Load()) }

// Status says in a few words how much there is to do.
func (s *Server) Status() string {
	return fmt.Sprintf("%d in flight; %d connections", s.InFlight(), s.connections.Load())
}

// acquire takes one of the MaxInFlight places, if any is free.
func (s *Server) acquire() bool {
	if s.inFlight.Add(1) > int64(s.cfg.MaxInFlight) {
		s.inFlight.Add(-1)
		return false
	}
	return true
}

func (s *Server) release(n int) { s.inFlight.Add(-int64(n)) }

func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	// fasthttp recovers nothing: one request that meets a bug would take
	// every other one down with it, and a repeated one the whole site.
	defer func() {
		if r := recover(); r != nil {
			s.log.Error("request handler panicked", "panic", r, "stack", string(debug.Stack()))
			ctx.Response.Reset()
			s.gate.Expose(ctx)
			answer(ctx, errInternal)
		}
		// Sooner than fasthttp's CloseOnShutdown, which begins after the last call.
		if s.draining.Load() {
			ctx.SetConnectionClose()
		}
	}()
	if p := s.serve(ctx); p != nil {
		answer(ctx, p)
	}
}

// serve answers the request or returns the problem with it.
func (s *Server) serve(ctx *fasthttp.RequestCtx) *problem.Problem {
	if p := s.gate.Admit(ctx); p != nil {
		return p
	}
	if p := misdirected(ctx); p != nil {
		return p
	}
	if ctx.IsOptions() {
		answerOptions(ctx)
		return nil
	}
	switch string(ctx.Path()) {
	case queuePath:
		return s.queue(ctx)
	case readyPath:
		if err := s.pub.Ready(); err != nil {
			return problem.New(fasthttp.StatusServiceUnavailable, err.Error())
		}
		answerText(ctx, fasthttp.StatusOK, "ready")
	case healthPath:
		answerText(ctx, fasthttp.StatusOK, "ok")
	}
	return nil
}

// misdirected returns what is wrong with a request by its headers alone.
func misdirected(ctx *fasthttp.RequestCtx) *problem.Problem {
	allowed, ok := methods[string(ctx.Path())]
	switch {
	case !ok:
		return problem.New(fasthttp.StatusNotFound, "there is nothing here: texts go to POST "+queuePath)
	case !slices.Contains(allowed, string(ctx.Method())):
		return problem.New(fasthttp.StatusMethodNotAllowed, "use "+strings.Join(allowed, " or "))
	case ctx.IsPost():
		return checkMedia(&ctx.Request.Header)
	}
	return nil
}

// queue publishes the text or texts of a POST.
func (s *Server) queue(ctx *fasthttp.RequestCtx) *problem.Problem {
	media := mediaOf(ctx.Request.Header.ContentType())
	if media == ndjson {
		return s.queueBatch(ctx)
	}
	sub, p := parse(media, ctx.PostBody())
	if p != nil {
		return p
	}
	if p := sub.takeKey(ctx.Request.Header.Peek(idempotencyKey)); p != nil {
		return p
	}
	t, p := s.newTask(sub, ctx.Time())
	if p != nil {
		return p
	}
	if !s.acquire() {
		return s.busy()
	}
	defer s.release(1)
	if err := <-s.pub.PublishTask(t); err != nil {
		return unconfirmed(t.ID, err)
	}
	answerAccepted(ctx, t.ID)
	return nil
}

// newTask makes a task of sub if it keeps the limits.
func (s *Server) newTask(sub submission, now time.Time) (task.Task, *problem.Problem) {
	if err := task.CheckText(sub.text, s.cfg.MaxText); err != nil {
		return task.Task{}, badText(err)
	}
	if sub.id == "" {
		sub.id = task.NewID()
	}
	return task.Task{ID: sub.id, Text: sub.text, Accepted: now}, nil
}
