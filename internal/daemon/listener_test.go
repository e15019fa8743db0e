package daemon

import (
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/liveness"
)

// A listener from which nobody takes connections is noticed if there was one to
// take, not if none comes.
func TestListenerHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		connections := make(chan net.Conn)
		ln := &listener{chanListener(connections), liveness.New("taking connections", time.Minute)}
		accepted := make(chan net.Conn)
		go func() {
			c, _ := ln.Accept()
			accepted <- c
			ln.Accept() // waits for ever
		}()
		check := func(what string, hangs bool) {
			t.Helper()
			<-time.After(time.Hour) // of the bubble's clock: it takes no time
			if err := ln.loop.Alive(); (err != nil) != hangs {
				t.Errorf("%s: %v", what, err)
			}
		}
		check("no connection comes", false)
		connections <- ours
		check("the server is stuck with a connection", true)
		await.Value(t, "connection", accepted).Close()
		check("it has taken the connection and waits for the next one", false)
		close(connections)
	})
}

type chanListener chan net.Conn

func (l chanListener) Accept() (net.Conn, error) {
	if c, ok := <-l; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (l chanListener) Close() error   { return nil }
func (l chanListener) Addr() net.Addr { return &net.TCPAddr{} }
