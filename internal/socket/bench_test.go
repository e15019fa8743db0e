package socket

import (
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/task"
)

// BenchmarkFanout appends results of 100 bytes as fast as the slowest of the
// listeners gets them. Server and clients share this machine.
func BenchmarkFanout(b *testing.B) {
	for _, listeners := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprint(listeners), func(b *testing.B) {
			s, bundle := setupBench(b)
			drain := newDrain(b, bundle.addr, listeners)
			for s.Listeners() < listeners {
				runtime.Gosched()
			}
			text := strings.Repeat("x", 100)
			frame := len(feed.AppendFrame(nil, feed.OpText, []byte(text)))
			log := s.feed.Log(feed.Text)
			start := int64(log.End())
			began := time.Now()
			for i := 0; b.Loop(); i++ {
				s.feed.Append(int64(i), task.Result{ID: fmt.Sprint(i), Text: text})
				// Stay well within what the log keeps.
				for i%100 == 99 && int64(log.End())-start-drain.slowest() > 1<<20 {
					runtime.Gosched()
				}
			}
			for drain.slowest() < int64(log.End())-start {
				runtime.Gosched()
			}
			deliveries := float64(int64(log.End())-start) / float64(frame) * float64(listeners)
			b.ReportMetric(deliveries/time.Since(began).Seconds(), "deliveries/s")
		})
	}
}

func setupBench(b *testing.B) (*Server, *bundle) {
	bundle := &bundle{feed: feed.New(feed.DefaultConfig()), source: new(source)}
	bundle.feed.GoLive()
	return bundle.start(b, DefaultConfig()), bundle
}

// A drain is many listeners that throw away what they get.
type drain struct {
	total []atomic.Int64 // bytes by listener, without the greeting
}

func newDrain(b *testing.B, addr string, n int) *drain {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		b.Fatal(err)
	}
	d := &drain{total: make([]atomic.Int64, n)}
	index := make(map[int]int)
	for i := range n {
		c, _ := (&bundle{addr: addr}).raw(b)
		fd, err := descriptor(c)
		if err != nil {
			b.Fatal(err)
		}
		index[fd] = i
		if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { c.Close() })
	}
	var done atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		events := make([]unix.EpollEvent, 256)
		buf := make([]byte, 256<<10)
		for !done.Load() {
			n, err := unix.EpollWait(epoll, events, 100)
			if err != nil && err != unix.EINTR {
				return
			}
			for _, e := range events[:max(n, 0)] {
				if n, err := unix.Read(int(e.Fd), buf); n > 0 && err == nil {
					d.total[index[int(e.Fd)]].Add(int64(n))
				}
			}
		}
	}()
	b.Cleanup(func() {
		done.Store(true)
		<-ended // or it would poll whatever gets the descriptor next
		unix.Close(epoll)
	})
	return d
}

// slowest returns how many bytes the slowest listener has got.
func (d *drain) slowest() int64 {
	least := d.total[0].Load()
	for i := range d.total {
		least = min(least, d.total[i].Load())
	}
	return least
}
