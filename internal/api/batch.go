package api

import (
	"bytes"
	"fmt"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/wire"
)

// maxLines is the most lines in a batch. It bounds the answer, which for short
// bad lines is many times as long as the request.
const maxLines = 10_000

// A batch is an NDJSON request being answered.
//
// Its lines are published one after the other without waiting, and answered in
// their order. When no place is free (MaxInFlight), the batch waits for the
// oldest of its own tasks, which the publisher's deadline bounds; only when it
// has none is a line refused. So a batch may be larger than MaxInFlight.
type batch struct {
	s       *Server
	ctx     *fasthttp.RequestCtx
	pending []line // not yet answered, oldest first
	places  int    // held of MaxInFlight
	status  int    // common to the lines answered so far, 0 before the first
	retry   bool   // a line may succeed later

	named map[string]*outcome // of the tasks published under the client's own ids
}

// An outcome is what became of a task, known once its line was answered.
type outcome struct {
	text string
	err  error
}

// A line is one line of a batch on its way to an answer.
type line struct {
	number    int // in the body, from 1
	id        string
	confirmed <-chan error // nil if there is a problem already, or for a repetition
	outcome   *outcome     // nil if nobody may ask for it
	problem   *front.Problem
}

// queueBatch publishes each line of an NDJSON body.
func (s *Server) queueBatch(ctx *fasthttp.RequestCtx) *front.Problem {
	body := ctx.PostBody()
	if lines := bytes.Count(bytes.TrimSuffix(body, []byte("\n")), []byte("\n")) + 1; lines > maxLines {
		return front.NewProblem(fasthttp.StatusRequestEntityTooLarge,
			fmt.Sprintf("a batch may have %d lines: send it in parts", maxLines))
	}
	b := batch{s: s, ctx: ctx}
	defer func() { s.release(b.places) }() // some are held only after a panic
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

// publish starts to publish the task that text, a line, describes. A line that
// repeats an id and its text is not published again, and answered as the first.
func (b *batch) publish(text []byte) line {
	sub, p := parseJSON(text)
	if p != nil {
		return line{problem: p}
	}
	t, p := b.s.newTask(sub, b.ctx.Time())
	if p != nil {
		return line{problem: p}
	}
	if first := b.named[sub.id]; first != nil {
		if first.text != t.Text {
			return line{problem: otherText(t.ID)}
		}
		return line{id: t.ID, outcome: first} // which is answered before
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

// answerOldest waits until the first pending line is decided and writes its answer.
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
		l.problem = unconfirmed(l.id, err)
	}
	resp := &b.ctx.Response
	status := fasthttp.StatusAccepted
	if l.problem == nil {
		resp.AppendBodyString(`{"status":202,"id":`)
		var quoted [64]byte // long enough for an id made here
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
