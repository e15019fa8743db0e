package front_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/revq/revq/internal/api"
	"github.com/revq/revq/internal/front"
)

const (
	// to any path that both fronts have
	get  = "GET /healthz HTTP/1.1\r\nHost: a\r\n"
	post = "POST /healthz HTTP/1.1\r\nHost: a\r\n"

	queue     = "POST /queue_reverse_text HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\n"
	listen    = "GET /listen_results HTTP/1.1\r\nHost: a\r\n"
	handshake = listen + "Connection: Upgrade\r\nUpgrade: websocket\r\n" + version13 + nonce
	version13 = "Sec-WebSocket-Version: 13\r\n"
	nonce     = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)

// headers has as many bytes of headers as make a request of get of size bytes.
func headers(size int) string {
	return get + "Cookie: " + strings.Repeat("x", size-len(get)-len("Cookie: \r\n\r\n")) + "\r\n\r\n"
}

// wireCases are requests as bytes, and the answers that both fronts give. A name
// begins with the section of RFC 9112 that the case is about, or with the number
// of another RFC and its section. The cases of the public suites h1spec and
// HTTP Garden are among them. Both send beginnings of requests, too, to which
// nothing may be answered: here each request is also sent byte by byte.
var wireCases = []struct {
	name   string
	only   string // the front that has the path; "" for both
	raw    string
	status int
	detail string // of a problem
	ends   bool   // the connection ends after the answer
}{
	{"3: plain", "", get + "\r\n", 200, "", false},
	{"2.3: HTTP/1.0", "", "GET /healthz HTTP/1.0\r\n\r\n", 200, "", true},
	{"2.3: a later HTTP/1", "", "GET /healthz HTTP/1.2\r\nHost: a\r\n\r\n", 200, "", true},
	{"2.2: empty lines before", "", "\r\n\r\n" + get + "\r\n", 200, "", false},
	{"3.2.2: a URL", "", "GET http://a/healthz HTTP/1.1\r\nHost: a\r\n\r\n", 200, "", false},
	{"3.2: port, brackets in Host", "", "GET /healthz HTTP/1.1\r\nHost: [::1]:8083\r\n\r\n", 200, "", false},

	{"2.2: LF before", "", "\n" + get + "\r\n", 400, "not with LF alone", true},
	{"2.2: LF after the request line", "", "GET /healthz HTTP/1.1\nHost: a\r\n\r\n", 400, "not with LF alone", true},
	{"2.2: LF only", "", "GET /healthz HTTP/1.1\nHost: a\n\n", 400, "not with LF alone", true},
	{"2.2: LF at the end", "", get + "\n", 400, "not with LF alone", true},
	{"2.2: CR in a value", "", get + "X: a\rb\r\n\r\n", 400, "CR within", true},
	{"2.2: CR alone", "", "GET /healthz HTTP/1.1\rHost: a\r\r\n\r\n", 400, "CR within", true},
	{"9110-5.5: NUL in a value", "", get + "X: a\x00b\r\n\r\n", 400, "values of its headers", true},
	{"3: not HTTP", "", "hello\r\n\r\n", 400, "request line must be", true},
	{"3: a frame", "", "\x81\x85abcdefghi", 400, "not HTTP", true},
	{"3: no target", "", "GET  HTTP/1.1\r\nHost: a\r\n\r\n", 400, "request line must be", true},
	{"3: two spaces", "", "GET  /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400, "request line must be", true},
	{"3: more in the line", "", "GET /healthz HTTP/1.1 x\r\nHost: a\r\n\r\n", 400, "request line must be", true},
	{"3: HTTP/0.9", "", "GET /healthz\r\n", 400, "request line must be", true},
	{"3.2: a target without slash", "", "GET healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400, "begins with /", true},
	{"3.2.4: * for GET", "", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400, "begins with /", true},
	{"3.2: a tab in the target", "", "GET /heal\tthz HTTP/1.1\r\nHost: a\r\n\r\n", 400, "begins with /", true},
	{"2.3: version 9.9", "", "GET /healthz HTTP/9.9\r\nHost: a\r\n\r\n", 505, "HTTP/1.1", true},
	{"2.3: version 2.0", "", "GET /healthz HTTP/2.0\r\nHost: a\r\n\r\n", 505, "HTTP/1.1", true},
	{"2.3: version 2", "", "GET /healthz HTTP/2\r\nHost: a\r\n\r\n", 505, "HTTP/1.1", true},
	{"2.3: preface of HTTP/2", "", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP/1.1", true},
	{"2.3: lower-case protocol", "", "GET /healthz http/1.1\r\nHost: a\r\n\r\n", 400, "request line must be", true},

	{"3.1: unknown method", "", "BREW /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 501, "no such method", false},
	{"3.1: method in lower case", "", "get /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 501, "no such method", false},
	{"3.1: unknown method elsewhere", "", "BREW /x HTTP/1.1\r\nHost: a\r\n\r\n", 501, "no such method", false},
	{"3.2.3: CONNECT", "", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 501, "proxies", true},
	{"9110-9.1: method that is not allowed", "", "DELETE /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 405, "use GET or HEAD or OPTIONS", false},
	{"9110-9.3.7: OPTIONS", "", "OPTIONS /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 204, "", false},
	{"9110-9.3.7: OPTIONS *", "", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 204, "", false},

	{"3.2: no Host", "", "GET /healthz HTTP/1.1\r\n\r\n", 400, "Host header is missing", true},
	{"3.2: empty Host", "", "GET /healthz HTTP/1.1\r\nHost:\r\n\r\n", 400, "Host header must be", true},
	{"3.2: two Hosts", "", get + "Host: a\r\n\r\n", 400, "more than one Host", true},
	{"3.2: Host with a path", "", "GET /healthz HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "Host header must be", true},
	{"3.2: Host with a user", "", "GET /healthz HTTP/1.1\r\nHost: b@a\r\n\r\n", 400, "Host header must be", true},
	{"3.2: Host with a bad port", "", "GET /healthz HTTP/1.1\r\nHost: a:b\r\n\r\n", 400, "Host header must be", true},
	{"3.2: two values in Host", "", "GET /healthz HTTP/1.1\r\nHost: a, b\r\n\r\n", 400, "Host header must be", true},
	{"3.2: Host of a nginx without one", "", "GET /healthz HTTP/1.1\r\nHost: up_stream:80\r\n\r\n", 200, "", false},

	{"5.2: fold", "", get + "X: a\r\n b\r\n\r\n", 400, "continued lines", true},
	{"5.2: fold with a tab", "", get + "X: a\r\n\tb\r\n\r\n", 400, "continued lines", true},
	{"2.2: fold of the request line", "", "GET /healthz HTTP/1.1\r\n Host: a\r\n\r\n", 400, "continued lines", true},
	{"2.2: the beginning of a fold of the request line", "", "GET /healthz HTTP/1.1\r\n H", 400, "continued lines", true},
	{"5.2: the beginning of a fold", "", get + "X: a\r\n\t", 400, "continued lines", true},
	{"7.1.2: the beginning of a fold in the trailer", "", post + "Transfer-Encoding: chunked\r\n\r\n0\r\n X", 400, "continued lines", true},
	{"5.1: space before the colon", "", get + "X : a\r\n\r\n", 400, "name and its colon", true},
	{"5: no colon", "", get + "X\r\n\r\n", 400, "header line must be", true},
	{"5: no name", "", get + ": a\r\n\r\n", 400, "header line must be", true},
	{"5: space in a name", "", get + "X Y: a\r\n\r\n", 400, "header line must be", true},
	{"9110-5.3: two types", "", get + "Content-Type: a/b\r\nContent-type: text/plain\r\n\r\n", 400, "more than one Content-Type", true},
	{"9110-5.4: too many headers", "", get + strings.Repeat("a:\r\n", 256) + "\r\n", 431, "256 header lines", true},
	{"9110-5.4: longest headers", "", headers(16 << 10), 200, "", false},
	{"9110-5.4: headers too long", "", headers(16<<10 + 1), 431, "16384 bytes", true},
	{"9110-5.4: much longer headers", "", headers(300 << 10), 431, "16384 bytes", true},
	{"3: long target", "", "GET /" + strings.Repeat("x", 20<<10) + " HTTP/1.1\r\nHost: a\r\n\r\n", 431, "16384 bytes", true},

	{"6.3: Content-Length twice", "", post + "Content-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400, "more than one Content-Length", true},
	{"6.3: two values in Content-Length", "", post + "Content-Length: 1, 1\r\n\r\nx", 400, "must be a number", true},
	{"6.3: signed Content-Length", "", post + "Content-Length: +1\r\n\r\nx", 400, "must be a number", true},
	{"6.3: huge Content-Length", "", post + "Content-Length: 9999999999999999999\r\n\r\n", 400, "must be a number", true},
	{"6.1: Content-Length and chunked", "", post + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "both", true},
	{"6.1: chunked and Content-Length", "", post + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400, "both", true},
	{"6.1: identity and Content-Length", "", post + "Transfer-Encoding: identity\r\nContent-Length: 1\r\n\r\nx", 400, "is chunked", true},
	{"6.1: identity", "", post + "Transfer-Encoding: identity\r\n\r\n", 400, "is chunked", true},
	{"6.1: chunked, identity", "", post + "Transfer-Encoding: chunked, identity\r\n\r\n", 400, "is chunked", true},
	{"6.1: gzip, chunked", "", post + "Transfer-Encoding: gzip, chunked\r\n\r\n", 501, "without others", true},
	{"6.1: xchunked", "", post + "Transfer-Encoding: xchunked\r\n\r\n", 501, "without others", true},
	{"6.1: chunked twice", "", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "more than one Transfer-Encoding", true},
	{"6.1: chunked in HTTP/1.0", "", "POST /healthz HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "HTTP/1.0 has no", true},
	{"7.1: no length of a chunk", "", post + "Transfer-Encoding: chunked\r\n\r\n\r\n", 400, "chunk of the body must begin", true},
	{"7.1: bad length of a chunk", "", post + "Transfer-Encoding: chunked\r\n\r\n0x1\r\n", 400, "chunk of the body must begin", true},
	{"7.1: endless length of a chunk", "", post + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("0", 300), 400, "chunk of the body must begin", true},
	{"7.1: length of a chunk with LF", "", queue + "Transfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n", 400, "not with LF alone", true},
	{"7.1: chunk too long", "", post + "Transfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n", 400, "not as long as it says", true},

	{"9110-10.1.1: other expectation", "", post + "Expect: 200-ok\r\nContent-Length: 1\r\n\r\n", 417, "100-continue", true},
	{"9110-10.1.1: expectation in HTTP/1.0", "api", "POST /queue_reverse_text HTTP/1.0\r\nExpect: x\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n\r\nx", 202, "", true},
	{"9110-10.1.1: 100 Continue", "api", queue + "Expect: 100-Continue\r\nContent-Length: 1\r\n\r\nx", 100, "", false},
	// They are not asked for a body that nobody will read.
	{"9110-10.1.1: 100 Continue, wrong path", "", "POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", 404, "", true},
	{"9110-10.1.1: 100 Continue, wrong method", "", post + "Expect: 100-continue\r\nContent-Length: 1\r\n\r\n", 405, "", true},
	{"9110-10.1.1: 100 Continue, wrong type", "api", "POST /queue_reverse_text HTTP/1.1\r\nHost: a\r\nContent-Type: a/b\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", 415, "", true},
	{"9110-10.1.1: 100 Continue, too long", "api", queue + "Expect: 100-continue\r\nContent-Length: 1000000\r\n\r\n", 413, "", true},
	{"9110-10.1.1: 100 Continue, another page", "api", queue + "Origin: https://evil.example\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", 403, "", true},

	{"9110-15.5.14: body too long", "socket", listen + "Content-Length: 2000\r\n\r\n" + strings.Repeat("x", 2000), 413, "no body", true},
	{"9110-15.5.14: body much too long", "socket", listen + "Content-Length: 900000\r\n\r\n" + strings.Repeat("x", 900000), 413, "no body", true},
	{"9110-15.5.14: chunked body too long", "socket", listen + "Transfer-Encoding: chunked\r\n\r\nff\r\n" + strings.Repeat("x", 255) + "\r\n0\r\n\r\n", 413, "no body", true},
	{"6.2: text", "api", queue + "Content-Length: 3\r\n\r\nabc", 202, "", false},
	{"7.1: text in chunks", "api", queue + "Transfer-Encoding: Chunked\r\n\r\n1;a=b\r\na\r\n2 \r\nbc\r\n0\r\nX: y\r\n\r\n", 202, "", false},
	{"9110-5.3: two keys", "api", queue + "Idempotency-Key: a\r\nidempotency-key: b\r\nContent-Length: 1\r\n\r\nx", 400, "that differ", false},
	{"9110-5.3: the same key twice", "api", queue + "Idempotency-Key: a\r\nidempotency-key: a\r\nContent-Length: 1\r\n\r\nx", 202, "", false},

	{"9110-4.2.3: two slashes", "api", "POST //queue_reverse_text HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n\r\nx", 404, "", false},
	{"9110-4.2.3: dots", "api", "POST /x/../queue_reverse_text HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n\r\nx", 404, "", false},
	{"9110-4.2.3: a dot", "", "GET /./healthz HTTP/1.1\r\nHost: a\r\n\r\n", 404, "", false},
	{"9110-4.2.3: an encoded slash", "api", "POST /%2fqueue_reverse_text HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n\r\nx", 404, "", false},
	{"9110-4.2.3: an encoded character", "api", "POST /queue%5freverse_text HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n\r\nx", 404, "", false},
	{"9110-4.2.3: encoded, to listen", "socket", strings.Replace(handshake, "_", "%5f", 1) + "\r\n", 404, "", false},
	{"9110-4.2.3: slashes, to listen", "socket", strings.Replace(handshake, "/", "//", 1) + "\r\n", 404, "", false},
	{"9110-4.2.3: a fragment", "", "GET /healthz#x HTTP/1.1\r\nHost: a\r\n\r\n", 404, "", false},
	{"9110-4.2.3: a query", "", "GET /healthz?x=//../ HTTP/1.1\r\nHost: a\r\n\r\n", 200, "", false},
	{"3.2.2: a URL with slashes", "", "GET http://a//healthz HTTP/1.1\r\nHost: a\r\n\r\n", 404, "", false},
	{"3.2.2: a URL without a path", "", "GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", 404, "", false},

	{"6455-4.2.1: handshake", "socket", handshake + "\r\n", 101, "", false},
	{"6455-4.2.1: handshake, two lines of Connection", "socket", listen + "Connection: keep-alive\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n" + version13 + nonce + "\r\n", 101, "", false},
	{"6455-4.2.1: handshake, a list", "socket", listen + "Connection: keep-alive, Upgrade\r\nUpgrade: h2c, websocket\r\n" + version13 + nonce + "\r\n", 101, "", false},
	{"6455-4.2.1: handshake in HTTP/1.0", "socket", strings.Replace(handshake, "HTTP/1.1", "HTTP/1.0", 1) + "\r\n", 426, "proxy_http_version 1.1", true},
	{"6455-4.2.1: handshake through nginx as it is", "socket", "GET /listen_results HTTP/1.0\r\nHost: up\r\nConnection: close\r\n" + version13 + nonce + "\r\n", 426, "proxy_http_version 1.1", true},
	{"6455-4.2.1: handshake through nginx with 1.1", "socket", listen + "Connection: close\r\n" + version13 + nonce + "\r\n", 426, "proxy_set_header Upgrade", true},
	{"6455-4.2.1: handshake to be closed", "socket", listen + "Connection: Upgrade, close\r\nUpgrade: websocket\r\n" + version13 + nonce + "\r\n", 426, "Connection: close", true},
	{"6455-4.2.1: handshake to be closed, two lines", "socket", listen + "Connection: close\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + version13 + nonce + "\r\n", 426, "Connection: close", true},
	{"6455-4.2.1: handshake without Connection", "socket", listen + "Upgrade: websocket\r\n" + version13 + nonce + "\r\n", 426, "proxy_set_header Connection", false},
	{"6455-4.2.1: no handshake", "socket", listen + "\r\n", 426, "ws://", false},
	{"6455-4.2.1: version 8", "socket", strings.Replace(handshake, ": 13", ": 8", 1) + "\r\n", 426, "Sec-WebSocket-Version: 13", false},
	{"6455-4.2.1: no version", "socket", strings.Replace(handshake, version13, "", 1) + "\r\n", 426, "Sec-WebSocket-Version: 13", false},
	{"6455-4.2.1: no key", "socket", strings.Replace(handshake, nonce, "", 1) + "\r\n", 400, "16 bytes in base64", false},
	{"6455-4.2.1: a short key", "socket", strings.Replace(handshake, nonce, "Sec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\n", 1) + "\r\n", 400, "16 bytes in base64", false},
	{"6455-4.2.1: a long key", "socket", strings.Replace(handshake, nonce, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZXh4\r\n", 1) + "\r\n", 400, "16 bytes in base64", false},
	{"6455-4.2.1: a key that is no base64", "socket", strings.Replace(handshake, nonce, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j!Q==\r\n", 1) + "\r\n", 400, "16 bytes in base64", false},
	{"6.1: events in HTTP/1.0", "socket", "GET /listen_results HTTP/1.0\r\nAccept: text/event-stream\r\n\r\n", 505, "HTTP/1.1", true},

	// Faults that public suites have found in servers.
	{"2.2: white space before the request line", "", " GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400, "not HTTP", true},
	{"2.2: a line break and white space before the request line", "", "\r\n GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400, "not HTTP", true},
	{"2.2: CR before a header", "", get + "\rX: a\r\n\r\n", 400, "CR within", true},
	{"2.2: CR before the empty line", "", get + "\r\r\n", 400, "CR within", true},
	{"2.3: a space after the version", "", "GET /healthz HTTP/1.1 \r\nHost: a\r\n\r\n", 400, "request line must be", true},
	{"2.3: a tab before the version", "", "GET /healthz\tHTTP/1.1\r\nHost: a\r\n\r\n", 400, "request line must be", true},
	{"2.3: two digits before the dot", "", "GET /healthz HTTP/01.1\r\nHost: a\r\n\r\n", 505, "HTTP/1.1", true},
	{"2.3: two digits after the dot", "", "GET /healthz HTTP/1.10\r\nHost: a\r\n\r\n", 505, "HTTP/1.1", true},
	{"2.3: no minor version", "", "GET /healthz HTTP/1\r\nHost: a\r\n\r\n", 505, "HTTP/1.1", true},
	{"3: no version, and a space", "", "GET / \r\n\r\n", 400, "request line must be", true},
	{"3: words before the request line", "", "Extra lineGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400, "request line must be", true},
	{"3.1: a method with a character that no token has", "", "G{T /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400, "request line must be", true},
	{"3.2: NUL in the target", "", "GET /healthz\x00 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "begins with /", true},
	{"3.2: DEL in the target", "", "GET /healthz\x7f HTTP/1.1\r\nHost: a\r\n\r\n", 400, "begins with /", true},
	{"3.2.2: a URL of another host wins over Host", "", "GET http://b/healthz HTTP/1.1\r\nHost: a\r\n\r\n", 200, "", false},
	{"3.2.2: a URL without Host", "", "GET http://a/healthz HTTP/1.1\r\n\r\n", 400, "Host header is missing", true},
	{"5: an empty value", "", get + "X-Empty: \r\nempty:\r\n\r\n", 200, "", false},
	{"5: a name in mixed case, a tab before the value", "", "GET /healthz HTTP/1.1\r\nhoSt:\ta\r\n\r\n", 200, "", false},
	{"5: brackets in a name", "", get + "X-Invalid[]: a\r\n\r\n", 400, "header line must be", true},
	{"5: NUL in a name", "", get + "X\x00Y: a\r\n\r\n", 400, "header line must be", true},
	{"5: not ASCII in a name", "", get + "X\xe9: a\r\n\r\n", 400, "header line must be", true},
	{"9110-5.5: BEL in a value", "", get + "X: a\x07\r\n\r\n", 400, "values of its headers", true},
	{"9110-5.5: DEL in a value", "", get + "X: a\x7f\r\n\r\n", 400, "values of its headers", true},
	{"9110-5.5: not ASCII in a value", "", get + "X: \xe9\r\n\r\n", 200, "", false},
	{"6.1: Transfer-Encoding with a comma", "", post + "Transfer-Encoding: chunked,\r\n\r\n0\r\n\r\n", 400, "is chunked", true},
	{"6.1: a comma before chunked", "", post + "Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n", 501, "without others", true},
	{"6.1: an empty Transfer-Encoding", "", post + "Transfer-Encoding:\r\n\r\n", 400, "is chunked", true},
	{"6.1: a vertical tab before chunked", "", post + "Transfer-Encoding:\vchunked\r\n\r\n0\r\n\r\n", 501, "without others", true},
	{"6.1: a quoted Transfer-Encoding", "", post + "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", 400, "is chunked", true},
	{"6.1: chunked with a parameter", "", post + "Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n", 400, "is chunked", true},
	{"6.1: an underscore in the name", "api", queue + "Transfer_Encoding: chunked\r\nContent-Length: 1\r\n\r\nx", 202, "", false},
	{"6.1: both, in mixed case", "", post + "content-LengtH: 5\r\nTransFer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "both", true},
	{"6.3: a negative Content-Length", "", post + "Content-Length: -1234\r\n\r\n", 400, "must be a number", true},
	{"6.3: a huge negative Content-Length", "", post + "Content-Length: -123456789123456789123456789\r\n\r\n", 400, "must be a number", true},
	{"6.3: letters in Content-Length", "", post + "Content-Length: abc\r\n\r\n", 400, "must be a number", true},
	{"6.3: an empty Content-Length", "", post + "Content-Length: \r\n\r\n", 400, "must be a number", true},
	{"6.3: hexadecimal Content-Length", "", post + "Content-Length: 0x1\r\n\r\nx", 400, "must be a number", true},
	{"6.3: an underscore in Content-Length", "", post + "Content-Length: 1_0\r\n\r\n0123456789", 400, "must be a number", true},
	{"6.3: a space in Content-Length", "", post + "Content-Length: 1 0\r\n\r\n0123456789", 400, "must be a number", true},
	{"6.3: zeros before Content-Length", "api", queue + "Content-Length: 0001\r\n\r\nx", 202, "", false},
	{"6.3: no length, so no body", "api", queue + "\r\n", 400, "", false},
	{"6.3: a body for GET", "api", "GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 200, "", false},
	{"7.1: white space before the length of a chunk", "", post + "Transfer-Encoding: chunked\r\n\r\n 1\r\nx\r\n0\r\n\r\n", 400, "chunk of the body must begin", true},
	{"7.1: a sign before the length of a chunk", "", post + "Transfer-Encoding: chunked\r\n\r\n+1\r\nx\r\n0\r\n\r\n", 400, "chunk of the body must begin", true},
	{"7.1: a negative length of a chunk", "", post + "Transfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n", 400, "chunk of the body must begin", true},
	{"7.1: an underscore in the length of a chunk", "", post + "Transfer-Encoding: chunked\r\n\r\n0_1\r\nx\r\n0\r\n\r\n", 400, "chunk of the body must begin", true},
	{"7.1: a chunk of more than 64 bits", "", post + "Transfer-Encoding: chunked\r\n\r\n10000000000000001\r\nx\r\n0\r\n\r\n", 400, "chunk of the body must begin", true},
	{"7.1: zeros before the length of a chunk", "api", queue + "Transfer-Encoding: chunked\r\n\r\n0001\r\nx\r\n0\r\n\r\n", 202, "", false},
	{"7.1: no CR after a chunk", "", queue + "Transfer-Encoding: chunked\r\n\r\n1\r\nx\n0\r\n\r\n", 400, "not as long as it says", true},
	{"7.1: nothing after a chunk", "", queue + "Transfer-Encoding: chunked\r\n\r\n1\r\nx0\r\n\r\n", 400, "not as long as it says", true},
	{"7.1.1: LF in an extension of a chunk", "", queue + "Transfer-Encoding: chunked\r\n\r\n1;a\nx\r\n0\r\n\r\n", 400, "not with LF alone", true},
	{"7.1.1: CR in an extension of a chunk", "", queue + "Transfer-Encoding: chunked\r\n\r\n1;a\rb\r\nx\r\n0\r\n\r\n", 400, "CR within", true},
	{"7.1.1: an endless extension of a chunk", "", queue + "Transfer-Encoding: chunked\r\n\r\n1;" + strings.Repeat("a", 300), 400, "chunk of the body must begin", true},
	{"7.1.1: a quoted extension of a chunk", "api", queue + "Transfer-Encoding: chunked\r\n\r\n1;a=\"b;c\"\r\nx\r\n0\r\n\r\n", 202, "", false},
	{"7.1.2: a length in the trailer", "api", queue + "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nContent-Length: 9\r\n\r\n", 400, "names in its trailer", true},
	{"7.1.2: a fold in the trailer", "", queue + "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: a\r\n b\r\n\r\n", 400, "continued lines", true},
	{"7.1.2: LF in the trailer", "", queue + "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: a\n\r\n", 400, "not with LF alone", true},
	{"7.1.2: white space in the trailer", "", queue + "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX : a\r\n\r\n", 400, "name and its colon", true},
	{"9110-10.1.1: 100 Continue without a body", "", get + "Expect: 100-continue\r\n\r\n", 100, "", false},
	{"9110-7.8: an upgrade to HTTP/2, which is ignored", "", get + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", 200, "", false},
	{"9110-9.3.8: TRACE, which would show a proxy's headers", "", "TRACE /healthz HTTP/1.1\r\nHost: a\r\nCookie: secret\r\n\r\n", 405, "", false},
	{"9.6: a request after close", "", get + "Connection: close\r\n\r\n" + get + "\r\n", 200, "", true},
	{"9.3: close in HTTP/1.1", "", get + "Connection: close\r\n\r\n", 200, "", true},
	{"9.3: close in a list, in capitals", "", get + "Connection: x, CLOSE\r\n\r\n", 200, "", true},
	{"9.3: keep-alive in HTTP/1.0", "", "GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 200, "", false},
}

// Both fronts answer the same to the same bytes, in plain and in TLS, whether
// they come at once or one by one, and the answer arrives before the end.
func TestWire(t *testing.T) {
	t.Parallel()
	for _, s := range sites(t) {
		t.Run(s.String(), func(t *testing.T) {
			for _, tc := range wireCases {
				if tc.only != "" && tc.only != s.front {
					continue
				}
				for _, split := range []bool{false, true} {
					if split && len(tc.raw) > 1000 {
						continue
					}
					t.Run(fmt.Sprintf("%s, split %t", tc.name, split), func(t *testing.T) {
						c := s.dial(t)
						send(t, c, tc.raw, split)
						r := bufio.NewReader(c)
						got := read(t, r)
						got.check(t, tc.status, tc.detail)
						if tc.status == http.StatusContinue {
							if last := read(t, r); last.StatusCode/100 != 2 {
								t.Errorf("status %d after it", last.StatusCode)
							}
						}
						if got.Close != tc.ends {
							t.Errorf("to be closed: %t, want %t", got.Close, tc.ends)
						}
						if tc.ends {
							rest, err := io.ReadAll(r)
							if errors.Is(err, syscall.ECONNRESET) {
								err = nil // the client has sent on after the end
							}
							if err != nil || len(rest) > 0 {
								t.Errorf("after the answer: %q, %v; want the end", rest, err)
							}
						}
					})
				}
			}
		})
	}
}

func TestWireHeaders(t *testing.T) {
	t.Parallel()
	for _, s := range sites(t) {
		for _, tc := range []struct{ only, raw, name, want string }{
			{"", "OPTIONS /healthz HTTP/1.1\r\nHost: a\r\n\r\n", "Allow", "GET, HEAD, OPTIONS"},
			{"", post + "\r\n", "Allow", "GET, HEAD, OPTIONS"},
			{"socket", "OPTIONS /listen_results HTTP/1.1\r\nHost: a\r\n\r\n", "Allow", "GET, OPTIONS"},
			{"socket", "HEAD /listen_results HTTP/1.0\r\nHost: a\r\n\r\n", "Allow", "GET, OPTIONS"},
			{"api", "OPTIONS /queue_reverse_text HTTP/1.1\r\nHost: a\r\n\r\n", "Allow", "OPTIONS, POST"},
			{"socket", strings.Replace(handshake, ": 13", ": 8", 1) + "\r\n", "Sec-WebSocket-Version", "13"},
			{"socket", handshake + "\r\n", "Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="},
			{"socket", listen + "\r\n", "Upgrade", "websocket"},
			{"", get + "\r\n", "Cache-Control", "no-store"},
			{"", "GET / HTTP/3.0\r\n", "Cache-Control", "no-store"},
		} {
			if tc.only != "" && tc.only != s.front {
				continue
			}
			c := s.dial(t)
			send(t, c, tc.raw, false)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatalf("%s: %q: %v", s, tc.raw, err)
			}
			if got := resp.Header.Values(tc.name); len(got) != 1 || got[0] != tc.want {
				t.Errorf("%s: %q: %s is %q, want %q", s, tc.raw, tc.name, got, tc.want)
			}
		}
	}
}

// A client that speaks TLS to a site without TLS gets an answer in plain text
// that says so.
func TestTLSToAPlainSite(t *testing.T) {
	t.Parallel()
	for _, s := range sites(t) {
		if s.secure != nil {
			continue
		}
		c := s.dial(t)
		var hello bytes.Buffer
		_ = tls.Client(&recorder{Conn: c, sent: &hello}, &tls.Config{ServerName: "a"}).Handshake()
		send(t, c, hello.String(), false)
		read(t, bufio.NewReader(c)).check(t, 400, "use http:// or ws://")
	}
}

// recorder keeps what is written, and has nothing to read.
type recorder struct {
	net.Conn
	sent *bytes.Buffer
}

func (r *recorder) Write(b []byte) (int, error) { return r.sent.Write(b) }
func (r *recorder) Read([]byte) (int, error)    { return 0, io.EOF }

// Requests that come together are answered in their order, whatever is between
// them, and what follows a wrong one is not read.
func TestPipelined(t *testing.T) {
	t.Parallel()
	for _, s := range sites(t) {
		if s.front != "api" {
			continue
		}
		for _, split := range []bool{false, true} {
			c := s.dial(t)
			send(t, c, queue+"Content-Length: 11\r\n\r\nGET / HTTP/\r\n"+ // what looks like a request is a body
				queue+"Transfer-Encoding: chunked\r\n\r\n3\r\na\r\n\r\n4\r\nb\r\n\r\r\n0\r\nIdempotency-Key: trailer\r\n\r\n"+
				get+"\r\n"+
				queue+"Content-Length: 0\r\nTransfer-Encoding : chunked\r\n\r\n"+
				queue+"Content-Length: 8\r\n\r\nsmuggled", split)
			r := bufio.NewReader(c)
			read(t, r).check(t, 202, "")
			second := read(t, r)
			second.check(t, 202, "")
			if id := second.Header.Get("Revq-Task-Id"); id == "trailer" {
				t.Error("a key in the trailer became the task's id")
			}
			read(t, r).check(t, 200, "")
			last := read(t, r)
			last.check(t, 400, "name and its colon")
			if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
				t.Errorf("%s: after it: %q, %v", s, rest, err)
			}
			if got := s.broker.texts(); fmt.Sprintf("%q", got) != `["GET / HTTP/" "a\r\nb\r\n\r"]` {
				t.Errorf("%s: texts %q", s, got)
			}
		}
	}
}

// The limit of headers is a setting.
func TestMaxHeader(t *testing.T) {
	t.Parallel()
	cfg := front.DefaultConfig()
	cfg.MaxHeader = 2000
	apiConfig := api.DefaultConfig()
	apiConfig.Config = cfg
	s := api.New(apiConfig, &broker{}, slog.New(slog.DiscardHandler))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	at := site{front: "api", addr: ln.Addr().String()}
	for _, tc := range []struct {
		size, status int
		detail       string
	}{{2000, 200, ""}, {2001, 431, "2000 bytes together (--max-header)"}} {
		c := at.dial(t)
		send(t, c, headers(tc.size), false)
		read(t, bufio.NewReader(c)).check(t, tc.status, tc.detail)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}
