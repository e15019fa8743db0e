package front

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/valyala/fasthttp"
)

const usual = "POST /queue_reverse_text HTTP/1.1\r\nHost: localhost:8081\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n" +
	"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 11\r\n\r\ntext=abcdef"

func BenchmarkGuard(b *testing.B) {
	request := []byte(usual)
	g := guard{limit: 16 << 10}
	b.ReportAllocs()
	for b.Loop() {
		if n := g.pass(request); n != len(request) {
			b.Fatal(g.wrong)
		}
	}
}

// A guard costs no memory for requests that come in one piece, and keeps none
// of the others.
func TestGuardTakesNoMemory(t *testing.T) {
	request := []byte(strings.Repeat(usual, 3))
	g := guard{limit: 16 << 10}
	if n := testing.AllocsPerRun(100, func() { g.pass(request) }); n != 0 || g.wrong != nil {
		t.Errorf("%v allocations, %v", n, g.wrong)
	}
	for i := range request {
		g.pass(request[i : i+1])
	}
	if g.partial != nil || g.wrong != nil {
		t.Errorf("%q is kept, %v", g.partial, g.wrong)
	}
}

// passed gives data to a guard in pieces of the size, and returns what passed.
func passed(data []byte, size int) ([]byte, *fault) {
	g := guard{limit: 4096}
	var all []byte
	for piece := range slices.Chunk(data, size) {
		p := bytes.Clone(piece)
		all = append(all, p[:g.pass(p)]...)
		if g.wrong != nil {
			break
		}
	}
	return all, g.wrong
}

// A parsed request is what two programs must agree on.
type parsed struct{ method, target, host, body string }

func byFasthttp(data []byte) (all []parsed) {
	r := bufio.NewReaderSize(bytes.NewReader(data), 8192)
	for {
		var req fasthttp.Request
		if req.Header.Read(r) != nil || req.ContinueReadBody(r, 1<<20, false) != nil {
			return all
		}
		all = append(all, parsed{string(req.Header.Method()), string(req.Header.RequestURI()), string(req.Header.Host()), string(req.Body())})
	}
}

func byNetHTTP(data []byte) (all []parsed) {
	r := bufio.NewReader(bytes.NewReader(data))
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return all
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return all
		}
		all = append(all, parsed{req.Method, req.RequestURI, req.Host, string(body)})
	}
}

// FuzzGuard checks that what the guard lets pass is the same to fasthttp as to
// net/http, as far as both can read it, that a guard's verdict does not depend
// on how the bytes arrive, and that fasthttp has something to answer.
func FuzzGuard(f *testing.F) {
	for _, s := range []string{
		usual, usual + usual, "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "\r\n\nGET / HTTP/1.0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n" + usual,
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + usual,
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 3\r\n\r\nabc", "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\nab\r\n0\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: [::1]:1\r\n\r\n", "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		f.Add([]byte(s), 1)
		f.Add([]byte(s), 7)
	}
	f.Fuzz(func(t *testing.T, data []byte, size int) {
		if size < 1 {
			return
		}
		whole, wrong := passed(data, max(len(data), 1))
		pieces, wrongInPieces := passed(data, size)
		if (wrong == nil) != (wrongInPieces == nil) || wrong != nil && wrong.status != wrongInPieces.status {
			t.Fatalf("%q: %v, in pieces %v", data, wrong, wrongInPieces)
		}
		if wrong == nil && !bytes.Equal(whole, pieces) || wrong == nil && !bytes.Equal(whole, data) {
			t.Fatalf("%q: passed %q, in pieces %q", data, whole, pieces)
		}
		// An absolute URL wins over Host, which net/http applies and fasthttp
		// later.
		if bytes.Contains(data, []byte("://")) {
			return
		}
		a, b, c := byFasthttp(whole), byNetHTTP(whole), byFasthttp(pieces)
		for i := range min(len(a), len(b)) {
			if a[i] != b[i] {
				t.Errorf("%q: request %d is %+v to fasthttp, %+v to net/http", whole, i, a[i], b[i])
			}
		}
		if len(a) != len(c) {
			t.Errorf("%q: %d requests, in pieces of %d %d", whole, len(a), size, len(c))
		}
		if wrong != nil && len(whole) == 0 {
			t.Errorf("%q: %v, but fasthttp has nothing to answer", data, wrong)
		}
	})
}
