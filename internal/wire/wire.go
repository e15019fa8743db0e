// Package wire is the contract between revq's servers and their clients: paths,
// headers, what listeners are sent, and how errors look. Both sides import it.
// It needs nothing but the standard library, so that a client does not depend
// on a server's libraries.
//
// The file message.schema.json describes a Message for clients in other
// languages.
package wire

import (
	"fmt"
	"time"
)

// The paths of the servers. HealthPath and ReadyPath are at every one.
const (
	QueuePath   = "/queue_reverse_text" // POST a text, or many, to the API: the same as QueuePrefix + DefaultQueue
	QueuePrefix = "/queue/"             // before the name of a queue: POST a text, or many, to that queue
	ListenPath  = "/listen_results"     // GET the results of a socket site, by websocket or as server-sent events
	ResultPath  = "/results/"           // before the id of a task: GET its result from a socket site
	TicketPath  = "/ticket"             // POST with a token to a socket site: a ticket for listening
	HealthPath  = "/healthz"            // the process answers
	ReadyPath   = "/readyz"             // it can do its job
)

// The headers that matter to clients, besides those that HTTP defines.
const (
	// TaskIDHeader is in the API's answer to one text: the id of its task.
	TaskIDHeader = "Revq-Task-Id"

	// KeyHeader is in a request with one text: the id that its task is to have.
	KeyHeader = "Idempotency-Key"

	// DelayHeader and ExpiresHeader are in a request without JSON: how long its
	// tasks wait before their first attempt, and after which time they are
	// given up unless an attempt has begun. See ParseDelay.
	DelayHeader   = "Revq-Delay"
	ExpiresHeader = "Revq-Expires"

	// LastEventIDHeader is the Mark to resume after. A browser's EventSource
	// sends it, and the header has priority over AfterParameter.
	LastEventIDHeader = "Last-Event-ID"
)

// The query parameters of ListenPath.
const (
	FormatParameter = "format" // FormatText, which is the default, or FormatJSON
	AfterParameter  = "after"  // the Mark to resume after; only new results without it
	QueueParameter  = "queue"  // the name of a queue whose results are wanted; repeatable; all without it
	IDParameter     = "id"     // the id of the only task whose results are wanted
)

// TicketParameter is the query parameter of ListenPath with a ticket from
// TicketPath, for browsers, which cannot send a token with an EventSource or a
// websocket.
const TicketParameter = "ticket"

// The subprotocols with which a websocket from a browser can send a token: it
// offers both Subprotocol and TokenSubprotocol followed by the token. The
// server agrees on Subprotocol.
const (
	Subprotocol      = "revq"
	TokenSubprotocol = "revq.token."
)

// WaitParameter is the query parameter of ResultPath: how long to wait for a
// result that is not known yet. See ParseDelay.
const WaitParameter = "wait"

// The formats that a websocket listener can ask for.
const (
	FormatText = "text" // frames that hold the processed text
	FormatJSON = "json" // frames that hold a Message
)

// EventsType is the media type of server-sent events, whose data is a Message.
const EventsType = "text/event-stream"

// EndEventID is the id of the last event of a stream with IDParameter. A
// browser's EventSource reconnects with it in LastEventIDHeader and is answered
// 204, which makes it stop.
const EndEventID = "end"

// Greeting is the text of the first message to a listener.
const Greeting = "Salut, let's wait some text..."

// The status codes of close frames that a server sends (RFC 6455, section
// 7.4.1).
const (
	CloseNormal        = 1000 // that was the last message about the only task that was wanted
	CloseProtocolError = 1002
	CloseInvalidData   = 1007
	ClosePolicy        = 1008 // the listener was too slow, or sent too much
	CloseTooBig        = 1009
	CloseRestart       = 1012 // connect again
	CloseTryAgain      = 1013 // try another site, or later

	// CloseGap reports a gap in FormatText (section 7.4.2: for applications).
	CloseGap = 4000
)

// DefaultQueue is the name of the queue that every installation has. Its
// built-in handler reverses texts.
const DefaultQueue = "reverse_text"

// MaxQueueLength is the maximum length of a queue's name, in bytes.
const MaxQueueLength = 63

// ErrBadQueue is the error of CheckQueue.
var ErrBadQueue = fmt.Errorf("the name of a queue is a lower-case letter, followed by up to %d lower-case letters, digits, _ and -", MaxQueueLength-1)

// CheckQueue returns ErrBadQueue unless name can be the name of a queue. Such a
// name is also part of the names of units, files and objects at the broker.
func CheckQueue(name string) error {
	if name == "" || len(name) > MaxQueueLength || name[0] < 'a' || name[0] > 'z' {
		return ErrBadQueue
	}
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '_', c == '-':
		default:
			return ErrBadQueue
		}
	}
	return nil
}

// MaxDelay is the maximum time that a client may have a task wait. For later
// tasks there are timer units.
const MaxDelay = 7 * 24 * time.Hour

// MaxExpires is the maximum time after which a task may expire: a task that may
// wait for longer needs no limit.
const MaxExpires = 366 * 24 * time.Hour

// ParseDelay reads a time from a client: seconds, such as 90 or 0.5, or a
// number and a unit, such as 90s, 15m, 2h or 1h30m. It is from 0 to limit.
func ParseDelay(text string, limit time.Duration) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		d, err = time.ParseDuration(text + "s")
	}
	if err != nil || d < 0 || d > limit {
		return 0, fmt.Errorf("%.40q is no time from 0 to %v: give seconds, or a number with a unit, such as 90s, 15m, 2h", text, limit)
	}
	return d, nil
}

// MaxIDLength is the maximum length of a task id, in bytes. An AMQP short
// string has at most 255. The maximum is lower, because the id of each
// result in the deduplication window is kept in memory.
const MaxIDLength = 128

// ErrBadID is the error of CheckID.
var ErrBadID = fmt.Errorf("a task id is 1 to %d printable ASCII characters without spaces", MaxIDLength)

// CheckID returns ErrBadID unless id is a valid task id.
func CheckID(id string) error {
	if id == "" || len(id) > MaxIDLength {
		return ErrBadID
	}
	for i := range len(id) {
		if id[i] <= ' ' || id[i] > '~' {
			return ErrBadID
		}
	}
	return nil
}
