// Package api is the HTTP front for clients that post texts. It publishes the
// texts to the broker, and answers 202 only after the broker has confirmed
// them.
//
//	POST /queue_reverse_text   queue a text, or many
//	POST /queue/NAME           queue a text, or many, for the workers of NAME
//	GET  /healthz              the process answers
//	GET  /readyz               tasks can be published
//
// A text comes as a form (text=...), a JSON object ({"text": ..., "id": ...}),
// text/plain, or NDJSON: many such objects, answered line by line. The id is
// the client's own (the Idempotency-Key header or "id" in JSON) or a new one.
// The answer has it in the Revq-Task-Id header, even if the broker did not
// confirm the task, so that a client can retry with the same id. Errors are
// problem details (RFC 9457).
package api

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/token"
	"github.com/revq/revq/internal/wire"
)

// A Publisher publishes tasks to the broker.
type Publisher interface {
	// PublishTask publishes t. The returned channel is buffered and receives
	// exactly one value, within the publisher's own deadline: nil once the
	// broker has confirmed t, task.ErrNoQueue if there is no such queue,
	// otherwise the reason why t may not be queued. The client sees the reason.
	PublishTask(t task.Task) <-chan error

	// Ready returns nil while tasks can be published, otherwise the reason why
	// not, which the client sees.
	Ready() error
}

// defaultLastCall is how long Shutdown leaves idle connections open. It is
// short, since new connections wait meanwhile.
const defaultLastCall = 250 * time.Millisecond

// A Server answers HTTP requests on any number of listening sockets.
type Server struct {
	cfg   Config
	pub   Publisher
	front *front.Server
	known queues

	lastCall time.Duration // defaultLastCall, except in tests
	counts   counts
	accepted *accepted
	inFlight atomic.Int64 // tasks published and not yet confirmed or failed
}

// New returns a server that publishes to p. It serves nothing until Serve.
func New(cfg Config, p Publisher, log *slog.Logger) *Server {
	s := &Server{cfg: cfg, pub: p, lastCall: defaultLastCall, accepted: newAccepted()}
	s.front = front.New(front.App{
		Config: cfg.Config,
		Routes: []front.Route{
			{
				Path: wire.QueuePath, Methods: []string{fasthttp.MethodPost},
				Scope: token.Send, Queues: s.queueOf, Check: checkHead, Handle: s.queue, Options: []string{"Accept-Post", acceptPost},
			},
			{
				Path: wire.QueuePrefix, Methods: []string{fasthttp.MethodPost},
				Scope: token.Send, Queues: s.queueOf, Check: s.checkNamed, Handle: s.queue, Options: []string{"Accept-Post", acceptPost},
			},
		},
		Elsewhere: "texts go to POST " + wire.QueuePath + " or " + wire.QueuePrefix + "NAME",
		Ready:     p.Ready,
		BodyLimit: func(h *fasthttp.RequestHeader) int { return s.bodyLimit(mediaOf(h.ContentType())) },
		TooLarge: fmt.Sprintf("the body is too big: a text may have %d bytes, a batch (%s) %d in all",
			cfg.MaxText, typeNDJSON, cfg.MaxBatch),
		MaxBodies:      cfg.MaxBodies,
		LargestBody:    int64(max(s.bodyLimit(form), s.bodyLimit(object), s.bodyLimit(ndjson))),
		MaxConnections: cfg.MaxConnections,
		ReadTimeout:    cfg.ReadTimeout,
		WriteTimeout:   cfg.WriteTimeout,
		IdleTimeout:    cfg.IdleTimeout,
		Log:            log,
	})
	return s
}

// Serve answers requests on ln until Shutdown, then returns nil. Call it once
// for each listening socket. It takes ownership of ln.
func (s *Server) Serve(ln net.Listener) error { return s.front.Serve(ln) }

// Shutdown stops accepting connections, answers running requests, and closes
// connections as they become idle. It returns ctx's error if some are still
// busy when ctx ends.
func (s *Server) Shutdown(ctx context.Context) error { return s.front.Shutdown(ctx, s.lastCall) }

// InFlight returns the number of tasks that wait for the broker's confirmation.
func (s *Server) InFlight() int { return int(s.inFlight.Load()) }

// Status returns the numbers of tasks in flight and of connections, in words.
func (s *Server) Status() string {
	return fmt.Sprintf("%d in flight; %d connections", s.InFlight(), s.front.Connections())
}

// acquire takes one of the MaxInFlight places. It returns false if none is
// free.
func (s *Server) acquire() bool {
	if s.inFlight.Add(1) > int64(s.cfg.MaxInFlight) {
		s.inFlight.Add(-1)
		return false
	}
	return true
}

func (s *Server) release(n int) { s.inFlight.Add(-int64(n)) }

// queue publishes the text or texts of a POST.
func (s *Server) queue(ctx *fasthttp.RequestCtx) *front.Problem {
	media := mediaOf(ctx.Request.Header.ContentType())
	if media == ndjson {
		return s.queueBatch(ctx)
	}
	p := s.queueOne(ctx, media)
	s.counts.add(p)
	return p
}

// queueOne publishes the text of a POST.
func (s *Server) queueOne(ctx *fasthttp.RequestCtx, media media) *front.Problem {
	sub, p := parse(media, ctx.PostBody())
	if p != nil {
		return p
	}
	if p := sub.takeKey(keyOf(&ctx.Request.Header)); p != nil {
		return p
	}
	if media != object {
		if p := sub.takeTimes(&ctx.Request.Header); p != nil {
			return p
		}
	}
	t, p := s.newTask(sub, s.known.of(&ctx.Request.Header), ctx.Time())
	if p != nil {
		return p
	}
	t.Trace = traceOf(&ctx.Request.Header)
	if !s.acquire() {
		return s.busy()
	}
	defer s.release(1)
	if err := <-s.pub.PublishTask(t); err != nil {
		return s.unqueued(t, front.PermitOf(ctx), err)
	}
	s.known.add(t.Queue)
	s.accepted.add(t.ID)
	answerAccepted(ctx, t.ID)
	return nil
}

// newTask returns the task of sub for a queue, or a problem if its text is not
// valid.
func (s *Server) newTask(sub submission, queue string, now time.Time) (task.Task, *front.Problem) {
	if err := task.CheckText(sub.text, s.cfg.MaxText); err != nil {
		return task.Task{}, badText(err)
	}
	if sub.id == "" {
		sub.id = task.NewID()
	}
	t := task.Task{ID: sub.id, Queue: queue, Text: sub.text, Accepted: now}
	if sub.delay > 0 {
		t.NotBefore = now.Add(sub.delay)
	}
	if sub.expires > 0 {
		t.Expires = now.Add(sub.expires)
	}
	return t, nil
}
