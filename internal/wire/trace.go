package wire

import "strings"

// TraceparentHeader is in a request with texts: the trace that its tasks belong
// to. Messages about the tasks, and their handlers, get it. A W3C Recommendation,
// Trace Context, defines the name and the value.
const TraceparentHeader = "traceparent"

// traceparentLength is the length of a traceparent of version 00: the version,
// the trace's id, the parent's id and the flags, with hyphens between them.
const traceparentLength = 2 + 1 + 32 + 1 + 16 + 1 + 2

// ParseTraceparent returns the traceparent that a header value stands for, in
// the form of version 00, or "" if it is not valid (Trace Context, sections
// 3.2.2 and 4.3). Of a later version, it keeps what version 00 has: the parts
// that follow are unknown.
func ParseTraceparent(value string) string {
	if len(value) < traceparentLength {
		return ""
	}
	const zeros = "00000000000000000000000000000000"
	head, rest := value[:traceparentLength], value[traceparentLength:]
	version, trace, parent, flags := head[:2], head[3:35], head[36:52], head[53:]
	switch {
	case head[2] != '-' || head[35] != '-' || head[52] != '-':
	case strings.Trim(version+trace+parent+flags, "0123456789abcdef") != "":
	case trace == zeros || parent == zeros[:16] || version == "ff":
	case version == "00" && rest == "":
		return value
	case version != "00" && (rest == "" || rest[0] == '-'):
		return "00" + head[2:]
	}
	return ""
}
