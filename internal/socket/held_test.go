package socket

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/task"
)

// rawEvents asks for server-sent events over a connection whose kernel buffers
// are small, reads the greeting, and returns what reads on.
func rawEvents(t *testing.T, c net.Conn) *bufio.Reader {
	t.Helper()
	c.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(c, "GET /listen_results HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", res, err)
	}
	body := bufio.NewReader(res.Body)
	for line := ""; line != "\n"; {
		if line, err = body.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	return body
}

// dialSmall connects with a receive buffer that takes little.
func dialSmall(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	return c
}

// heap returns how much memory is in use.
func heap() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// One text that takes much more as JSON is half sent to many listeners. What is
// left of it is in memory once, however many they are, also when the log has
// moved on, and those who read on get all of it.
func TestTheRestOfAFrameIsInMemoryOnce(t *testing.T) {
	const listeners = 200
	size := feed.Config{MaxBytes: 1 << 20, Window: 10}
	for _, site := range []string{"plain", "TLS"} {
		t.Run(site, func(t *testing.T) {
			s, b, secure := setupTLS(t, DefaultConfig(), size)
			var readers []*bufio.Reader
			for range listeners {
				c := dialSmall(t, map[string]string{"plain": b.addr, "TLS": secure.addr}[site])
				if site == "TLS" {
					cfg := secure.tls.Clone()
					cfg.ServerName = "127.0.0.1"
					c = tls.Client(c, cfg)
				}
				readers = append(readers, rawEvents(t, c))
			}
			log := s.feed.Log(feed.Events)
			before := heap()
			large := strings.Repeat("<", 65_535)
			b.feed.Append(0, task.Result{ID: "large", Text: large})
			until(t, "all have a part of it", func() bool { holds, _ := log.Held(); return holds == listeners })
			if grown := heap() - before; grown > 12<<20 {
				t.Errorf("%d listeners with a part of a frame take %d KiB, %d KiB each", listeners, grown>>10, grown>>10/listeners)
			} else {
				t.Logf("%d listeners with a part of a frame take %d KiB", listeners, grown>>10)
			}
			if _, n := log.Held(); n != 0 {
				t.Errorf("%d bytes are held besides the log", n)
			}
			for i := range 3 { // the log moves on
				b.feed.Append(int64(i+1), task.Result{ID: fmt.Sprint(i), Text: large})
			}
			if _, n := log.Held(); n < 6*len(large) || n > 6*len(large)+1<<10 {
				t.Errorf("%d bytes are held besides the log, want those of one frame", n)
			}
			if grown := heap() - before; grown > 16<<20 {
				t.Errorf("after the log moved on they take %d KiB", grown>>10)
			}
			escaped := bytes.Repeat([]byte(`\u003c`), len(large))
			for _, r := range readers {
				var line []byte
				for !bytes.HasPrefix(line, []byte("data: ")) {
					var err error
					if line, err = r.ReadBytes('\n'); err != nil {
						t.Fatal(err)
					}
				}
				if !bytes.Contains(line, escaped) {
					t.Fatalf("an event of %d bytes came, want the text", len(line))
				}
			}
			until(t, "nothing is held", func() bool { holds, n := log.Held(); return holds == 0 && n == 0 })
			ctx, cancel := context.WithTimeout(t.Context(), 0)
			defer cancel()
			s.Shutdown(ctx)
		})
	}
}

// Those whose connections end within a frame hold nothing any more.
func TestWhoGoesHoldsNothing(t *testing.T) {
	s, b, secure := setupTLS(t, DefaultConfig(), feed.Config{MaxBytes: 512 << 10, Window: 10})
	plain := dialSmall(t, b.addr)
	rawEvents(t, plain)
	below := dialSmall(t, secure.addr)
	cfg := secure.tls.Clone()
	cfg.ServerName = "127.0.0.1"
	rawEvents(t, tls.Client(below, cfg))
	large := strings.Repeat("<", 65_535)
	log := s.feed.Log(feed.Events)
	b.feed.Append(0, task.Result{ID: "large", Text: large})
	until(t, "both have a part of it", func() bool { holds, _ := log.Held(); return holds == 2 })
	for i := range 3 {
		b.feed.Append(int64(i+1), task.Result{ID: fmt.Sprint(i), Text: large})
	}
	if _, n := log.Held(); n == 0 {
		t.Error("nothing is held")
	}
	plain.Close()
	below.Close()
	until(t, "nothing is held", func() bool { holds, n := log.Held(); return holds == 0 && n == 0 })
}

// The kernel gives up a connection that takes nothing later than the server
// does, however often listeners are pinged: the reason arrives all the same.
func TestTheKernelKeepsAConnectionUntilItsFarewell(t *testing.T) {
	t.Parallel()
	cfg := DefaultConfig()
	cfg.PingInterval, cfg.WriteTimeout = time.Second, 4*time.Second
	s, b := setup(t, cfg, feed.Config{MaxBytes: 100 << 20, Window: 10})
	r := rawEvents(t, dialSmall(t, b.addr))
	big := strings.Repeat("x", 60_000)
	for i := range 300 { // 18 MB: more than any socket buffer takes
		b.feed.Append(int64(i), task.Result{ID: fmt.Sprint(i), Text: big})
	}
	until(t, "the listener is given up", func() bool { return s.Listeners() == 0 })
	all, err := io.ReadAll(r)
	if err != nil || !bytes.HasSuffix(all, []byte(": "+byeTooSlow.reason+"\n\n")) {
		t.Errorf("%d bytes, %v; the last are %q, want the reason", len(all), err, all[max(0, len(all)-100):])
	}
}
