package api

import (
	"bytes"
	"fmt"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// maxLines is the maximum number of lines in a batch. It bounds the answer,
// which for short invalid lines is many times as long as the request.
const maxLines = 10_000

// A batch is an NDJSON request that is being answered.
//
// It publishes its lines one after the other without waiting, and answers them
// in their order. When no place is free (MaxInFlight), it waits for the oldest
// of its own tasks, which the publisher's deadline bounds. It refuses a line
// only if it has no task in flight. So a batch may be larger than MaxInFlight.
type batch struct {
	s       *Server
	ctx     *fasthttp.RequestCtx
	queue   string // of all its tasks
	pending []line // not yet answered, oldest first
	places  int    // of MaxInFlight, that the batch holds
	status  int    // common to the lines answered so far, 0 before the first
	retry   bool   // a line may succeed later

	trace string // of all its tasks

	named map[string]*outcome // of tasks with ids of the client's, by id
}

// An outcome is the result of publishing a task. err is known once the task's
// line was answered.
type outcome struct {
	text string
	err  error
}

// A line is a line of a batch that is not answered yet.
type line struct {
	number    int // in the body, from 1
	id        string
	confirmed <-chan error // nil if there is a problem already, or for a repetition
	outcome   *outcome     // nil if no later line can repeat this one
	problem   *front.Problem
}

// queueBatch publishes each line of an NDJSON body.
func (s *Server) queueBatch(ctx *fasthttp.RequestCtx) *front.Problem {
	body := ctx.PostBody()
	if lines := bytes.Count(bytes.TrimSuffix(body, []byte("\n")), []byte("\n")) + 1; lines > maxLines {
		return front.NewProblem(fasthttp.StatusRequestEntityTooLarge,
			fmt.Sprintf("a batch may have %d lines: send it in parts", maxLines))
	}
	b := batch{s: s, ctx: ctx, queue: s.known.of(&ctx.Request.Header), trace: traceOf(&ctx.Request.Header)}
	defer func() { s.release(b.places) }() // 0 except after a panic
	number := 0
	for text := range bytes.SplitSeq(body, []byte("\n")) {
		number++
		if len(bytes.Trim(text, " \t\r")) == 0 {
			continue
		}
		l := b.publish(text)
		l.number = number
		b.pending = append(b.pending, l)
	}
	for len(b.pending) > 0 {
		b.answerOldest()
	}
	if b.status == 0 {
		return badRequest(`the batch is empty: send lines such as {"text": "abcdef"}`)
	}
	ctx.SetStatusCode(b.status)
	ctx.SetContentType(typeNDJSON)
	if b.retry {
		ctx.Response.Header.Set("Retry-After", wire.RetryAfter)
	}
	return nil
}

// publish starts to publish the task of a line. A line that repeats both an id
// and its text is not published again; it gets the answer of the first one.
func (b *batch) publish(text []byte) line {
	sub, p := parseJSON(text)
	if p != nil {
		return line{problem: p}
	}
	t, p := b.s.newTask(sub, b.queue, b.ctx.Time())
	if p != nil {
		return line{problem: p}
	}
	t.Trace = b.trace
	if first := b.named[sub.id]; first != nil {
		if first.text != t.Text {
			return line{problem: otherText(t.ID)}
		}
		return line{id: t.ID, outcome: first} // first is answered before this line
	}
	for !b.s.acquire() {
		if b.places == 0 {
			return line{problem: b.s.busy()}
		}
		b.answerOldest()
	}
	b.places++
	l := line{id: t.ID, confirmed: b.s.pub.PublishTask(t)}
	if sub.id != "" {
		if b.named == nil {
			b.named = make(map[string]*outcome)
		}
		l.outcome = &outcome{text: t.Text}
		b.named[t.ID] = l.outcome
	}
	return l
}

// answerOldest waits until the first pending line is decided and writes its
// answer.
func (b *batch) answerOldest() {
	l := b.pending[0]
	b.pending = b.pending[1:]
	var err error
	if l.confirmed != nil {
		err = <-l.confirmed
		b.s.release(1)
		b.places--
		if l.outcome != nil {
			l.outcome.err = err
		}
	} else if l.outcome != nil {
		err = l.outcome.err
	}
	if err != nil {
		l.problem = b.s.unqueued(task.Task{ID: l.id, Queue: b.queue}, front.PermitOf(b.ctx), err)
	} else if l.problem == nil {
		b.s.known.add(b.queue)
	}
	b.s.counts.add(l.problem)
	resp := &b.ctx.Response
	status := fasthttp.StatusAccepted
	if l.problem == nil {
		b.s.accepted.add(l.id)
		resp.AppendBodyString(`{"status":202,"id":`)
		var quoted [64]byte // long enough for a generated id
		resp.AppendBody(appendID(quoted[:0], l.id))
		resp.AppendBodyString("}\n")
	} else {
		l.problem.Line = l.number
		status = l.problem.Status
		resp.AppendBody(append(l.problem.JSON(), '\n'))
	}
	switch b.status {
	case 0:
		b.status = status
	case status:
	default:
		b.status = fasthttp.StatusMultiStatus
	}
	b.retry = b.retry || wire.Retryable(status)
}
