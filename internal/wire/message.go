package wire

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The types of a Message.
const (
	TypeGreeting = "greeting" // the first one
	TypeResult   = "result"
	TypeGap      = "gap"  // results are missing here
	TypeLost     = "lost" // the result at the offset cannot be sent

	TypeFailed   = "failed"   // the task is given up: no worker will attempt it again
	TypeProgress = "progress" // the task is running

	// TypeMark is a place to resume after, for a listener that asked for the
	// results of some queues or of one task: others were left out before it.
	TypeMark = "mark"
)

// IsLast reports whether a message of this type with a task's id is the last
// one about the task, unless somebody requeues it.
func IsLast(messageType string) bool {
	return messageType == TypeResult || messageType == TypeFailed || messageType == TypeLost
}

// A Message is what listeners get in the JSON format, one object in a frame.
type Message struct {
	// Type is one of those above. More may be added: skip unknown types.
	Type string `json:"type"`

	// Offset is the result's position in the stream of results. It is the same
	// at every site, and grows from one result to the next, though not always
	// by one. The listener stands after the offset of a greeting or a gap; -1
	// is the beginning.
	Offset int64 `json:"offset"`

	// ID is the id of the task whose result is at the offset. If there is a
	// mark message, it is the id of that.
	ID string `json:"id,omitzero"`

	// Queue is the name of the task's queue.
	Queue string `json:"queue,omitzero"`

	// Text is the processed text, or the greeting, or the reason for a gap, a
	// lost result or a failure, or how far a task is. It is empty in a mark.
	Text string `json:"text"`

	// Accepted and Done are when the API accepted the task and when a worker
	// finished it or gave it up, with microseconds. Accepted is left out if
	// another client than the API enqueued the task.
	Accepted time.Time `json:"accepted,omitzero"`
	Done     time.Time `json:"done,omitzero"`

	// Traceparent is the trace that the text was posted with, see
	// TraceparentHeader. It is left out if there was none.
	Traceparent string `json:"traceparent,omitzero"`
}

// A Mark is a place in the stream of results: after the result, or the mark
// message, at Offset.
type Mark struct {
	Offset int64

	// ID is the id of the task whose result is at Offset, or the id of the
	// mark message there; "" if it is not known. It shows when a stream was
	// deleted and re-created: another id is at Offset then.
	ID string
}

// ParseMark reads a mark in the form that listeners send: OFFSET or OFFSET/ID.
func ParseMark(text string) (Mark, error) {
	number, id, _ := strings.Cut(text, "/")
	offset, err := strconv.ParseInt(number, 10, 64)
	if err != nil || offset < -1 || id != "" && CheckID(id) != nil {
		return Mark{}, fmt.Errorf("%.100q is no place in the results: give the offset of the last one received, or OFFSET/ID", text)
	}
	return Mark{offset, id}, nil
}

func (m Mark) String() string { return string(m.Append(nil)) }

// Append appends m as String writes it.
func (m Mark) Append(dst []byte) []byte {
	dst = strconv.AppendInt(dst, m.Offset, 10)
	if m.ID != "" {
		dst = append(append(dst, '/'), m.ID...)
	}
	return dst
}
