package api

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const get = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"

func TestChunkedBody(t *testing.T) {
	t.Parallel()
	b := &broker{}
	w := setup(t, b).dial(t)
	w.send(t, "POST /queue_reverse_text HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\n"+
		"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n")
	if r := w.reply(t); r.StatusCode != 202 || b.only(t).Text != "abcdef" {
		t.Errorf("%d, published %v", r.StatusCode, b.tasks)
	}
}

func TestChunkedBodyTooBig(t *testing.T) {
	t.Parallel()
	w := setup(t, &broker{}).dial(t)
	w.send(t, "POST /queue_reverse_text HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\n"+
		"Transfer-Encoding: chunked\r\n\r\nfffff\r\n"+strings.Repeat("x", 0xfffff)+"\r\n0\r\n\r\n")
	w.reply(t).check(t, 413, "a text may have")
	w.closed(t)
}

func TestExpectContinue(t *testing.T) {
	t.Parallel()
	b := &broker{}
	w := setup(t, b).dial(t)
	head := "POST /queue_reverse_text HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nExpect: 100-continue\r\nContent-Length: "
	w.send(t, head+"3\r\n\r\n")
	if line, err := w.r.ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 100 ") {
		t.Fatalf("%q, %v", line, err)
	}
	if _, err := w.r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	w.send(t, "abc")
	if r := w.reply(t); r.StatusCode != 202 || b.only(t).Text != "abc" {
		t.Errorf("%d, published %v", r.StatusCode, b.tasks)
	}
}

func TestKeepAliveAfterAnError(t *testing.T) {
	t.Parallel()
	w := setup(t, &broker{}).dial(t)
	for _, tc := range []struct {
		raw    string
		status int
	}{
		{post(typeJSON, "{"), 400},
		{post("a/b", "abc"), 415},
		{post(typePlain, strings.Repeat("x", 64<<10+1)), 413},
		{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 404},
		{post(typePlain, "abc"), 202},
	} {
		w.send(t, tc.raw)
		if r := w.reply(t); r.StatusCode != tc.status || r.Close {
			t.Errorf("status %d, close %t; want %d on a connection that stays", r.StatusCode, r.Close, tc.status)
		}
	}
}

func TestPipelinedRequests(t *testing.T) {
	t.Parallel()
	b := &broker{}
	w := setup(t, b).dial(t)
	var raw strings.Builder
	for i := range 20 {
		raw.WriteString(post(typeForm, fmt.Sprintf("text=%d", i)))
	}
	w.send(t, raw.String()+get)
	for range 20 {
		if r := w.reply(t); r.StatusCode != 202 {
			t.Fatalf("status %d", r.StatusCode)
		}
	}
	if r := w.reply(t); r.body != "ok" {
		t.Errorf("last answer %q", r.body)
	}
	for i, tk := range b.tasks { // texts are copies: later requests did not overwrite them
		if tk.Text != fmt.Sprint(i) {
			t.Errorf("task %d is %q", i, tk.Text)
		}
	}
}

func TestUnreadableRequests(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, raw string
		status    int
		detail    string
	}{
		{"not HTTP", "hello\r\n\r\n", 400, "request line"},
		{"no Host", "GET /healthz HTTP/1.1\r\n\r\n", 400, "Host header is missing"},
		{"bad length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400, "must be a number"},
		{"bad chunk", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "chunk of the body"},
		{"long headers", "GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 16<<10) + "\r\n\r\n", 431, "16384 bytes"},
		{"long path", "GET /" + strings.Repeat("x", 16<<10) + " HTTP/1.1\r\nHost: a\r\n\r\n", 431, "16384 bytes"},
		// Bodies too big to be read are refused for what is wrong with them first.
		{"big body, wrong path", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\n\r\n", 404, "nothing here"},
		{"big body, wrong method", "PUT /queue_reverse_text HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\n\r\n", 405, "use"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := setup(t, &broker{}).dial(t)
			w.send(t, tc.raw)
			r := w.reply(t)
			r.check(t, tc.status, tc.detail)
			if !r.Close {
				t.Error("the connection is to be kept")
			}
			w.closed(t)
		})
	}
}

// A client that sends its whole body before it reads still gets the answer:
// closing at once would reset the connection under it.
func TestRefusalReachesASenderOfMuch(t *testing.T) {
	t.Parallel()
	w := setup(t, &broker{}).dial(t)
	w.send(t, post(typePlain, strings.Repeat("x", 8<<20)))
	w.reply(t).check(t, 413, "a text may have")
	w.closed(t)
}

func TestSlowRequestsEnd(t *testing.T) {
	t.Parallel()
	for name, raw := range map[string]string{
		"in the headers": "POST /queue_reverse_text HT",
		"in the body":    strings.TrimSuffix(post(typePlain, "abcdef"), "def"),
		"after another":  get + "POST /queue",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := setup(t, &broker{}, func(c *Config) { c.ReadTimeout = 200 * time.Millisecond }).dial(t)
			w.send(t, raw)
			if strings.HasPrefix(raw, get) {
				w.reply(t)
			}
			w.reply(t).check(t, 408, "within 200ms")
			w.closed(t)
		})
	}
}

func TestIdleConnectionsEnd(t *testing.T) {
	t.Parallel()
	w := setup(t, &broker{}, func(c *Config) { c.IdleTimeout = 50 * time.Millisecond }).dial(t)
	w.send(t, get)
	if r := w.reply(t); r.Close {
		t.Error("the connection is closed at once")
	}
	w.closed(t)
}

func TestTooManyConnections(t *testing.T) {
	t.Parallel()
	s := setup(t, &broker{}, func(c *Config) { c.MaxConnections = 1 })
	first := s.dial(t)
	first.send(t, get)
	first.reply(t) // so it has its place
	second := s.dial(t)
	second.send(t, get)
	r := second.reply(t)
	r.check(t, 503, "there are 1 connections already")
	if r.Header.Get("Retry-After") == "" || !r.Close {
		t.Errorf("headers %v, want Retry-After and the end of the connection", r.Header)
	}
	second.closed(t)
}
