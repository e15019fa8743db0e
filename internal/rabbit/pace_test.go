package rabbit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/revq/revq/internal/task"
)

// publishLong publishes n results of a given length in bytes.
func (r *rig) publishLong(n, size int) {
	r.t.Helper()
	p := r.publisher()
	text := strings.Repeat("x", size)
	var answers []<-chan error
	for i := range n {
		answers = append(answers, p.PublishResult(task.Result{ID: fmt.Sprint("long-", i), Text: text, Done: time.Now()}))
	}
	for _, answer := range answers {
		if err := receive(r.t, "answer", answer); err != nil {
			r.t.Fatal(err)
		}
	}
}

// A stalled listener takes its first result, and then nothing more until
// resume is closed.
type stalled struct {
	first, resume chan struct{}
	ended         chan error
	took          int
}

// stall has a listener read the whole stream from the broker.
func (r *rig) stall(reader *Reader) *stalled {
	l := &stalled{make(chan struct{}), make(chan struct{}), make(chan error, 1), 0}
	all := errors.New("all")
	stop := r.run(func(ctx context.Context) {
		err := history(ctx, reader, -1, 0, visitor{
			Result: func(int64, task.Result) error {
				if l.took++; l.took > 1 {
					return nil
				}
				close(l.first)
				select {
				case <-l.resume:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			},
			Mark: func(int64, string) error { return nil },
			End:  func() error { return all },
		})
		if err == all {
			err = nil
		}
		l.ended <- err
	})
	r.t.Cleanup(stop)
	return l
}

// still waits until the broker's answers stand still, and returns how many bytes
// the clients were sent.
func (p *proxy) still() int64 {
	before := int64(-1)
	for same := 0; same < 10; same++ {
		<-time.After(50 * time.Millisecond)
		if now := p.relayed.Load(); now != before {
			before, same = now, 0
		}
	}
	return before
}

// The broker is not read faster than listeners take: what waits for those that
// take nothing is bounded in bytes, also in the kernel. When they go on, they
// get everything.
func TestHistoriesAreBoundInBytes(t *testing.T) {
	const listeners, kernel = 2, 1 << 20
	for _, tc := range []struct{ results, size int }{{200, 60_000}, {12, 1 << 20}} {
		t.Run(fmt.Sprint(tc.size), func(t *testing.T) {
			r := setup(t).declared()
			r.publishLong(tc.results, tc.size)
			proxy := r.proxy()
			reader := NewReader(r.cfg, 0, r.log)
			var all []*stalled
			for range listeners {
				all = append(all, r.stall(reader))
			}
			for _, l := range all {
				receive(t, "first result", l.first)
			}
			sent := proxy.still()
			t.Logf("%d KiB wait for each of %d listeners, of %d", sent/listeners>>10, listeners, tc.results*tc.size>>10)
			if limit := int64(historyShare + historyWindow + kernel); sent > listeners*limit {
				t.Errorf("more than %d KiB wait", limit>>10)
			}
			for _, l := range all {
				close(l.resume)
			}
			for _, l := range all {
				if err := receive(t, "end", l.ended); err != nil || l.took != tc.results {
					t.Errorf("%d of %d results: %v", l.took, tc.results, err)
				}
			}
		})
	}
}

// A session that waits for a slow listener is closed: the broker would do so
// itself, and log an error. The listener gets everything nevertheless, once.
func TestHistoriesOfSlowListenersArePaused(t *testing.T) {
	t.Parallel()
	const results = 100
	r := setup(t).declared()
	r.publishLong(results, 60_000)
	reader := NewReader(r.cfg, 0, r.log)
	reader.past.pause = 10 * time.Millisecond
	l := r.stall(reader)
	receive(t, "first result", l.first)
	eventually(t, "closed", func() error {
		if n := r.eval(`length([1 || C <- rabbit_networking:local_connections(), {client_properties, P} <-
			try rabbit_networking:connection_info(C, [client_properties]) catch exit:_ -> [] end,
			is_list(P), lists:member({<<"connection_name">>, longstr, <<"test history">>}, P)])`); n != "0" {
			return fmt.Errorf("%s connections", n)
		}
		return nil
	})
	close(l.resume)
	if err := receive(t, "end", l.ended); err != nil || l.took != results {
		t.Errorf("%d of %d results: %v", l.took, results, err)
	}
}

// Only one listener at a time reads a message that is longer than its share.
// The others go on when it is there.
func TestLongMessagesAreReadOneByOne(t *testing.T) {
	const results, size, middle, kernel = 2, 6 << 20, 3 << 20, 1 << 20
	r := setup(t).declared()
	r.publishLong(results, size)
	proxy := r.proxy()
	proxy.after.Store(middle)
	reader := NewReader(r.cfg, 0, r.log)
	one := r.stall(reader)
	close(one.resume)
	receive(t, "middle of a long message", proxy.stopped)
	other := r.stall(reader)
	close(other.resume)
	sent := proxy.still()
	t.Logf("%d KiB of a message of %d KiB wait for each of two", sent/2>>10, size>>10)
	if limit := int64(middle + historyShare + 2*historyWindow + 2*kernel); sent > limit {
		t.Errorf("%d KiB were sent, more than %d", sent>>10, limit>>10)
	}
	close(proxy.resume)
	for _, l := range []*stalled{one, other} {
		if err := receive(t, "end", l.ended); err != nil || l.took != results {
			t.Errorf("%d of %d results: %v", l.took, results, err)
		}
	}
}

// A pacedConn reads what it is granted, counts no pause as the peer's silence,
// and ends when it is closed.
func TestPacing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		c := pace(near)
		defer c.Close()
		go far.Write(make([]byte, 100))
		read := func(want int) {
			t.Helper()
			if n, err := io.ReadAtLeast(c, make([]byte, 200), want); n != want || err != nil {
				t.Fatalf("Read = %d, %v, want %d", n, err, want)
			}
		}
		c.begin(10)
		read(10)
		const patience = 15 * time.Second
		c.SetReadDeadline(time.Now().Add(patience))
		type answer struct {
			n   int
			err error
		}
		came := make(chan answer, 1)
		readOne := func() {
			go func() {
				n, err := c.Read(make([]byte, 200))
				came <- answer{n, err}
			}()
			synctest.Wait()
		}
		readOne()
		select {
		case got := <-came:
			t.Fatalf("read %d bytes without a grant", got.n)
		case <-c.starved:
		}
		time.Sleep(10 * patience) // the listener takes its time
		c.grant(5)
		if got := <-came; got.n != 5 || got.err != nil {
			t.Fatalf("Read = %+v", got)
		}
		c.grant(80)
		read(80)
		// A peer that is silent, although it may write, is noticed.
		c.grant(10)
		read(5)
		readOne()
		time.Sleep(10 * patience)
		if got := <-came; got.err == nil {
			t.Error("a silent peer was not noticed")
		}
		c.grant(0)
		readOne()
		c.Close()
		if got := <-came; !errors.Is(got.err, net.ErrClosed) {
			t.Errorf("Read = %v", got.err)
		}
	})
}
