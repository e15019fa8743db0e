package rabbit

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/task"
)

// A broker that hangs just after it has agreed to send results is not taken for
// one with an empty stream.
func TestSilenceIsNotTheEnd(t *testing.T) {
	t.Parallel()
	const hang = time.Second

	t.Run("of a reader that goes on", func(t *testing.T) {
		t.Parallel()
		r := setup(t).declared()
		p := r.publisher()
		publishResults(t, p, 0, 10)
		proxy := r.proxy()
		f, _ := r.followUntil(NewReader(r.cfg, everything, r.log))
		last := inOrder(t, f.results, 0, 10, -1)
		receive(t, "end of the backlog", f.live)
		proxy.hang.Store(int64(hang))
		before := p.lanes[0].pipe.Load()
		rabbittest.CloseConnections(t, r.node, r.url, "")
		eventually(t, "connected again", func() error {
			if p.lanes[0].pipe.Load() == before {
				return errors.New("the connection has not been missed yet")
			}
			return p.Ready()
		})
		publishResults(t, p, 10, 20)
		inOrder(t, f.results, 10, 20, last)
		if proxy.hang.Load() != 0 {
			t.Error("nothing hung")
		}
		select {
		case reason := <-f.gaps:
			t.Errorf("told of a gap: %s", reason)
		default:
		}
	})

	t.Run("of the history", func(t *testing.T) {
		t.Parallel()
		r := setup(t).declared()
		publishResults(t, r.publisher(), 0, 1)
		proxy := r.proxy()
		proxy.hang.Store(int64(hang))
		found, missed := errors.New("found"), errors.New("missed")
		err := history(t.Context(), NewReader(r.cfg, 0, r.log), 0, 0, visitor{
			Result: func(int64, task.Result) error { return found }, End: func() error { return missed },
		})
		if err != found || proxy.hang.Load() != 0 {
			t.Errorf("History = %v, want %v after a while", err, found)
		}
	})
}

// A proxy lies between the rig's clients and the broker.
type proxy struct {
	// hang is how long the broker seems to hang once it has sent the next
	// basic.consume-ok of the results; 0 afterwards.
	hang atomic.Int64

	// late is how much later than the broker sends it a connection gets the
	// first message of the results.
	late atomic.Int64

	// relayed is how many bytes the clients were sent.
	relayed atomic.Int64

	// The first connection that has sent its client more than after bytes, if
	// that is not 0, stops there. It closes stopped, and goes on when resume
	// is closed.
	after           atomic.Int64
	isStopped       atomic.Bool
	stopped, resume chan struct{}
}

// proxy makes new connections with the rig's Config go through a proxy.
func (r *rig) proxy() *proxy {
	r.t.Helper()
	u, err := url.Parse(r.url)
	if err != nil {
		r.t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { ln.Close() })
	p, broker := &proxy{stopped: make(chan struct{}), resume: make(chan struct{})}, u.Host
	u.Host = ln.Addr().String()
	r.cfg.URLs = []string{u.String()}
	go func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			// What a client does not read is not to wait in the kernel.
			client.(*net.TCPConn).SetWriteBuffer(128 << 10)
			server, err := net.Dial("tcp", broker)
			if err != nil {
				client.Close()
				continue
			}
			go func() {
				io.Copy(server, client)
				server.Close()
			}()
			go func() {
				p.pass(client, server)
				client.Close()
			}()
		}
	}()
	return p
}

// pass copies what the broker sends, frame by frame. A frame of AMQP 0-9-1 has
// a type, a channel, a size, a payload and an end.
func (p *proxy) pass(client io.Writer, server io.Reader) {
	consumeOK, mark := []byte("\x00\x3c\x00\x15"), []byte("\x09revq-mark") // class, method; consumer tag
	deliver := []byte("\x00\x3c\x00\x3c\x0brevq-socket")
	isLate := false
	in := bufio.NewReader(server)
	for sent := int64(0); ; {
		if p.after.Load() > 0 && sent > p.after.Load() && p.isStopped.CompareAndSwap(false, true) {
			close(p.stopped)
			<-p.resume
		}
		head, err := in.Peek(7)
		if err != nil {
			return
		}
		frame := make([]byte, 7+binary.BigEndian.Uint32(head[3:])+1)
		if _, err := io.ReadFull(in, frame); err != nil {
			return
		}
		if bytes.HasPrefix(frame[7:], deliver) && !isLate {
			isLate = true
			<-time.After(time.Duration(p.late.Load()))
		}
		for rest := frame; len(rest) > 0; {
			n, err := client.Write(rest[:min(len(rest), 32<<10)])
			if err != nil {
				return
			}
			rest, sent = rest[n:], sent+int64(n)
			p.relayed.Add(int64(n))
		}
		if tag, ok := bytes.CutPrefix(frame[7:], consumeOK); ok && !bytes.HasPrefix(tag, mark) {
			<-time.After(time.Duration(p.hang.Swap(0)))
		}
	}
}
