package socket

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fasthttp/websocket"
	"golang.org/x/sys/unix"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/task"
)

func TestPoller(t *testing.T) {
	before := epollInstances(t)
	p, err := newPoller()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := pair[0], pair[1]
	defer unix.Close(ours)
	defer unix.Close(theirs)
	handle := func(want uint32) {
		t.Helper()
		select {
		case events := <-p.ready:
			if len(events) != 1 || int(events[0].Fd) != ours || events[0].Events != want {
				t.Fatalf("ready: %+v; want descriptor %d with %#x", events, ours, want)
			}
			if want == unix.EPOLLIN {
				unix.Read(ours, make([]byte, 1))
			}
			if err := p.control(unix.EPOLL_CTL_MOD, ours, unix.EPOLLIN); err != nil {
				t.Fatal(err)
			}
			p.handled <- struct{}{}
		case <-time.After(patience):
			t.Fatal("it is not ready")
		}
	}

	if err := p.control(unix.EPOLL_CTL_ADD, ours, unix.EPOLLIN); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		unix.Write(theirs, []byte("x"))
		handle(unix.EPOLLIN)
	}
	unix.Write(theirs, []byte("xxx")) // one change, handled in three parts
	for range 3 {
		handle(unix.EPOLLIN)
	}
	if err := p.control(unix.EPOLL_CTL_MOD, ours, unix.EPOLLOUT); err != nil { // no change but of what is asked for
		t.Fatal(err)
	}
	handle(unix.EPOLLOUT)

	unix.Write(theirs, []byte("x")) // it may be about to hand this over
	p.close()
	if _, open := <-p.ready; open {
		t.Error("something is ready after the end")
	}
	if n := epollInstances(t); n != before {
		t.Errorf("%d epoll instances, %d before", n, before)
	}
}

// Whatever a shard is busy with meanwhile, it looks at each result and at each
// sign of a listener: the ones that append or ping go on only when they have
// been heard, so that nothing else would make up for what is lost.
func TestShardMissesNothing(t *testing.T) {
	const appenders, rounds = 8, 300
	_, b := setup(t, DefaultConfig(), feed.DefaultConfig())
	conn := b.listen(t, "")
	var came [appenders]chan struct{}
	for i := range came {
		came[i] = make(chan struct{}, 1)
	}
	pong := make(chan struct{}, 1)
	conn.SetPongHandler(func(string) error { pong <- struct{}{}; return nil })
	lost := make(chan struct{}) // closed when the reader has given up
	heard := func(from <-chan struct{}) bool {
		select {
		case <-from:
			return true
		case <-lost:
			return false
		}
	}

	var busy sync.WaitGroup
	for i := range appenders {
		busy.Go(func() {
			for round := range rounds {
				b.feed.Append(int64(round*appenders+i), task.Result{ID: fmt.Sprint(i, "-", round), Text: fmt.Sprint(i)})
				if !heard(came[i]) {
					return
				}
			}
		})
	}
	busy.Go(func() {
		for range rounds {
			if err := conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(patience)); err != nil || !heard(pong) {
				return
			}
		}
	})
	busy.Go(func() {
		for range rounds / 10 { // they join and go all the while
			c, _, err := websocket.DefaultDialer.Dial("ws://"+b.addr+"/listen_results", nil)
			if err != nil {
				t.Error(err)
				return
			}
			c.Close()
		}
	})
	for range appenders * rounds {
		_, text, err := conn.ReadMessage()
		if err != nil {
			t.Error(err)
			break
		}
		came[text[0]-'0'] <- struct{}{}
	}
	go func() { // what is left are pongs
		defer close(lost)
		if _, _, err := conn.ReadMessage(); err == nil {
			t.Error("a result too many")
		}
	}()
	busy.Wait()
	conn.Close()
	await.Value(t, "end of the connection", lost)
}

func TestShardsLeaveNothingBehind(t *testing.T) {
	before := epollInstances(t)
	for _, tc := range []struct {
		name  string
		grace time.Duration
	}{{"close", patience}, {"abort", 0}} {
		t.Run(tc.name, func(t *testing.T) {
			b := &bundle{feed: feed.New(feed.DefaultConfig()), source: new(source)}
			b.feed.GoLive()
			s := b.start(t, DefaultConfig())
			for range 4 {
				conn := b.listen(t, "")
				go func() { // an answer to the farewell
					for {
						if _, _, err := conn.ReadMessage(); err != nil {
							return
						}
					}
				}()
			}
			if n := epollInstances(t); n != before+len(s.shards) {
				t.Errorf("%d epoll instances with %d shards, %d before", n, len(s.shards), before)
			}
			ctx, cancel := context.WithTimeout(context.Background(), tc.grace)
			defer cancel()
			s.Shutdown(ctx)
			b.append(0, 2) // nobody is there to be woken
			if n := epollInstances(t); n != before {
				t.Errorf("%d epoll instances at the end, %d before", n, before)
			}
			if n := s.Listeners(); n != 0 {
				t.Errorf("%d listeners at the end", n)
			}
			until(t, "their goroutines have ended", func() bool {
				stacks := make([]byte, 1<<20)
				stacks = stacks[:runtime.Stack(stacks, true)]
				return !strings.Contains(string(stacks), "socket.(*shard)") && !strings.Contains(string(stacks), "socket.(*poller)")
			})
		})
	}
}

// epollInstances returns how many this process has.
func epollInstances(t *testing.T) (n int) {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if kind, _ := os.Readlink("/proc/self/fd/" + f.Name()); kind == "anon_inode:[eventpoll]" {
			n++
		}
	}
	return n
}
