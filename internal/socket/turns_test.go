package socket

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/fasthttp/websocket"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

func TestIsOver(t *testing.T) {
	for _, tc := range []struct {
		took time.Duration
		sent int64
		want bool
	}{
		{0, 0, false},
		{minTurn - 1, 0, false},
		{minTurn, 0, true},
		{minTurn, 5*turnRate - 1, true},
		{minTurn, 5 * turnRate, false},
		{turnLength - 1, 1 << 40, false},
		{turnLength, 1 << 40, true},
	} {
		if got := isOver(tc.took, tc.sent); got != tc.want {
			t.Errorf("isOver(%v, %d) = %v", tc.took, tc.sent, got)
		}
	}
}

// A resumer is a listener that catches up and reads nothing of it yet.
type resumer struct {
	conn net.Conn // the TCP connection
	r    *bufio.Reader
}

const resumable = 500 // results, of 30 MB: more than any socket buffer takes

// setupResumers starts a server with places for so many that catch up, and with
// results that only the source still has.
func setupResumers(t *testing.T, places int) (*Server, *bundle, *secureSite) {
	t.Helper()
	cfg := DefaultConfig()
	cfg.MaxResuming = places
	s, b, site := setupTLS(t, cfg, small)
	big := strings.Repeat("x", 60_000)
	for i := range resumable {
		r := task.Result{ID: fmt.Sprint("id", i), Text: big}
		b.source.addResult(int64(i), r)
		b.feed.Append(int64(i), r)
	}
	return s, b, site
}

// resumeSlowly begins to catch up, at the site with TLS or without, and returns
// when the server waits for it.
func resumeSlowly(t *testing.T, s *Server, b *bundle, site *secureSite, secure bool) resumer {
	t.Helper()
	conn := dialSmall(t, b.addr)
	if secure {
		conn = dialSmall(t, site.addr)
	}
	conn.SetDeadline(time.Now().Add(patience))
	over := conn
	if secure {
		cfg := site.tls.Clone()
		cfg.ServerName = "127.0.0.1"
		over = tls.Client(conn, cfg)
	}
	before := s.turns.count()
	fmt.Fprintf(over, "GET /listen_results?after=0/id0 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	until(t, "it catches up", func() bool { return s.turns.count() > before })
	sent, same := int64(0), 0
	until(t, "it is stalled", func() bool { // nothing has come of 100 looks
		if now := s.turns.sent(); now == 0 || now != sent {
			sent, same = now, 0
		}
		same++
		return same == 100
	})
	return resumer{conn, bufio.NewReader(over)}
}

// sent returns what those who catch up have taken.
func (ts *turns) sent() (n int64) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for t := range ts.running {
		n += t.sent.Load()
	}
	return n
}

// age makes all turns look older.
func (ts *turns) age(by time.Duration) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for t := range ts.running {
		t.began = t.began.Add(-by)
	}
}

// closeStatus reads up to the close frame, and returns its status.
func (r resumer) closeStatus(t *testing.T) uint16 {
	t.Helper()
	for line := ""; line != "\r\n"; { // the answer to the handshake
		var err error
		if line, err = r.r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	for {
		if op, payload := readFrame(t, r.r); op == byte(feed.OpClose) {
			return binary.BigEndian.Uint16(payload)
		}
	}
}

func TestAStalledResumerDoesNotHoldUpTheStop(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %v", secure), func(t *testing.T) {
			s, b, site := setupResumers(t, 2)
			others := []*websocket.Conn{b.listen(t, ""), site.listen(t, "")}
			stalled := resumeSlowly(t, s, b, site, secure)
			began := time.Now()
			done := make(chan error, 1)
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				defer cancel()
				done <- s.Shutdown(ctx)
			}()
			for _, c := range others {
				if _, _, err := c.ReadMessage(); !websocket.IsCloseError(err, wire.CloseRestart) {
					t.Errorf("another listener got %v, want close 1012", err)
				}
			}
			if secure { // it ends within a record, after which TLS cannot go on
				io.Copy(io.Discard, stalled.r)
			} else if status := stalled.closeStatus(t); status != wire.CloseRestart {
				t.Errorf("the stalled one got the status %d, want 1012", status)
			}
			stalled.conn.Close()
			if err := <-done; err != nil {
				t.Errorf("Shutdown = %v", err)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("the stop took %v", took)
			}
		})
	}
}

func TestWhoLeavesFreesItsPlaceAtOnce(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %v", secure), func(t *testing.T) {
			s, b, site := setupResumers(t, 1)
			stalled := resumeSlowly(t, s, b, site, secure)
			stalled.conn.(*net.TCPConn).CloseWrite() // a reset would end the write by itself
			began := time.Now()
			until(t, "the place is free", func() bool { return s.turns.count() == 0 && s.Listeners() == 0 })
			if took := time.Since(began); took > closeGrace+15*time.Second {
				t.Errorf("after %v", took)
			}
		})
	}
}

// Who takes little does not keep others from resuming: it is told to resume
// again, and goes on where it stands.
func TestASlowResumerGivesWay(t *testing.T) {
	s, b, site := setupResumers(t, 1)
	slow := resumeSlowly(t, s, b, site, false)
	early := b.listen(t, "?after=1")
	if _, _, err := early.ReadMessage(); !websocket.IsCloseError(err, wire.CloseTryAgain) {
		t.Errorf("while its turn lasts another one gets %v, want close 1013", err)
	}
	s.turns.age(minTurn)
	fast := b.listen(t, "?after=0/id0")
	for i := 1; i < resumable; i++ {
		if _, _, err := fast.ReadMessage(); err != nil {
			t.Fatalf("result %d: %v", i, err)
		}
	}
	if status := slow.closeStatus(t); status != wire.CloseTryAgain {
		t.Errorf("the slow one got the status %d, want 1013", status)
	}
	until(t, "nobody catches up", func() bool { return s.turns.count() == 0 })
}

// Only one catch-up at a time writes a long text. A listener that is slow to
// take one gives way to those that wait for theirs.
func TestLongTextsAreWrittenOneByOne(t *testing.T) {
	s, b, site := setupResumers(t, 3)
	s.turns.long.tick = 10 * time.Millisecond
	const texts = 3
	for i := range texts {
		r := task.Result{ID: fmt.Sprint("long", i), Text: strings.Repeat("x", 4*longText)} // more than the kernel takes
		b.source.addResult(int64(resumable+i), r)
		b.feed.Append(int64(resumable+i), r)
	}
	after := fmt.Sprintf("?after=%d", resumable-2)
	slow := b.listen(t, after)
	until(t, "it has the place", func() bool { return s.turns.long.holder.Load() != nil })
	stopped := s.turns.long.holder.Load()
	fast := site.listen(t, after)
	for i := range texts + 1 {
		if _, text, err := fast.ReadMessage(); err != nil || i > 0 && len(text) != 4*longText {
			t.Fatalf("text %d has %d bytes: %v", i, len(text), err)
		}
	}
	await.Value(t, "end of the turn", stopped.over)
	if cause := context.Cause(stopped.ctx); cause != errTurnOver {
		t.Errorf("the slow one ended with %v", cause)
	}
	var err error
	for err == nil {
		_, _, err = slow.ReadMessage()
	}
	until(t, "nobody catches up", func() bool { return s.turns.count() == 0 && s.turns.long.holder.Load() == nil })
}

// With TLS, a listener that has caught up may be quiet for longer than a write
// may take.
func TestNoDeadlineIsLeftOfACatchUp(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	go io.Copy(io.Discard, theirs)
	ts := newTurns(1)
	turn, err := ts.begin(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := turn.write([]byte("x"), time.Millisecond); err != nil {
		t.Fatal(err)
	}
	ts.finish(turn)
	<-time.After(5 * time.Millisecond)
	if _, err := ours.Write([]byte("x")); err != nil {
		t.Errorf("a write after the catch-up: %v", err)
	}
	turn.cut(errLeft) // too late
	if _, err := ours.Write([]byte("x")); err != nil {
		t.Errorf("a write after that: %v", err)
	}
}
