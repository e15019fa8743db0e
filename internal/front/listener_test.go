package front

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"syscall"
	"testing"

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
