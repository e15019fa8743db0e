package feed

import (
	"strconv"

	"github.com/revq/revq/internal/task"
)

// eventOverhead is room for everything in an event but its data: 20 digits of
// an offset, an id, and the names of the fields.
const eventOverhead = task.MaxIDLength + 64

// appendEvent appends m, of which data is the encoding, as one server-sent event (HTML Standard, section 9.2)
// in an HTTP chunk of its own. A browser's EventSource gives the mark back as
// Last-Event-ID when it connects again.
func appendEvent(dst []byte, m Message, data []byte) []byte {
	event := make([]byte, 0, len(data)+eventOverhead)
	if m.Type != TypeResult { // results are what EventSource calls messages
		event = append(append(append(event, "event: "...), m.Type...), '\n')
	}
	if m.Type != TypeGap && m.Offset >= 0 {
		event = append(append(append(event, "id: "...), Mark{m.Offset, m.ID}.String()...), '\n')
	}
	// JSON has no line breaks but escaped ones.
	event = append(append(append(event, "data: "...), data...), "\n\n"...)
	return AppendChunk(dst, event)
}

// AppendChunk appends data as a chunk of an HTTP/1.1 body (RFC 9112, section
// 7.1); an empty one ends the body.
func AppendChunk(dst, data []byte) []byte {
	dst = append(strconv.AppendInt(dst, int64(len(data)), 16), "\r\n"...)
	return append(append(dst, data...), "\r\n"...)
}
