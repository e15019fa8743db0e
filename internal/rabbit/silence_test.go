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
	p, broker := &proxy{}, u.Host
	u.Host = ln.Addr().String()
	r.cfg.URLs = []string{u.String()}
	go func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
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
	in := bufio.NewReader(server)
	for {
		head, err := in.Peek(7)
		if err != nil {
			return
		}
		frame := make([]byte, 7+binary.BigEndian.Uint32(head[3:])+1)
		if _, err := io.ReadFull(in, frame); err != nil {
			return
		}
		if _, err := client.Write(frame); err != nil {
			return
		}
		if tag, ok := bytes.CutPrefix(frame[7:], consumeOK); ok && !bytes.HasPrefix(tag, mark) {
			<-time.After(time.Duration(p.hang.Swap(0)))
		}
	}
}
