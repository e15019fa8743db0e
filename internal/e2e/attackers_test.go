//go:build linux

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/wire"
)

// attackers come from addresses of 127.1.0.0/16, which have the limits of
// strangers. They are a process of their own, so that what they use of the
// processors is not the test's.
type attackers struct {
	over    context.Context
	end     context.CancelFunc
	running sync.WaitGroup
	came    atomic.Int64 // how many have connected by now
	most    int64        // how many are nearly all of them

	mu  sync.Mutex
	got map[string]int // what the attackers got, and how many times
}

// attackSpec in the environment makes the test binary attackers: a siege as
// JSON.
const attackSpec = "ATTACK"

// runAttackers is the main function of the process that attacks until its standard
// input ends. It writes a line when nearly all attackers have come, and one that
// says what they got.
func runAttackers() {
	var s siege
	if err := json.Unmarshal([]byte(os.Getenv(attackSpec)), &s); err != nil {
		panic(err)
	}
	a := &attackers{got: make(map[string]int), most: max(1, int64(s.N+s.Readers)*9/10)}
	a.over, a.end = context.WithCancel(context.Background())
	a.join(s.N, s.Addresses, s.Sites, attacks[s.Name])
	a.join(s.Readers, s.Addresses, s.Listen, stall(upgrade))
	_, _ = io.Copy(io.Discard, os.Stdin)
	a.disperse()
	fmt.Println(a)
}

// disperse ends the attack.
func (a *attackers) disperse() {
	a.end()
	a.running.Wait()
}

func (a *attackers) note(what string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.got[what]++
}

// String says what the attackers got.
func (a *attackers) String() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []string
	for _, what := range slices.Sorted(maps.Keys(a.got)) {
		all = append(all, fmt.Sprintf("%s × %d", what, a.got[what]))
	}
	return strings.Join(all, ", ")
}

// An attack is what an attacker does with a connection. It returns when the
// connection is of no use any more; the attacker opens another one then.
type attack func(a *attackers, conn net.Conn)

// join adds n attackers, from a number of addresses.
func (a *attackers) join(n, addresses int, sites []string, do attack) {
	for i := range n {
		a.running.Go(func() {
			from := i % addresses
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, byte(from/200), byte(1+from%200))}, Timeout: await.Patience}
			for first := true; a.over.Err() == nil; first = false {
				if conn, err := d.DialContext(a.over, "tcp", sites[i%len(sites)]); err == nil {
					if first && a.came.Add(1) == a.most {
						fmt.Println("here")
					}
					hangUp := context.AfterFunc(a.over, func() { conn.Close() })
					do(a, conn)
					hangUp()
					conn.Close()
				}
				select {
				case <-a.over.Done():
				case <-time.After(time.Second): // before it retries
				}
			}
		})
	}
}

// hear reads what the server sends, and notes the status or how the connection
// ended.
func (a *attackers) hear(conn net.Conn) {
	defer conn.Close()
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	switch {
	case a.over.Err() != nil:
		a.note("kept to the end")
	case err != nil:
		a.note("closed")
	default:
		a.note(res.Status[:3])
	}
}

// drip sends head at once, and then unit each second.
func drip(head, unit string) attack {
	return func(a *attackers, conn net.Conn) {
		a.running.Go(func() { a.hear(conn) })
		for _, err := io.WriteString(conn, head); err == nil && a.over.Err() == nil; _, err = io.WriteString(conn, unit) {
			select {
			case <-a.over.Done():
			case <-time.After(time.Second):
			}
		}
	}
}

// flood sends head, and then unit as fast as it is taken, and reads nothing
// after the first answer.
func flood(head, unit string) attack {
	many := strings.Repeat(unit, 1+(32<<10)/len(unit))
	return func(a *attackers, conn net.Conn) {
		if _, err := io.WriteString(conn, head); err != nil {
			return
		}
		status := make([]byte, len("HTTP/1.1 200"))
		a.running.Go(func() {
			if _, err := io.ReadFull(conn, status); err == nil {
				a.note(string(status[9:]))
			}
		})
		for a.over.Err() == nil {
			if _, err := io.WriteString(conn, many); err != nil && a.over.Err() == nil {
				a.note("closed")
				return
			}
		}
		a.note("kept to the end")
	}
}

// stall sends a request, and reads nothing after the status of the answer.
func stall(request string) attack {
	return func(a *attackers, conn net.Conn) {
		_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
		if _, err := io.WriteString(conn, request); err != nil {
			return
		}
		status := make([]byte, len("HTTP/1.1 200"))
		_, err := io.ReadFull(conn, status)
		switch {
		case a.over.Err() != nil:
			a.note("kept to the end")
			return
		case err != nil:
			a.note("closed")
			return
		}
		a.note(string(status[9:]))
		if status[9] < '4' {
			<-a.over.Done()
		}
	}
}

// renew sends a request over one connection after the other, without a pause.
func renew(request string) attack {
	return func(a *attackers, first net.Conn) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: first.LocalAddr().(*net.TCPAddr).IP}, Timeout: await.Patience}
		for a.over.Err() == nil {
			conn, err := d.DialContext(a.over, "tcp", first.RemoteAddr().String())
			if err != nil {
				return
			}
			_ = conn.SetDeadline(time.Now().Add(await.Patience))
			if _, err := io.WriteString(conn, request); err == nil {
				a.hear(conn)
			}
			conn.Close()
		}
	}
}

// What attackers send.
const (
	postHead    = "POST " + wire.QueuePath + " HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
	slowHead    = postHead + "X-Slow: "
	slowBody    = postHead + "Content-Length: 60000\r\n\r\n"
	slowChunks  = postHead + "Transfer-Encoding: chunked\r\n\r\n"
	listenHead  = "GET " + wire.ListenPath + " HTTP/1.1\r\nHost: localhost\r\n"
	upgrade     = listenHead + "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
	eventStream = listenHead + "Accept: text/event-stream\r\n\r\n"
	poll        = "GET /results/nobody-knows?wait=5s HTTP/1.1\r\nHost: localhost\r\n\r\n"
	empty       = "\x81\x80\x00\x00\x00\x00" // a text frame without a text
	pingFrame   = "\x89\x80\x00\x00\x00\x00"
	clientHello = "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" // the first bytes of one
	healthProbe = "GET " + wire.HealthPath + " HTTP/1.1\r\nHost: localhost\r\n\r\n"
	shortText   = postHead + "Content-Length: 1\r\n\r\nx"
	headerLine  = "X-Much: " + "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n"
)

// A siege is a kind of attack, and with how many attackers.
type siege struct {
	Name         string // one of attacks
	N, Addresses int
	Sites        []string
	Readers      int      // that stall beside them
	Listen       []string // where they do so
}

// attacks are what each kind does with a connection.
var attacks = map[string]attack{
	"heads that never end, of one address":                  drip(slowHead, "x"),
	"heads that never end":                                  drip(slowHead, "x"),
	"bodies that never end":                                 drip(slowBody, "x"),
	"chunked bodies that never end":                         drip(slowChunks, "1\r\nx\r\n"),
	"connections that say nothing":                          drip("", ""),
	"headers without end":                                   flood(postHead, headerLine),
	"pipelined requests whose answers are not read":         flood(healthProbe, healthProbe),
	"pipelined texts whose answers are not read":            flood(shortText, shortText),
	"a connection for each request":                         renew(shortText),
	"listeners by websocket that read nothing":              stall(upgrade),
	"event streams that are not read":                       stall(eventStream),
	"polls for results that nobody knows":                   stall(poll),
	"listeners of one address":                              stall(upgrade),
	"listeners that send small frames":                      flood(upgrade, empty),
	"listeners that ping and read nothing":                  flood(upgrade, pingFrame),
	"handshakes that never end":                             drip(listenHead+"X-Slow: ", "x"),
	"heads that never end, and listeners that read nothing": drip(slowHead, "x"),
	"TLS handshakes that never end":                         drip(clientHello, "x"),
	"TLS handshakes that never begin":                       drip("", ""),
	"bytes that are not TLS":                                drip(strings.Repeat("x", 512), "x"),
}
