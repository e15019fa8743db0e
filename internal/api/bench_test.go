package api

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/valyala/fasthttp"
	"github.com/valyala/fasthttp/fasthttputil"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

var discard = slog.New(slog.DiscardHandler)

// request is a POST as fasthttp hands it to the handler.
func request(contentType, body string) *fasthttp.RequestCtx {
	ctx := &fasthttp.RequestCtx{}
	ctx.Request.Header.SetMethod("POST")
	ctx.Request.SetRequestURI(wire.QueuePath)
	ctx.Request.Header.SetContentType(contentType)
	ctx.Request.SetBodyString(body)
	return ctx
}

// ready is a Publisher that has confirmed before it is asked and costs nothing.
type ready struct{ confirmed chan error }

func (r ready) PublishTask(task.Task) <-chan error { return r.confirmed }
func (r ready) Ready() error                       { return nil }

// BenchmarkPost measures a whole request on a kept connection, without a
// network and a broker.
func BenchmarkPost(b *testing.B) {
	text := strings.Repeat("abcdef ", 14) // about 100 bytes
	batch := strings.Repeat(fmt.Sprintf("{\"text\":%q}\n", text), 100)
	for _, bm := range []struct {
		name, contentType, body string
		tasks                   int
	}{
		{"form", typeForm, "text=" + strings.ReplaceAll(text, " ", "+"), 1},
		{"json", typeJSON, fmt.Sprintf(`{"text":%q}`, text), 1},
		{"escaped", typeJSON, fmt.Sprintf(`{"text":%q}`, strings.Repeat("ab\nde\t", 16)), 1},
		{"plain", typePlain, text, 1},
		{"ndjson100", typeNDJSON, batch, 100},
	} {
		b.Run(bm.name, func(b *testing.B) {
			confirmed := make(chan error)
			close(confirmed)
			s := New(DefaultConfig(), ready{confirmed}, discard)
			ln := fasthttputil.NewInmemoryListener()
			served := make(chan error)
			go func() { served <- s.Serve(ln) }()
			c, err := ln.Dial()
			if err != nil {
				b.Fatal(err)
			}
			raw := []byte(post(bm.contentType, bm.body))
			// All answers have the same length, so the client needs no parser.
			if _, err = c.Write(raw); err != nil {
				b.Fatal(err)
			}
			var first bytes.Buffer // a read may return only a part of it
			res, err := http.ReadResponse(bufio.NewReader(io.TeeReader(c, &first)), nil)
			if err != nil || res.StatusCode != http.StatusAccepted {
				b.Fatalf("%q, %v", first.Bytes(), err)
			}
			if _, err := io.Copy(io.Discard, res.Body); err != nil {
				b.Fatal(err)
			}
			answer := make([]byte, first.Len())
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Write(raw); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c, answer); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*bm.tasks)/b.Elapsed().Seconds(), "tasks/s")
			c.Close()
			if err := s.Shutdown(context.Background()); err != nil {
				b.Error(err)
			}
			<-served
		})
	}
}
