package front

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/valyala/fasthttp/fasthttputil"
)

// shortListener runs out of file descriptors once.
type shortListener struct {
	net.Listener
	failed bool
}

func (l *shortListener) Accept() (net.Conn, error) {
	if !l.failed {
		l.failed = true
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return l.Listener.Accept()
}

func TestAcceptOutlivesAShortage(t *testing.T) {
	t.Parallel()
	memory := fasthttputil.NewInmemoryListener()
	ln := &listener{Listener: &shortListener{Listener: memory}, log: slog.New(slog.DiscardHandler), maxConnections: 1, maxHeader: 1 << 10, total: new(gauge), clients: newClients(&App{}), open: make(map[*conn]struct{})}
	go func() {
		if c, err := memory.Dial(); err == nil {
			c.Close()
		}
	}()
	if _, err := ln.Accept(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(ln.Close(), ln.Close()); err != nil {
		t.Errorf("closing twice: %v", err)
	}
	if _, err := ln.Accept(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("after closing: %v", err)
	}
}

// Who leaves when all places are taken depends on how long each has waited for a
// request, and on whether it has had one.
func TestMakeRoom(t *testing.T) {
	t.Parallel()
	type place struct {
		name  string
		used  bool
		waits time.Duration // 0: its request is being handled
	}
	const short, long = requestPatience / 2, 2 * requestPatience
	for name, tc := range map[string]struct {
		open []place
		want string // who leaves
	}{
		"all are handled":                   {[]place{{"a", true, 0}, {"b", false, 0}}, ""},
		"nobody has waited long":            {[]place{{"a", true, short}, {"b", false, short}}, ""},
		"the silent one that waited longer": {[]place{{"a", false, long}, {"b", false, long + 1}, {"c", false, short}}, "b"},
		"the used one that waited longer":   {[]place{{"a", true, long}, {"b", true, long + 1}, {"c", true, 0}}, "b"},
		"a silent one before a used one":    {[]place{{"a", true, long + 1}, {"b", false, long}}, "b"},
		"a used one stays for a young one":  {[]place{{"a", true, long}, {"b", false, short}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			now := time.Now()
			ln := &listener{open: make(map[*conn]struct{})}
			names := make(map[*conn]string)
			for _, p := range tc.open {
				end, _ := net.Pipe()
				c := &conn{Conn: end, from: ln}
				c.used.Store(p.used)
				if p.waits > 0 {
					c.waitingSince.Store(now.Add(-p.waits).UnixNano())
				}
				ln.open[c], names[c] = struct{}{}, p.name
			}
			if got := ln.makeRoom(now); got != (tc.want != "") {
				t.Errorf("made room: %v", got)
			}
			for c, name := range names {
				if _, stays := ln.open[c]; stays == (name == tc.want) {
					t.Errorf("%s stays: %v", name, stays)
				}
				if left := c.waitingSince.Load() == evicted; left != (name == tc.want) {
					t.Errorf("%s was told to end: %v", name, left)
				}
			}
		})
	}
}
