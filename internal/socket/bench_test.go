package socket

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// BenchmarkFanout appends results of 100 bytes as fast as the slowest of the
// listeners gets them. Server and clients share this machine.
func BenchmarkFanout(b *testing.B) {
	for _, listeners := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprint(listeners), func(b *testing.B) {
			s, bundle := setupBench(b, DefaultConfig())
			drain := newDrain(b, bundle.addr, listeners)
			for s.Listeners() < listeners {
				runtime.Gosched()
			}
			text := strings.Repeat("x", 100)
			frame := len(feed.AppendFrame(nil, feed.OpText, []byte(text)))
			log := s.feed.Log(feed.Text)
			start := int64(log.End())
			catchUp := func(lag int64) {
				for int64(log.End())-start-drain.slowest() > lag {
					if s.Listeners() < listeners { // they answer no pings
						b.Fatal("listeners were closed: give a shorter -benchtime")
					}
					runtime.Gosched()
				}
			}
			began := time.Now()
			for i := 0; b.Loop(); i++ {
				s.feed.Append(int64(i), task.Result{ID: fmt.Sprint(i), Text: text})
				if i%100 == 99 {
					catchUp(1 << 20) // stay well within what the log keeps
				}
			}
			catchUp(0)
			deliveries := float64(int64(log.End())-start) / float64(frame) * float64(listeners)
			b.ReportMetric(deliveries/time.Since(began).Seconds(), "deliveries/s")
		})
	}
}

// BenchmarkFilter is BenchmarkFanout for 5,000 listeners of which some have a
// filter that one of so many results passes.
func BenchmarkFilter(b *testing.B) {
	const listeners = 5000
	for _, tc := range []struct {
		name            string
		filtered, every int
	}{{"none", 0, 1}, {"one", 1, 1}, {"all", listeners, 1}, {"all-want-one-in-100", listeners, 100}} {
		b.Run(tc.name, func(b *testing.B) {
			needFiles(b, 2*listeners+100)
			cfg := DefaultConfig()
			cfg.PingInterval, cfg.WriteTimeout = time.Hour, time.Hour // nobody here answers
			s, bundle := setupBench(b, cfg)
			drain := newDrainOf(b, bundle.addr, listeners, func(i int) string {
				if i < tc.filtered {
					return "?queue=wanted"
				}
				return ""
			})
			for s.Listeners() < listeners {
				runtime.Gosched()
			}
			text := strings.Repeat("x", 100)
			frame := len(feed.AppendFrame(nil, feed.OpText, []byte(text)))
			wanted := int64(0)
			catchUp := func(lag int64) {
				for wanted*int64(frame)-drain.slowest() > lag {
					if s.Listeners() < listeners {
						b.Fatal("listeners were closed")
					}
					runtime.Gosched()
				}
			}
			began := usage(b)
			for i := 0; b.Loop(); i++ {
				queue := "other"
				if i%tc.every == 0 {
					queue = "wanted"
					wanted++
				}
				s.feed.Append(int64(i), task.Result{ID: fmt.Sprint(i), Queue: queue, Text: text})
				if i%100 == 99 {
					catchUp(1 << 20 / int64(tc.every))
				}
			}
			catchUp(0)
			b.ReportMetric(float64((usage(b)-began).Microseconds())/float64(b.N), "cpu-µs/result")
		})
	}
}

// usage returns the processor time of this process.
func usage(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func setupBench(b *testing.B, cfg Config) (*Server, *bundle) {
	bundle := &bundle{feed: feed.New(feed.DefaultConfig()), source: new(source)}
	bundle.feed.GoLive()
	return bundle.start(b, cfg), bundle
}

// A drain is many listeners that throw away what they get. They are bare
// descriptors, so that what this process has in memory is the server's.
type drain struct {
	fds   []int
	total []atomic.Int64 // bytes by listener, without the greeting
	at    []atomic.Int64 // when the last ones came, in nanoseconds since the clock began
	clock time.Time
	close func()
}

var benchRound atomic.Int64 // each gets a source address of its own: closed ports rest for a minute

func newDrain(b *testing.B, addr string, n int) *drain {
	return newDrainOf(b, addr, n, func(int) string { return "" })
}

// newDrainOf gives each listener a query.
func newDrainOf(b *testing.B, addr string, n int, query func(int) string) *drain {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		b.Fatal(err)
	}
	d := &drain{total: make([]atomic.Int64, n), at: make([]atomic.Int64, n), clock: time.Now()}
	index := make(map[int]int)
	source := 2 + benchRound.Add(1)%250
	for i := range n {
		fd := dialBare(b, addr, [4]byte{127, 0, 0, byte(source)}, query(i))
		index[fd] = i
		d.fds = append(d.fds, fd)
		if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
			b.Fatal(err)
		}
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
					i := index[int(e.Fd)]
					d.at[i].Store(int64(time.Since(d.clock)))
					d.total[i].Add(int64(n))
				}
			}
		}
	}()
	d.close = sync.OnceFunc(func() {
		done.Store(true)
		<-ended // or it would poll whatever gets the descriptor next
		unix.Close(epoll)
		for _, fd := range d.fds {
			unix.Close(fd)
		}
		*d, index = drain{close: d.close}, nil // the test remembers to call this
	})
	b.Cleanup(func() { d.close() })
	return d
}

// needFiles has this process open n files, or skips.
func needFiles(b *testing.B, n int) {
	b.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	if limit.Cur >= uint64(n) {
		return
	}
	b.Skipf("%d files cannot be open at once, but %d", n, limit.Cur) // Go has raised it as far as it may
}

// dialBare listens from an address, and returns when it has been greeted.
func dialBare(b *testing.B, addr string, from [4]byte, query string) int {
	b.Helper()
	to := netip.MustParseAddrPort(addr)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	request := "GET /listen_results" + query + " HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1),
		unix.Bind(fd, &unix.SockaddrInet4{Addr: from}),
		unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}))
	if err == nil {
		_, err = unix.Write(fd, []byte(request))
	}
	var answer [1024]byte
	for n := 0; err == nil && !bytes.HasSuffix(answer[:n], []byte(wire.Greeting)); {
		var more int
		if more, err = unix.Read(fd, answer[n:]); more <= 0 && err == nil {
			err = io.ErrUnexpectedEOF
		}
		n += max(more, 0)
	}
	if err != nil {
		b.Fatalf("listen: %v", err)
	}
	return fd
}

// slowest returns how many bytes the slowest listener has got.
func (d *drain) slowest() int64 {
	slowest := d.total[0].Load()
	for i := range d.total {
		slowest = min(slowest, d.total[i].Load())
	}
	return slowest
}

// BenchmarkLatency appends one result at a time, when all have the one before,
// and reports after how long it is with half of the listeners, and with 99 of
// 100. In one case one more reads nothing all the while, and more has been sent
// than its buffers hold: with -benchtime 60s, for a minute.
func BenchmarkLatency(b *testing.B) {
	for _, tc := range []struct {
		listeners int
		stalled   bool
	}{{999, false}, {999, true}, {9900, false}} {
		name := fmt.Sprint(tc.listeners)
		if tc.stalled {
			name += "-and-one-stalled"
		}
		b.Run(name, func(b *testing.B) {
			needFiles(b, 2*tc.listeners+100)
			cfg := DefaultConfig()
			cfg.PingInterval, cfg.WriteTimeout = time.Hour, time.Hour // nobody here answers, and the stalled one is to stay
			s, bundle := setupBench(b, cfg)
			d := newDrain(b, bundle.addr, tc.listeners)
			log := s.feed.Log(feed.Text)
			start, offset := int64(log.End()), int64(0)
			took := hdrhistogram.New(1, time.Minute.Microseconds(), 3)
			one := func(text string) {
				offset++
				began := int64(time.Since(d.clock))
				s.feed.Append(offset, task.Result{ID: fmt.Sprint(offset), Text: text})
				for d.slowest() < int64(log.End())-start {
					<-time.After(100 * time.Microsecond)
				}
				for i := range d.at {
					if err := took.RecordValue((d.at[i].Load() - began) / 1000); err != nil {
						b.Fatal(err)
					}
				}
			}
			there := tc.listeners
			if tc.stalled {
				defer unix.Close(dialBare(b, bundle.addr, [4]byte{127, 0, 0, 1}, ""))
				there++
				for range 200 { // 12 MB
					one(strings.Repeat("x", 60_000))
				}
			}
			took.Reset()
			text := strings.Repeat("x", 100)
			for b.Loop() {
				one(text)
			}
			if n := s.Listeners(); n != there {
				b.Errorf("%d listeners at the end, want %d", n, there)
			}
			b.ReportMetric(float64(took.ValueAtQuantile(50))/1e3, "ms-p50")
			b.ReportMetric(float64(took.ValueAtQuantile(99))/1e3, "ms-p99")
			b.ReportMetric(float64(took.Max())/1e3, "ms-max")
		})
	}
}

// BenchmarkMemory has 9,900 listeners, as many as 20,000 open files allow, come
// and go, and reports what each takes of the process's resident memory in the
// first round, and how much more of it there is after the last round than after
// the first.
func BenchmarkMemory(b *testing.B) {
	const listeners, rounds = 9900, 10
	needFiles(b, 2*listeners+100)
	for b.Loop() {
		s, bundle := setupBench(b, DefaultConfig())
		empty := resident(b)
		var first, after, last int
		for round := range rounds {
			d := newDrain(b, bundle.addr, listeners)
			if round == 0 {
				first = resident(b)
			}
			d.close()
			for s.Listeners() > 0 {
				<-time.After(time.Millisecond)
			}
			last = resident(b)
			if round == 0 {
				after = last
			}
		}
		b.ReportMetric(float64(first-empty)/listeners, "B/listener")
		b.ReportMetric(float64(last-after)/(1<<10), "KiB-growth")
	}
}

// resident returns how much memory this process has, in bytes.
func resident(b *testing.B) int {
	debug.FreeOSMemory()
	var pages, resident int
	statm, err := os.ReadFile("/proc/self/statm")
	if err == nil {
		_, err = fmt.Sscan(string(statm), &pages, &resident)
	}
	if err != nil {
		b.Fatal(err)
	}
	return resident * os.Getpagesize()
}
