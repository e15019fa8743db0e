package front_test

import (
	"bufio"
	"context"
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
	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/socket"
)

// serve serves s until the end of the test, and returns the address.
func serve(t *testing.T, s server) string {
	t.Helper()
	// What the kernel receives and a server does not read is little.
	small := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var set error
		err := c.Control(func(fd uintptr) { set = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 64<<10) })
		return errors.Join(err, set)
	}}
	ln, err := small.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		_ = s.Shutdown(ctx) // the connections are still open
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

// limitedAPI serves an API to which only 127.0.0.1 has no limits.
func limitedAPI(t *testing.T, change func(*api.Config)) string {
	t.Helper()
	cfg := api.DefaultConfig()
	cfg.Unlimited = []string{"127.0.0.1"}
	change(&cfg)
	return serve(t, api.New(cfg, &broker{}, slog.New(slog.DiscardHandler)))
}

func limitedSocket(t *testing.T, change func(*socket.Config)) string {
	t.Helper()
	cfg := socket.DefaultConfig()
	cfg.Unlimited = []string{"127.0.0.1"}
	change(&cfg)
	results := feed.New(feed.DefaultConfig())
	results.GoLive()
	return serve(t, socket.New(cfg, results, source{}, slog.New(slog.DiscardHandler)))
}

// A caller is a connection from one of this machine's addresses.
type caller struct {
	net.Conn
	r *bufio.Reader
}

func call(t *testing.T, from, to string) *caller {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.DialContext(t.Context(), "tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &caller{c, bufio.NewReader(c)}
}

func (c *caller) ask(t *testing.T, raw string) reply {
	t.Helper()
	if _, err := io.WriteString(c, raw); err != nil {
		t.Fatal(err)
	}
	return read(t, c.r)
}

// want asks and checks the status; a 429 says when to try again.
func (c *caller) want(t *testing.T, raw string, status int, detail string) {
	t.Helper()
	got := c.ask(t, raw)
	got.check(t, status, detail)
	if status == http.StatusTooManyRequests && got.Header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After: %q", got.Header.Get("Retry-After"))
	}
}

const (
	client, other = "127.0.0.2", "127.0.0.3"

	text = queue + "Content-Length: 1\r\n\r\nx"
)

func TestAddressConnections(t *testing.T) {
	t.Parallel()
	at := limitedAPI(t, func(c *api.Config) { c.AddressConnections = 2 })
	var kept []*caller
	for range 2 {
		c := call(t, client, at)
		c.want(t, text, 202, "")
		kept = append(kept, c)
	}
	call(t, client, at).want(t, text, 429, "there are 2 connections from 127.0.0.2 already")
	call(t, other, at).want(t, text, 202, "")
	for range 4 {
		call(t, "127.0.0.1", at).want(t, text, 202, "")
	}
	kept[0].want(t, text, 202, "")
	kept[0].Close()
	await(t, "the place is free", func() bool { return call(t, client, at).ask(t, text).StatusCode == 202 })
}

// await waits until ready returns true.
func await(t *testing.T, what string, ready func() bool) {
	t.Helper()
	late := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ready() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func TestAddressRequests(t *testing.T) {
	t.Parallel()
	at := limitedAPI(t, func(c *api.Config) { c.AddressRequests = 1 }) // so that the next one is a second away
	c := call(t, client, at)
	c.want(t, text, 202, "")
	c.want(t, text, 429, "more than 1 requests in a second from 127.0.0.2")
	call(t, client, at).want(t, text, 429, "")
	c.want(t, get+"\r\n", 200, "") // health does not count
	call(t, other, at).want(t, text, 202, "")
	await(t, "a second has passed", func() bool { return c.ask(t, text).StatusCode == 202 })

	for _, raw := range []string{"GET /x HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS " + queuePath + " HTTP/1.1\r\nHost: a\r\n\r\n"} {
		c.want(t, raw, 429, "") // whatever it asks for
	}
}

const queuePath = "/queue_reverse_text"

func TestMaxRequests(t *testing.T) {
	t.Parallel()
	at := limitedAPI(t, func(c *api.Config) { c.MaxRequests = 1 })
	c := call(t, "127.0.0.1", at)
	c.want(t, text, 202, "")
	c.want(t, text, 429, "more than 1 requests in a second:")
}

func TestAddressListeners(t *testing.T) {
	t.Parallel()
	at := limitedSocket(t, func(c *socket.Config) { c.AddressListeners = 2 })
	first := call(t, client, at)
	first.want(t, handshake+"\r\n", 101, "")
	await(t, "the first one listens", func() bool {
		c := call(t, client, at)
		return c.ask(t, handshake+"\r\n").StatusCode == 101
	})
	await(t, "two listen", func() bool { return call(t, client, at).ask(t, handshake+"\r\n").StatusCode == 429 })
	call(t, client, at).want(t, handshake+"\r\n", 429, "2 listeners are connected from 127.0.0.2 already")
	call(t, client, at).want(t, "GET /results/x?wait=1s HTTP/1.1\r\nHost: a\r\n\r\n", 429, "2 listeners")
	call(t, other, at).want(t, handshake+"\r\n", 101, "")
	events := call(t, client, at).ask(t, listen+"Accept: text/event-stream\r\n\r\n")
	if events.StatusCode != 200 || events.Header.Get("Retry-After") == "" {
		t.Errorf("events: %d %s", events.StatusCode, events.body) // a browser would give up after a 429
	}
	first.Close()
	await(t, "the place is free", func() bool { return call(t, client, at).ask(t, handshake+"\r\n").StatusCode == 101 })
}

// Clients of a trusted proxy have limits of their own, and nobody else can say
// who they are.
func TestTrustedProxy(t *testing.T) {
	t.Parallel()
	at := limitedAPI(t, func(c *api.Config) {
		c.AddressRequests, c.AddressConnections, c.TrustedProxies = 1, 1, []string{other}
	})
	from := func(address string) string {
		return queue + "X-Forwarded-For: " + address + "\r\nContent-Length: 1\r\n\r\nx"
	}
	proxy := call(t, other, at)
	for i := range 5 {
		proxy.want(t, from(fmt.Sprintf("192.0.2.%d", i)), 202, "")
	}
	proxy.want(t, from("192.0.2.1"), 429, "from 192.0.2.1")
	proxy.want(t, from("10.9.9.9, 192.0.2.1"), 429, "from 192.0.2.1")
	proxy.want(t, from("2001:db8::1"), 202, "")
	proxy.want(t, from("2001:db8::2"), 429, "from 2001:db8::/64")
	call(t, other, at).want(t, from("192.0.2.7"), 202, "") // its connections do not count

	liar := call(t, client, at)
	liar.want(t, from("192.0.2.100"), 202, "")
	liar.want(t, from("192.0.2.101"), 429, "from 127.0.0.2")
	liar.want(t, from("127.0.0.1"), 429, "from 127.0.0.2")
}

// When all places are taken, those who have sent no complete request for a
// while make room for those who send one.
func TestSlowOnesMakeRoom(t *testing.T) {
	t.Parallel()
	const limit = 4
	for name, at := range map[string]string{
		"api":    limitedAPI(t, func(c *api.Config) { c.MaxConnections = limit }),
		"socket": limitedSocket(t, func(c *socket.Config) { c.MaxHandshakes = limit }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var slow []*caller
			for i := range limit {
				c := call(t, client, at)
				if i > 0 { // one sends nothing
					if _, err := io.WriteString(c, get+"X-Slow: a"); err != nil {
						t.Fatal(err)
					}
				}
				slow = append(slow, c)
			}
			var late *caller
			await(t, "there is room for another", func() bool {
				late = call(t, other, at)
				return late.ask(t, get+"\r\n").StatusCode == 200
			})
			ended := 0
			for _, c := range slow {
				if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
					t.Fatal(err)
				}
				resp, err := http.ReadResponse(c.r, nil)
				if err == nil && resp.StatusCode == http.StatusRequestTimeout || err != nil && !isTimeout(err) {
					ended++
				}
			}
			if ended == 0 || ended == limit {
				t.Errorf("%d of %d slow connections have ended", ended, limit)
			}
			late.want(t, get+"\r\n", 200, "")
		})
	}
}

// A client that was served and keeps its connection does not lose it to make
// room, as long as others have never sent a request.
func TestSilentOnesMakeRoomFirst(t *testing.T) {
	t.Parallel()
	const limit = 4
	at := limitedAPI(t, func(c *api.Config) { c.MaxConnections = limit })
	kept := call(t, client, at)
	kept.want(t, get+"\r\n", 200, "") // it waits longer than all others for its next request
	var silent []*caller
	for range limit - 1 {
		silent = append(silent, call(t, client, at))
	}
	await(t, "there is room for another", func() bool { return call(t, other, at).ask(t, get+"\r\n").StatusCode == 200 })
	for _, c := range silent[1:] { // one has made room
		c.Close()
	}
	kept.want(t, get+"\r\n", 200, "")
}

// Who was refused, and sends on as fast as it can, is read slowly and not for
// long: 16 MiB in the second that it has, and 4 MiB at once.
func TestFloodsAreHardlyRead(t *testing.T) {
	t.Parallel()
	const (
		ofTheKernel = 8 << 20 // its buffers, of which those to send may be 4 MiB
		maxTaken    = 20<<20 + ofTheKernel
	)
	for name, flood := range map[string]struct{ at, head, unit string }{
		"a head without end":   {limitedAPI(t, func(*api.Config) {}), get, "X-Much: y\r\n"},
		"a request too long":   {limitedAPI(t, func(*api.Config) {}), queue + "Content-Length: 9999999999\r\n\r\n", "x"},
		"frames without end":   {limitedSocket(t, func(*socket.Config) {}), handshake + "\r\n", "\x81\x80\x00\x00\x00\x00"},
		"pings without end":    {limitedSocket(t, func(*socket.Config) {}), handshake + "\r\n", "\x89\x80\x00\x00\x00\x00"},
		"messages without end": {limitedSocket(t, func(*socket.Config) {}), handshake + "\r\n", "\x01\x80\x00\x00\x00\x00" + strings.Repeat("\x00\x80\x00\x00\x00\x00", 99)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := call(t, client, flood.at)
			if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
				t.Fatal(err)
			}
			taken, err := io.WriteString(c, flood.head)
			for many := strings.Repeat(flood.unit, 1+(64<<10)/len(flood.unit)); err == nil; {
				var n int
				n, err = io.WriteString(c, many)
				taken += n
			}
			if isTimeout(err) {
				t.Fatalf("the connection has not ended after %d bytes", taken)
			}
			if taken > maxTaken {
				t.Errorf("the server took %d bytes, want at most %d", taken, maxTaken)
			}
		})
	}
}

func isTimeout(err error) bool {
	timeout, ok := err.(interface{ Timeout() bool }) //nolint:errorlint // a net.Error as ReadResponse returns it
	return ok && timeout.Timeout()
}
