package feed

import (
	"strconv"

	"github.com/revq/revq/internal/wire"
)

// eventOverhead is room for everything in an event except its data: 20 digits
// of an offset, an id, and the names of the fields.
const eventOverhead = wire.MaxIDLength + 64

// appendEvent appends m as one server-sent event (HTML Standard, section 9.2)
// in an HTTP chunk of its own. data is the encoding of m. A browser's
// EventSource sends the mark as Last-Event-ID when it reconnects.
func appendEvent(dst []byte, m wire.Message, data []byte) []byte {
	head := make([]byte, 0, eventOverhead)
	if m.Type == wire.TypeMark { // without data it is no event, but EventSource remembers the mark
		head = wire.Mark{Offset: m.Offset, ID: m.ID}.Append(append(head, "id: "...))
		return AppendChunk(dst, append(head, "\n\n"...))
	}
	if m.Type != wire.TypeResult { // an event without a type is a message to EventSource
		head = append(append(append(head, "event: "...), m.Type...), '\n')
	}
	mark := wire.Mark{Offset: m.Offset, ID: m.ID}
	if m.Type == wire.TypeGap {
		mark = wire.Mark{Offset: -1} // everything that is kept follows
	}
	head = append(mark.Append(append(head, "id: "...)), '\n')
	head = append(head, "data: "...)
	const end = "\n\n"
	// Line breaks in JSON are escaped, so the data is one line.
	dst = appendChunkSize(dst, len(head)+len(data)+len(end))
	return append(append(append(dst, head...), data...), end+"\r\n"...)
}

// AppendChunk appends data as a chunk of an HTTP/1.1 body (RFC 9112, section
// 7.1); an empty one ends the body.
func AppendChunk(dst, data []byte) []byte {
	return append(append(appendChunkSize(dst, len(data)), data...), "\r\n"...)
}

func appendChunkSize(dst []byte, n int) []byte {
	return append(strconv.AppendInt(dst, int64(n), 16), "\r\n"...)
}
