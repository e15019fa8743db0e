package front

import (
	"bytes"
	"fmt"

	"github.com/valyala/fasthttp"
)

// A fault is what is wrong with a request as HTTP. It ends the connection,
// since it is not certain where the next request begins.
type fault struct {
	status int
	detail string
}

func (f *fault) Error() string { return f.detail }

func (f *fault) problem() *Problem { return NewProblem(f.status, f.detail) }

func malformed(detail string) *fault { return &fault{fasthttp.StatusBadRequest, detail} }

// The faults. Each has its own message, so that whoever wrote the client or
// configured the proxy knows what to fix.
var (
	faultTLS     = malformed("this is TLS, and the server uses plain HTTP here: use http:// or ws://")
	faultNotHTTP = malformed("this is not HTTP: a request begins with a method, such as GET or POST")
	faultLF      = malformed("lines of a request must end with CR and LF, not with LF alone")
	faultCR      = malformed("there is a CR within a line of the request: only the end of a line has one")
	faultLine    = malformed("the request line must be a method, a path and HTTP/1.1, with one space between them")
	faultTarget  = malformed("the request line must have a path that begins with /, or an http:// URL")
	faultConnect = &fault{fasthttp.StatusNotImplemented, "CONNECT is for proxies, and this is not a proxy"}
	faultVersion = &fault{fasthttp.StatusHTTPVersionNotSupported, "this server supports only HTTP/1.1 and HTTP/1.0"}

	faultFold   = malformed("a header line begins with white space: continued lines are obsolete, send each header in one line")
	faultSpace  = malformed("there is white space between a header's name and its colon")
	faultField  = malformed("a header line must be a name of letters, digits and hyphens, a colon, and a value")
	faultLines  = &fault{fasthttp.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("a request may have %d header lines", maxFields)}
	faultNoHost = malformed("the Host header is missing: HTTP/1.1 requires it (nginx: proxy_set_header Host $host)")
	faultHosts  = malformed("there is more than one Host header")
	faultHost   = malformed("the Host header must be a host name or an address, with a port if needed, such as example.org:8083 (nginx: proxy_set_header Host $host)")

	faultTypes     = malformed("there is more than one Content-Type header")
	faultLength    = malformed("Content-Length must be a number")
	faultLengths   = malformed("there is more than one Content-Length header")
	faultEncodings = malformed("there is more than one Transfer-Encoding header")
	faultEncoding  = malformed("the only supported Transfer-Encoding is chunked")
	faultUnknownTE = &fault{fasthttp.StatusNotImplemented, "the only supported Transfer-Encoding is chunked, without others"}
	faultOldTE     = malformed("HTTP/1.0 has no Transfer-Encoding: send a Content-Length")
	faultBoth      = malformed("there are both a Content-Length and a Transfer-Encoding: send one of them")
	faultExpect    = &fault{fasthttp.StatusExpectationFailed, "the only supported expectation is Expect: 100-continue"}

	faultChunk    = malformed("a chunk of the body must begin with its length in hexadecimal digits, in a line of its own")
	faultChunkEnd = malformed("a chunk of the body is not as long as it says: CR and LF must follow it")

	faultEnd = malformed("the connection ended before the request was complete")
)

const (
	// maxFields is the maximum number of header lines of a request, and of a
	// trailer. Each costs about a hundred bytes of memory, however short it is.
	maxFields = 256

	// maxChunkLine is the maximum length of a line with the length of a chunk.
	// What follows the length on that line (extensions) is ignored.
	maxChunkLine = 256
)

// A phase is what a guard expects next.
type phase uint8

const (
	requestLine phase = iota
	fieldLine
	body      // left bytes of it
	chunkLine // the length of a chunk
	chunk     // left bytes of it
	chunkEnd  // the line break after a chunk
	trailerLine
)

// A guard checks the bytes of requests before fasthttp parses them, and refuses
// ambiguous ones: what a proxy takes for one request must not be two here.
// fasthttp itself is more lenient, waits for the end of requests that are wrong
// already, and does not say what is wrong.
//
// It works on the bytes in fasthttp's buffer as they arrive, and copies only
// lines that arrive in parts.
type guard struct {
	limit   int    // of bytes in the request line and the headers
	size    int    // of them so far, or of the trailer
	fields  int    // lines
	left    int64  // bytes of the body or chunk that are still to come
	total   int64  // bytes of all chunks that have begun
	partial []byte // the beginning of a line whose end has not come
	wrong   *fault // the first fault found; it is final

	// announce, if it is not nil, is called with the length of a body before it
	// is received; for a body in chunks, with the length known by now, and that
	// of the line break after the last chunk.
	announce func(total int64) *fault

	phase   phase
	minor   byte // of the version
	begun   bool // fasthttp has a part of the request
	host    bool
	typed   bool
	length  bool
	chunked bool
}

// pass returns how many of the next bytes, p, fasthttp may read. If these are
// not all, g.wrong is set. fasthttp then has at least one byte of the wrong
// request, without which it would not answer.
func (g *guard) pass(p []byte) int {
	for at := 0; at < len(p); {
		switch g.phase {
		case body, chunk:
			n := min(g.left, int64(len(p)-at))
			at += int(n)
			if g.left -= n; g.left == 0 {
				g.bodyPart()
			}
			continue
		case requestLine:
			if !g.begun && len(g.partial) == 0 && !tokenByte[p[at]] && p[at] != '\r' && p[at] != '\n' {
				g.wrong = faultNotHTTP
				if p[at] == 0x16 { // a handshake record
					g.wrong = faultTLS
				}
			}
		}
		n := bytes.IndexByte(p[at:], '\n') + 1
		complete := n > 0
		if !complete {
			n = len(p) - at
		}
		if g.wrong == nil {
			g.wrong = g.count(n)
		}
		if g.wrong == nil {
			g.wrong = g.take(p[at:at+n], complete)
		}
		if g.wrong != nil {
			if !g.begun {
				p[at] = 'X' // any byte but a line break, which fasthttp would skip
				at++
			}
			return at
		}
		at += n
		g.begun = g.phase != requestLine || len(g.partial) > 0
	}
	return len(p)
}

// count adds n bytes of a line to the size of the head or the trailer.
func (g *guard) count(n int) *fault {
	if g.phase == chunkLine || g.phase == chunkEnd {
		return nil
	}
	if g.size += n; g.size > g.limit {
		return &fault{fasthttp.StatusRequestHeaderFieldsTooLarge,
			fmt.Sprintf("the request line and headers may have %d bytes together (--max-header)", g.limit)}
	}
	return nil
}

// take stores a part of a line, and checks the line once it is complete.
func (g *guard) take(line []byte, complete bool) *fault {
	if len(g.partial) > 0 || !complete {
		g.partial = append(g.partial, line...)
		if !complete {
			return g.early(g.partial)
		}
		line = g.partial
		g.partial = nil
	}
	if g.phase == chunkEnd && string(line) != "\r\n" {
		return faultChunkEnd
	}
	if len(line) < 2 || line[len(line)-2] != '\r' {
		return faultLF
	}
	line = line[:len(line)-2]
	if bytes.IndexByte(line, '\r') >= 0 {
		return faultCR
	}
	switch g.phase {
	case requestLine:
		return g.request(line)
	case fieldLine:
		if len(line) > 0 {
			return g.field(line)
		}
		return g.endHead()
	case chunkLine:
		return g.chunkSize(line)
	case chunkEnd:
		g.phase = chunkLine
	case trailerLine:
		if len(line) == 0 {
			g.next()
			return nil
		}
		_, _, wrong := g.split(line)
		return wrong
	}
	return nil
}

// early returns what is wrong with the beginning of a line. It does not wait for
// the rest where fasthttp does not wait either, and would not say what is wrong.
func (g *guard) early(line []byte) *fault {
	switch {
	case (g.phase == fieldLine || g.phase == trailerLine) && isFold(line):
		return faultFold
	case g.phase == chunkLine && !isChunkLine(line):
		return faultChunk
	case g.phase == chunkLine && bytes.IndexByte(line[:len(line)-1], '\r') >= 0:
		return faultCR
	case g.phase == chunkEnd && string(line) != "\r":
		return faultChunkEnd
	}
	return nil
}

// next prepares g for another request.
func (g *guard) next() { *g = guard{limit: g.limit, announce: g.announce} }

// between reports whether fasthttp has only complete requests.
func (g *guard) between() bool { return g.phase == requestLine && !g.begun && len(g.partial) == 0 }

// bodyPart is called at the end of a body or chunk.
func (g *guard) bodyPart() {
	if g.phase == chunk {
		g.phase = chunkEnd
	} else {
		g.next()
	}
}

func (g *guard) request(line []byte) *fault {
	if len(line) == 0 {
		return nil // some clients send a line break after a body
	}
	g.phase = fieldLine
	method, rest, _ := bytes.Cut(line, []byte(" "))
	target, version, ok := bytes.Cut(rest, []byte(" "))
	switch {
	case !ok || !isToken(method) || len(target) == 0 || bytes.IndexByte(version, ' ') >= 0 || !bytes.HasPrefix(version, []byte("HTTP/")):
		return faultLine
	case len(version) != len("HTTP/1.1") || !bytes.HasPrefix(version, []byte("HTTP/1.")) || version[7] < '0' || version[7] > '9':
		return faultVersion
	case string(method) == "CONNECT":
		return faultConnect
	case target[0] != '/' && string(line) != "OPTIONS * "+string(version) && !hasFold(target, "http://") && !hasFold(target, "https://"):
		return faultTarget
	}
	for _, c := range target {
		if c <= ' ' || c == 0x7f {
			return faultTarget
		}
	}
	g.minor = version[7] - '0'
	return nil
}

// split returns a header's name, and the value without white space around it.
func (g *guard) split(line []byte) (name, value []byte, wrong *fault) {
	if g.fields++; g.fields > maxFields {
		return nil, nil, faultLines
	}
	if isFold(line) {
		return nil, nil, faultFold
	}
	colon := 0
	for colon < len(line) && tokenByte[line[colon]] {
		colon++
	}
	switch {
	case colon > 0 && colon < len(line) && line[colon] == ':':
		return line[:colon], trimSpace(line[colon+1:]), nil
	case colon > 0 && bytes.HasPrefix(trimSpace(line[colon:]), []byte(":")):
		return nil, nil, faultSpace
	}
	return nil, nil, faultField
}

// isFold reports whether a header line, which is not empty, continues the line
// before it.
func isFold(line []byte) bool { return line[0] == ' ' || line[0] == '\t' }

func (g *guard) field(line []byte) *fault {
	name, value, wrong := g.split(line)
	if wrong != nil {
		return wrong
	}
	// Comparing lengths first spares most names a comparison.
	switch len(name) {
	case len("Host"):
		if hasFold(name, "Host") {
			switch {
			case g.host:
				return faultHosts
			case !isHost(value):
				return faultHost
			}
			g.host = true
		}
	case len("Expect"):
		// HTTP/1.0 servers must ignore it.
		if hasFold(name, "Expect") && g.minor > 0 && !bytes.EqualFold(value, []byte("100-continue")) {
			return faultExpect
		}
	case len("Content-Type"):
		if hasFold(name, "Content-Type") {
			if g.typed {
				return faultTypes
			}
			g.typed = true
		}
	case len("Content-Length"):
		if hasFold(name, "Content-Length") {
			return g.contentLength(value)
		}
	case len("Transfer-Encoding"):
		if hasFold(name, "Transfer-Encoding") {
			return g.transferEncoding(value)
		}
	}
	return nil
}

func (g *guard) contentLength(value []byte) *fault {
	const maxDigits = 18 // in an int64
	if g.length {
		return faultLengths
	}
	g.length = true
	if len(value) == 0 || len(value) > maxDigits {
		return faultLength
	}
	for _, c := range value {
		if c < '0' || c > '9' {
			return faultLength
		}
		g.left = 10*g.left + int64(c-'0')
	}
	return nil
}

func (g *guard) transferEncoding(value []byte) *fault {
	const known = "chunked"
	switch {
	case g.minor != 1:
		return faultOldTE
	case g.chunked:
		return faultEncodings
	case bytes.EqualFold(value, []byte(known)):
		g.chunked = true
		return nil
	case len(value) > len(known) && bytes.EqualFold(value[len(value)-len(known):], []byte(known)):
		return faultUnknownTE // RFC 9112, section 6.1
	}
	return faultEncoding
}

func (g *guard) endHead() *fault {
	switch {
	case g.chunked && g.length:
		return faultBoth
	case !g.host && g.minor > 0:
		return faultNoHost
	case g.chunked:
		g.phase, g.size, g.fields = chunkLine, 0, 0 // from now on, they count the trailer
	case g.left > 0:
		g.phase = body
		return g.expect(g.left)
	default:
		g.next()
	}
	return nil
}

// expect announces a body.
func (g *guard) expect(total int64) *fault {
	if g.announce == nil {
		return nil
	}
	return g.announce(total)
}

// maxHexDigits is how many fit into an int64.
const maxHexDigits = 15

// hexDigits returns the number of hexadecimal digits at the beginning of b.
func hexDigits(b []byte) int {
	n := 0
	for n < len(b) && hexValue(b[n]) >= 0 {
		n++
	}
	return n
}

// isChunkLine reports whether b is, or begins, a line with the length of a
// chunk.
func isChunkLine(b []byte) bool {
	n := hexDigits(b)
	return 0 < n && n <= maxHexDigits && len(b) <= maxChunkLine &&
		(n == len(b) || bytes.IndexByte([]byte("; \t\r"), b[n]) >= 0)
}

func (g *guard) chunkSize(line []byte) *fault {
	if !isChunkLine(line) {
		return faultChunk
	}
	g.left = 0
	for _, c := range line[:hexDigits(line)] {
		g.left = 16*g.left + hexValue(c)
	}
	if g.left == 0 {
		g.phase = trailerLine
		return nil
	}
	g.phase = chunk
	if g.total += g.left; g.total < 0 {
		return faultChunk
	}
	return g.expect(g.total + int64(len("\r\n")))
}
