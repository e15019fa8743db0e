// Package wire is the contract between revq's servers and their clients: paths,
// headers, what listeners are sent, and how errors look. Both sides import it.
// It needs nothing but the standard library, so that a client does not depend on
// a server's libraries.
//
// The file message.schema.json describes a Message for clients in other
// languages.
package wire

import "fmt"

// The paths of the servers. HealthPath and ReadyPath are at every one.
const (
	QueuePath  = "/queue_reverse_text" // POST a text, or many, to the API
	ListenPath = "/listen_results"     // GET the results of a socket site, by websocket or as server-sent events
	HealthPath = "/healthz"            // the process answers
	ReadyPath  = "/readyz"             // it can do its job
)

// The headers that matter to clients, besides those that HTTP defines.
const (
	// TaskIDHeader is in the API's answer to one text: the id of its task.
	TaskIDHeader = "Revq-Task-Id"

	// KeyHeader is in a request with one text: the id that its task is to have.
	KeyHeader = "Idempotency-Key"

	// LastEventIDHeader is the Mark after which to go on. A browser's EventSource
	// sends it, and the header has priority over AfterParameter.
	LastEventIDHeader = "Last-Event-ID"
)

// The query parameters of ListenPath.
const (
	FormatParameter = "format" // FormatText, which is the default, or FormatJSON
	AfterParameter  = "after"  // the Mark after which to go on; only new results without it
)

// The formats that a websocket listener can ask for.
const (
	FormatText = "text" // frames that hold the processed text
	FormatJSON = "json" // frames that hold a Message
)

// EventsType is the media type of server-sent events, whose data is a Message.
const EventsType = "text/event-stream"

// Greeting is the text of the first message to a listener.
const Greeting = "Salut, let's wait some text..."

// The status codes of close frames that a server sends (RFC 6455, section
// 7.4.1).
const (
	CloseProtocolError = 1002
	CloseInvalidData   = 1007
	ClosePolicy        = 1008 // the listener was too slow, or sent too much
	CloseTooBig        = 1009
	CloseRestart       = 1012 // connect again
	CloseTryAgain      = 1013 // try another site, or later

	// CloseGap reports a gap in FormatText (section 7.4.2: for applications).
	CloseGap = 4000
)

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
