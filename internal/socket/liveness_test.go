package socket

import (
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/liveness"
)

// A shard that stays with one listener is noticed, and so is that it goes on.
// One without anything to do is alive.
func TestShardHangs(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	dropped, goOn := make(chan struct{}), make(chan struct{})
	s, err := newShard(DefaultConfig(), slog.New(slog.DiscardHandler), newCounts(feed.New(feed.DefaultConfig())), func(*listener) { close(dropped); <-goOn })
	if err != nil {
		t.Fatal(err)
	}
	s.loop = liveness.New("the shard", 2*tick)
	ended := make(chan struct{})
	go func() { s.run(); close(ended) }()
	eventually := func(what string, hangs bool) {
		t.Helper()
		late := time.After(patience)
		ticker := time.NewTicker(10 * time.Millisecond)
		defer ticker.Stop()
		for (s.loop.Alive() != nil) != hangs {
			select {
			case <-ticker.C:
			case <-late:
				t.Fatalf("not %s within %v", what, patience)
			}
		}
	}

	<-time.After(3 * tick) // in which nothing may happen
	if err := s.loop.Alive(); err != nil {
		t.Errorf("without work: %v", err)
	}
	l := &listener{conn: server, dialect: websocketDialect{}, control: []byte("hello"), log: feed.New(feed.DefaultConfig()).Log(feed.Text)}
	if l.fd, err = descriptor(server); err != nil {
		t.Fatal(err)
	}
	s.join(l)
	if _, err := io.ReadFull(client, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	client.Close()
	<-dropped // it hangs from here on
	eventually("noticed", true)
	close(goOn)
	eventually("alive", false)
	s.abort()
	<-ended
	if err := s.loop.Alive(); err != nil {
		t.Errorf("after the end: %v", err)
	}
}
