//go:build linux

package front_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/daemon/daemontest"
)

// noBroker is where nothing listens: a front can say so.
const noBroker = "REVQ_AMQP_URL=amqp://user:geheim@127.0.0.1:1/"

// A front that may have few open files says so at the start, waits when they
// are used up, closes nothing that it has, and serves again.
func TestFewOpenFiles(t *testing.T) {
	t.Parallel()
	for name, setting := range map[string]string{"revq-api": "--max-connections", "revq-socket": "--max-listeners"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ln, addr := daemontest.Listen(t)
			d := daemontest.Start(t, daemontest.Config{
				Path: daemontest.Binary(t, name), Env: []string{noBroker},
				Sockets: []daemontest.Socket{ln}, OpenFiles: 48,
			})
			d.WaitReady(t)
			if !strings.Contains(d.Log(), "setting="+setting+" ") || !strings.Contains(d.Log(), "now=24 open_files=48") {
				t.Error("it has not said that the limit is lower")
			}
			s := site{addr: addr}
			if name == "revq-socket" {
				s.front = "socket"
			}
			kept := s.dial(t)
			keep := bufio.NewReader(kept)
			request, status := get+"\r\n", 200
			if s.front == "socket" {
				request, status = handshake+"\r\n", 101
			}
			if _, err := io.WriteString(kept, request); err != nil {
				t.Fatal(err)
			}
			read(t, keep).check(t, status, "")

			var many []net.Conn
			for range 60 {
				many = append(many, s.dial(t))
			}
			d.WaitLog(t, "cannot accept connections")
			for _, c := range many {
				c.Close()
			}
			// Some of those that are gone may still have their places.
			for deadline := time.Now().Add(patience); ; {
				c := s.dial(t)
				if _, err := io.WriteString(c, get+"\r\n"); err != nil {
					t.Fatal(err)
				}
				if got := read(t, bufio.NewReader(c)); got.StatusCode == http.StatusOK {
					break
				} else if got.StatusCode != http.StatusServiceUnavailable || time.Now().After(deadline) {
					t.Fatalf("status %d %s", got.StatusCode, got.body)
				}
			}
			// What was there before is still there.
			if s.front == "socket" {
				request = "\x89\x80\x00\x00\x00\x00" // a ping
			}
			if _, err := io.WriteString(kept, request); err != nil {
				t.Fatal(err)
			}
			if s.front == "socket" {
				awaitPong(t, keep)
			} else {
				read(t, keep).check(t, status, "")
			}
		})
	}
}

// awaitPong skips the greeting.
func awaitPong(t *testing.T, r *bufio.Reader) {
	t.Helper()
	for {
		op, err := r.ReadByte()
		if err != nil {
			t.Fatal(err)
		}
		length, err := r.ReadByte()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Discard(int(length)); err != nil {
			t.Fatal(err)
		}
		if op&0xf == 0xa {
			return
		}
	}
}
