package socket

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/task"
)

// request is one for the result of a task, for which it waits as long as it may.
func request(id string) string {
	return "GET /results/" + id + "?wait=60s HTTP/1.1\r\nHost: localhost\r\n\r\n"
}

// dialTCP connects.
func dialTCP(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// A request that waits for a result gives up its place when its client has hung
// up, also if that has sent something meanwhile that is not read yet.
func TestResultForNobody(t *testing.T) {
	s, b, secure := setupTLS(t, DefaultConfig(), feed.DefaultConfig())
	for _, tc := range []struct {
		name, more string
		tls        bool
		hangUp     func(*net.TCPConn) error
	}{
		{"closed", "", false, (*net.TCPConn).Close},
		{"closed, with TLS", "", true, (*net.TCPConn).Close},
		{"reset", "", false, func(c *net.TCPConn) error { c.SetLinger(0); return c.Close() }},
		{"closed after the next request", request("next"), false, (*net.TCPConn).Close},
		{"closed after the next request, with TLS", request("next"), true, (*net.TCPConn).Close},
		{"closed after more requests than are read at once", strings.Repeat(request("next"), 500), false, (*net.TCPConn).Close},
	} {
		t.Run(tc.name, func(t *testing.T) {
			addr := b.addr
			if tc.tls {
				addr = secure.addr
			}
			c := dialTCP(t, addr)
			var over io.Writer = c
			if tc.tls {
				cfg := secure.tls.Clone()
				cfg.ServerName = "127.0.0.1"
				over = tls.Client(c, cfg)
			}
			if _, err := io.WriteString(over, request("first")); err != nil {
				t.Fatal(err)
			}
			until(t, "the request waits", func() bool { return s.waiting.Load() == 1 })
			if _, err := io.WriteString(over, tc.more); err != nil {
				t.Fatal(err)
			}
			if err := tc.hangUp(c); err != nil {
				t.Fatal(err)
			}
			until(t, "no request waits", func() bool { return s.waiting.Load() == 0 })
			until(t, "the connection is closed", func() bool { return s.front.Connections() == 0 })
		})
	}
}

// A client that sends the next request while it waits has not hung up, and gets
// both results.
func TestResultsPipelined(t *testing.T) {
	s, b := setup(t, DefaultConfig(), feed.DefaultConfig())
	c := dialTCP(t, b.addr)
	io.WriteString(c, request("first"))
	until(t, "the request waits", func() bool { return s.waiting.Load() == 1 })
	io.WriteString(c, request("second"))
	for range 2 { // clients of which the server notices that they have hung up
		other := dialTCP(t, b.addr)
		io.WriteString(other, request("other"))
		until(t, "two requests wait", func() bool { return s.waiting.Load() == 2 })
		other.Close()
		until(t, "one request waits", func() bool { return s.waiting.Load() == 1 })
	}
	r := bufio.NewReader(c)
	for i, id := range []string{"first", "second"} {
		b.feed.Append(int64(i), task.Result{ID: id, Text: "text of " + id})
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != http.StatusOK || !strings.Contains(string(body), "text of "+id) {
			t.Errorf("%s: %d %s, %v", id, res.StatusCode, body, err)
		}
	}
}

// A client that has closed only its own side is answered at once.
func TestResultForHalf(t *testing.T) {
	s, b := setup(t, DefaultConfig(), feed.DefaultConfig())
	c := dialTCP(t, b.addr)
	io.WriteString(c, request("first"))
	until(t, "the request waits", func() bool { return s.waiting.Load() == 1 })
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(res.Body); err != nil || res.StatusCode != http.StatusNotFound || !strings.Contains(string(body), "closed its side") {
		t.Errorf("%d %s, %v", res.StatusCode, body, err)
	}
}
