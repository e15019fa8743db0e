package socket

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/wire"
)

// A dialect encodes what a server sends to listeners of one protocol besides
// the frames of the log, and parses what they send. Dialects hold no state.
type dialect interface {
	// appendPing appends a ping, or, in a protocol without pings, bytes that
	// keep the connection in use.
	appendPing(dst []byte) []byte

	// appendBye appends a farewell.
	appendBye(dst []byte, why farewell) []byte

	// answersPings reports whether clients of the protocol answer pings.
	answersPings() bool

	// frameLength returns the length of the first frame in b, in bytes. b holds
	// the whole header of that frame.
	frameLength(b []byte) int

	// receive handles the bytes b that l has sent. A message may have at most
	// maxMessage bytes. It returns true when l has answered the farewell, so
	// that neither side expects anything more. parser is for listeners that are
	// between messages; it is the zero value before and after.
	receive(l *listener, b []byte, maxMessage int, parser *inbound) (gone bool)
}

// A farewell is the reason why a connection is closed, as in a close frame.
type farewell struct {
	code   uint16
	reason string
}

var (
	byeFellBehind = farewell{wire.ClosePolicy, "too slow: the next result is no longer in memory; reconnect and resume"}
	byeTooSlow    = farewell{wire.ClosePolicy, "received nothing for too long; reconnect and resume"}
	byeTooMuch    = farewell{wire.ClosePolicy, "listeners are not expected to send that much"}
	byeRevoked    = farewell{wire.ClosePolicy, "the token is not valid any more"}
	byeRestart    = farewell{wire.CloseRestart, "the server restarts: reconnect and resume"}
	byeFull       = farewell{wire.CloseTryAgain, "too many listeners: try another site, or later"}
	byeNoBroker   = farewell{wire.CloseTryAgain, "the broker is away: try another site, or later"}
	byeTurnOver   = farewell{wire.CloseTryAgain, "others wait to resume: reconnect and resume after your last result"}
	byeOver       = farewell{wire.CloseNormal, "this was the last message about the task"}
	byeNoResult   = farewell{wire.CloseNormal, "the task has no result: it is given up, or the result cannot be sent; JSON listeners are told why"}
	byeNoHistory  = farewell{wire.CloseTryAgain, "cannot resume now: try again"}
)

// websocketDialect speaks RFC 6455.
type websocketDialect struct{}

func (websocketDialect) appendPing(dst []byte) []byte {
	return feed.AppendFrame(dst, feed.OpPing, nil)
}

func (websocketDialect) appendBye(dst []byte, why farewell) []byte {
	return feed.AppendClose(dst, why.code, why.reason)
}

func (websocketDialect) answersPings() bool { return true }

func (websocketDialect) frameLength(b []byte) int {
	switch n := int(b[1]); n { // not masked
	case 126:
		return 4 + int(binary.BigEndian.Uint16(b[2:]))
	case 127:
		return 10 + int(binary.BigEndian.Uint64(b[2:]))
	default:
		return 2 + n
	}
}

func (websocketDialect) receive(l *listener, b []byte, maxMessage int, parser *inbound) (gone bool) {
	if l.deaf {
		return false
	}
	in := l.in
	if in == nil {
		in = parser
	}
	wrong := in.take(b, maxMessage, func(op feed.Opcode, payload []byte) {
		switch {
		case op == feed.OpClose && l.phase == left:
			gone = true
		case l.leaving:
		case op == feed.OpPing:
			l.control = feed.AppendFrame(l.control, feed.OpPong, payload)
		case op == feed.OpClose:
			l.leaving = true
			l.control = feed.AppendFrame(l.control, feed.OpClose, payload)
		}
	})
	if wrong == nil && len(l.control) > maxControl {
		wrong = &farewell{wire.ClosePolicy, "too many pings whose answers were not read"}
	}
	if wrong != nil {
		l.deaf = true // what follows cannot be parsed
		l.dismiss(*wrong)
	}
	switch {
	case wrong != nil || in.idle():
		l.in = nil
		*parser = inbound{}
	case l.in == nil: // the rest of the message is still to come
		l.in = in.clone()
		*parser = inbound{}
	}
	return gone
}

// eventsDialect speaks server-sent events (HTML Standard, section 9.2) in
// chunks of HTTP/1.1.
type eventsDialect struct{}

// eventsHeader begins the answer; the log's chunks follow.
const eventsHeader = "HTTP/1.1 200 OK\r\n" +
	"Content-Type: " + wire.EventsType + "\r\n" +
	"Cache-Control: no-store\r\n" +
	"X-Accel-Buffering: no\r\n" + // nginx: pass events on at once
	"Transfer-Encoding: chunked\r\n"

func (eventsDialect) appendPing(dst []byte) []byte {
	return feed.AppendChunk(dst, []byte(":\n\n")) // a comment
}

// appendBye ends the body; a browser reconnects by itself. If nothing more will
// come, it sends wire.EndEventID then, and the answer makes it stop.
func (eventsDialect) appendBye(dst []byte, why farewell) []byte {
	words := []byte(": " + why.reason + "\n\n")
	switch why.code {
	case wire.CloseNormal:
		words = []byte("id: " + wire.EndEventID + "\n\n")
	case wire.CloseTryAgain:
		words = unavailable(front.NewProblem(fasthttp.StatusServiceUnavailable, why.reason))
	}
	return feed.AppendChunk(feed.AppendChunk(dst, words), nil)
}

// The bounds of the time after which a refused browser reconnects. The times
// are random, so that browsers that are refused together do not return
// together.
const (
	minRetryAfter = 2 * time.Second
	maxRetryAfter = 6 * time.Second
)

// unavailable returns the event that says why there are no results for now.
//
// A browser's EventSource gives up for good on every status but 200. So the
// server answers 200 for reasons that pass, sends this event, and ends the
// stream.
func unavailable(p *front.Problem) []byte {
	retry := minRetryAfter + rand.N(maxRetryAfter-minRetryAfter)
	return fmt.Appendf(nil, "retry: %d\nevent: unavailable\ndata: %s\n\n", retry.Milliseconds(), p.JSON())
}

func (eventsDialect) answersPings() bool { return false }

func (eventsDialect) frameLength(b []byte) int {
	const lineBreak = "\r\n"
	size := bytes.Index(b, []byte(lineBreak))
	n, err := strconv.ParseUint(string(b[:size]), 16, 32)
	if err != nil {
		panic(err) // the log holds nothing but chunks
	}
	return size + len(lineBreak) + int(n) + len(lineBreak)
}

// receive skips everything: the protocol has no messages from the client.
func (eventsDialect) receive(*listener, []byte, int, *inbound) bool { return false }
