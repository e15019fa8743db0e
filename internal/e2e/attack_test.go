//go:build linux

package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/daemon/daemontest"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/wire"
)

var attackLong = flag.Bool("attack.long", false, "TestAttacks with 5,000 slow senders and 1,000 stalled readers, as for the table in internal/front/ATTACKS.md")

// attackers come from addresses of 127.1.0.0/16, which have the limits of
// strangers.
type attackers struct {
	over    context.Context
	end     context.CancelFunc
	running sync.WaitGroup
	came    atomic.Int64 // how many have connected by now

	mu  sync.Mutex
	got map[string]int // what the attackers got, and how many times
}

func newAttackers(t *testing.T) *attackers {
	a := &attackers{got: make(map[string]int)}
	a.over, a.end = context.WithCancel(t.Context())
	return a
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
					if first {
						a.came.Add(1)
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
	postHead     = "POST " + wire.QueuePath + " HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
	slowHead     = postHead + "X-Slow: "
	slowBody     = postHead + "Content-Length: 60000\r\n\r\n"
	slowChunks   = postHead + "Transfer-Encoding: chunked\r\n\r\n"
	listenHead   = "GET " + wire.ListenPath + " HTTP/1.1\r\nHost: localhost\r\n"
	upgrade      = listenHead + "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
	eventStream  = listenHead + "Accept: text/event-stream\r\n\r\n"
	poll         = "GET /results/nobody-knows?wait=30s HTTP/1.1\r\nHost: localhost\r\n\r\n"
	empty        = "\x81\x80\x00\x00\x00\x00" // a text frame without a text
	pingFrame    = "\x89\x80\x00\x00\x00\x00"
	clientHello  = "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" // the first bytes of one
	healthProbe  = "GET " + wire.HealthPath + " HTTP/1.1\r\nHost: localhost\r\n\r\n"
	shortText    = postHead + "Content-Length: 1\r\n\r\nx"
	headerLine   = "X-Much: " + "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n"
	goodText     = 4 << 10 // characters of a text of the client that behaves
	goodInterval = 5 * time.Millisecond
)

// A served is what the well-behaved client saw.
type served struct {
	times   []time.Duration // from the first POST to 202, sorted
	refused []string        // why a text was not taken at once
	lost    int             // accepted texts whose results did not come
}

func (s *served) at(part float64) time.Duration {
	if len(s.times) == 0 {
		return 0
	}
	return s.times[int(part*float64(len(s.times)-1))].Round(10 * time.Microsecond)
}

// A guest is the client that behaves: it posts texts one after the other, every
// other one over a connection of its own, and listens for their results.
type guest struct {
	*system
	scheme      string
	kept, fresh *http.Client
	listener    *listener
}

func (s *system) newGuest(t *testing.T, scheme string, roots *x509.CertPool) *guest {
	client := func(keep bool) *http.Client {
		transport := &http.Transport{DisableKeepAlives: !keep, TLSClientConfig: &tls.Config{RootCAs: roots}}
		t.Cleanup(transport.CloseIdleConnections)
		return &http.Client{Timeout: await.Patience, Transport: transport}
	}
	return &guest{s, scheme, client(true), client(false), s.listen(t, "json")}
}

// post posts a text, again after a second if it was refused.
func (p *guest) post(t *testing.T, i int, id, text string) (refused []string) {
	t.Helper()
	by := p.kept
	if i%2 == 1 {
		by = p.fresh
	}
	for range 10 {
		res, err := by.Post(p.scheme+"://"+p.apiSites[i/2%2]+wire.QueuePath, "application/json", strings.NewReader(submission(id, text)))
		if err == nil {
			body, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if res.StatusCode == http.StatusAccepted {
				return refused
			}
			err = fmt.Errorf("%d %s", res.StatusCode, body)
		}
		refused = append(refused, err.Error())
		select {
		case <-time.After(time.Second): // as Retry-After says
		case <-t.Context().Done():
			return refused
		}
	}
	t.Fatalf("the client that behaves is not served: %.2000q", refused)
	return nil
}

// behave posts a text each goodInterval, and waits for the results.
func (p *guest) behave(t *testing.T, name string, d time.Duration) (got served) {
	t.Helper()
	text := strings.Repeat("x", goodText)
	open := make(map[string]bool)
	ticker := time.NewTicker(goodInterval)
	defer ticker.Stop()
	for i, end := 0, time.Now().Add(d); time.Now().Before(end); i++ {
		<-ticker.C
		id := fmt.Sprintf("%s-%d", name, i)
		began := time.Now()
		got.refused = append(got.refused, p.post(t, i, id, text)...)
		got.times = append(got.times, time.Since(began))
		open[id] = true
	}
	slices.Sort(got.times)
	for late := time.After(await.Patience); len(open) > 0; {
		select {
		case message, ok := <-p.listener.messages:
			if !ok {
				t.Fatalf("the listener that behaves was disconnected: %v", p.listener.err)
			}
			delete(open, parse(t, message).ID)
		case <-late:
			got.lost = len(open)
			return got
		}
	}
	return got
}

// probe reports whether all sites let in a new client.
func (p *guest) probe() bool {
	for _, site := range p.apiSites {
		if res, err := p.fresh.Get(p.scheme + "://" + site + wire.HealthPath); err != nil || res.Body.Close() != nil || res.StatusCode != http.StatusOK {
			return false
		}
	}
	return true
}

// openFiles returns how many descriptors a daemon has.
func openFiles(t *testing.T, d *daemontest.Daemon) int {
	t.Helper()
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// A siege is a kind of attack, and with how many attackers.
type siege struct {
	name         string
	n, addresses int
	sites        []string
	do           attack
	readers      int // that stall beside them
}

// besiege has attackers come, and compares what the client that behaves sees
// with its usual.
func (p *guest) besiege(t *testing.T, lasts time.Duration, kind siege) {
	t.Helper()
	memory := func() int64 { return residentBytes(t, p.api) + residentBytes(t, p.socket) }
	files := func() int { return openFiles(t, p.api) + openFiles(t, p.socket) }
	id := strings.ReplaceAll(kind.name, " ", "-")
	usual := p.behave(t, id+"-usual", lasts/2)
	before, filesBefore := memory(), files()

	highest := before
	watched, enough := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-enough:
				return
			case <-ticker.C:
				highest = max(highest, memory())
			}
		}
	}()
	a := newAttackers(t)
	a.join(kind.n, kind.addresses, kind.sites, kind.do)
	a.join(kind.readers, kind.addresses, []string{p.socketSite}, stall(upgrade))
	await.True(t, "the attackers have come, and others are let in", func() bool {
		return a.came.Load() >= int64(kind.n+kind.readers)*9/10 && p.probe()
	})
	got := p.behave(t, id, lasts)
	a.disperse()
	close(enough)
	<-watched

	await.True(t, "the connections of the attackers are gone", func() bool { return files() <= filesBefore+10 })
	after := memory()
	if !daemontest.Race() {
		await.True(t, fmt.Sprintf("memory is given back: it was %d MB, at most %d MB", before/1e6, highest/1e6), func() bool {
			after = memory()
			return after < before+48<<20
		})
	}
	t.Logf("| %s | %d, %d | %v | %d, %d | %v, %v | %v, %v | %d | %d, %d, %d |", kind.name, kind.n+kind.readers, min(kind.n, kind.addresses), a,
		2*len(usual.times), len(got.times), usual.at(0.5), got.at(0.5), usual.at(0.99), got.at(0.99), len(got.refused), before/1e6, highest/1e6, after/1e6)
	if lost := usual.lost + got.lost; lost > 0 {
		t.Errorf("%s: %d accepted texts were lost", kind.name, lost)
	}
	if len(usual.refused) > 0 || len(got.refused) > len(got.times)/10 {
		t.Errorf("%s: %d of %d texts of the client that behaves were refused at first, as with %.300q; usually %d", kind.name, len(got.refused), len(got.times), got.refused, len(usual.refused))
	}
	if usually, now := usual.at(0.5), got.at(0.5); *attackLong && now > 2*usually {
		t.Errorf("%s: a text of the client that behaves takes %v, usually %v", kind.name, now, usually)
	}
}

// size returns how many attackers there are, how long they stay, and the limits
// of the daemons.
func (s *system) size(t *testing.T) (senders, readers int, lasts time.Duration, apiLimits, socketLimits []string) {
	// The attackers are strangers, and results that are kept are no growth.
	strangers, kept := "--unlimited-address=192.0.2.1", "--keep-bytes=1048576"
	if *attackLong {
		return 5000, 1000, 20 * time.Second, []string{strangers}, []string{strangers, kept}
	}
	if testing.Short() {
		t.Skip("slow")
	}
	t.Parallel()
	// Fewer places than there are attackers, for an address and for all.
	return 150, 50, 2 * time.Second, []string{strangers, "--address-connections=50", "--max-connections=60"},
		[]string{strangers, kept, "--max-handshakes=60", "--address-listeners=20", "--write-timeout=1s", "--ping-interval=1s"}
}

// While strangers attack, a client that behaves is served as usual, and
// afterwards the daemons hold no more than before.
func TestAttacks(t *testing.T) {
	s := prepare(t, rabbittest.Shared(t))
	senders, readers, lasts, apiLimits, socketLimits := s.size(t)
	s.api = s.startDaemon(t, "revq-api", s.apiSockets, apiLimits...)
	s.socket = s.startDaemon(t, "revq-socket", s.socketSockets, socketLimits...)
	s.api.WaitReady(t)
	s.socket.WaitReady(t)
	s.startWorker(t, "--pause", "0s", "--concurrency", "50")
	p := s.newGuest(t, "http", nil)
	sockets := []string{s.socketSite}
	p.behave(t, "first", lasts)
	t.Log("| attack | attackers, addresses | they got | accepted: usual, meanwhile | p50 | p99 | refused at first | memory, MB: before, highest, after |")
	for _, kind := range []siege{
		{"heads that never end, of one address", senders, 1, s.apiSites, drip(slowHead, "x"), 0},
		{"heads that never end", senders, 1000, s.apiSites, drip(slowHead, "x"), 0},
		{"bodies that never end", senders, 1000, s.apiSites, drip(slowBody, "x"), 0},
		{"chunked bodies that never end", senders, 1000, s.apiSites, drip(slowChunks, "1\r\nx\r\n"), 0},
		{"connections that say nothing", senders, 1000, s.apiSites, drip("", ""), 0},
		{"headers without end", senders / 10, 30, s.apiSites, flood(postHead, headerLine), 0},
		{"pipelined requests whose answers are not read", readers / 10, 10, s.apiSites, flood(healthProbe, healthProbe), 0},
		{"pipelined texts whose answers are not read", readers / 10, 10, s.apiSites, flood(shortText, shortText), 0},
		{"a connection for each request", readers / 10, 10, s.apiSites, renew(shortText), 0},
		{"listeners by websocket that read nothing", readers, 1000, sockets, stall(upgrade), 0},
		{"event streams that are not read", readers, 1000, sockets, stall(eventStream), 0},
		{"polls for results that nobody knows", readers, 1000, sockets, stall(poll), 0},
		{"listeners of one address", readers, 1, sockets, stall(upgrade), 0},
		{"listeners that send small frames", readers / 10, 10, sockets, flood(upgrade, empty), 0},
		{"listeners that ping and read nothing", readers / 10, 10, sockets, flood(upgrade, pingFrame), 0},
		{"handshakes that never end", senders, 1000, sockets, drip(listenHead+"X-Slow: ", "x"), 0},
		{"heads that never end, and listeners that read nothing", senders, 1000, s.apiSites, drip(slowHead, "x"), readers},
	} {
		t.Run(kind.name, func(t *testing.T) { p.besiege(t, lasts, kind) })
	}
}

// TLS handshakes that never end do not keep out those that do.
func TestTLSAttacks(t *testing.T) {
	s := prepare(t, rabbittest.Shared(t))
	senders, _, lasts, apiLimits, socketLimits := s.size(t)
	dir := t.TempDir()
	daemontest.Certify(t, dir)
	cert, err := os.ReadFile(filepath.Join(dir, "tls-cert"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(cert)
	s.api = s.startDaemon(t, "revq-api", s.apiSockets, append(apiLimits, "--tls-cert", filepath.Join(dir, "tls-cert"), "--tls-key", filepath.Join(dir, "tls-key"))...)
	s.socket = s.startDaemon(t, "revq-socket", s.socketSockets, socketLimits...)
	s.api.WaitReady(t)
	s.socket.WaitReady(t)
	s.startWorker(t, "--pause", "0s", "--concurrency", "50")
	p := s.newGuest(t, "https", roots)
	p.behave(t, "first", lasts)
	for _, kind := range []siege{
		{"TLS handshakes that never end", senders, 1000, s.apiSites, drip(clientHello, "x"), 0},
		{"TLS handshakes that never begin", senders, 1000, s.apiSites, drip("", ""), 0},
		{"bytes that are not TLS", senders, 1000, s.apiSites, drip(strings.Repeat("x", 512), "x"), 0},
	} {
		t.Run(kind.name, func(t *testing.T) { p.besiege(t, lasts, kind) })
	}
}
