//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/daemon/daemontest"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/wire"
)

var (
	attackLong = flag.Bool("attack.long", false, "TestAttacks with 5,000 slow senders and 1,000 stalled readers, as for the table in internal/front/ATTACKS.md")
	attackCPUs = flag.String("attack.cpus", "", "the `PROCESSORS` of the attackers, as taskset has them; with taskset before the test, the daemons have others")
)

const (
	goodText     = 4 << 10 // characters of a text of the client that behaves
	goodInterval = 5 * time.Millisecond
)

// A served is what the well-behaved client saw.
type served struct {
	times   []time.Duration // from the first POST to 202, sorted
	refused []string        // why a text was not taken at once
	lost    int             // accepted texts whose results did not come
	cpu     float64         // processors that the daemons used
}

// at returns the time, in milliseconds, within which a part of the texts was
// accepted.
func (s *served) at(part float64) float64 {
	if len(s.times) == 0 {
		return 0
	}
	return s.times[int(part*float64(len(s.times)-1))].Seconds() * 1e3
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
	start, cpu := time.Now(), p.cpuTime(t)
	for i, end := 0, start.Add(d); time.Now().Before(end); i++ {
		<-ticker.C
		id := fmt.Sprintf("%s-%d", name, i)
		began := time.Now()
		got.refused = append(got.refused, p.post(t, i, id, text)...)
		got.times = append(got.times, time.Since(began))
		open[id] = true
	}
	got.cpu = float64(p.cpuTime(t)-cpu) / float64(time.Since(start))
	slices.Sort(got.times)
	for len(open) > 0 { // the attackers' texts may be before them
		select {
		case message, ok := <-p.listener.messages:
			if !ok {
				t.Fatalf("the listener that behaves was disconnected: %v", p.listener.err)
			}
			delete(open, parse(t, message).ID)
		case <-time.After(await.Patience):
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

// cpuTime returns for how long the daemons have used a processor.
func (p *guest) cpuTime(t *testing.T) (sum time.Duration) {
	t.Helper()
	for _, d := range []*daemontest.Daemon{p.api, p.socket} {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.Pid()))
		if err != nil {
			t.Fatal(err)
		}
		const tick = 10 * time.Millisecond // USER_HZ
		var user, system int64
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // from the third one on
		if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(user+system) * tick
	}
	return sum
}

// strangers is the process of attackers.
type strangers struct {
	hangUp io.Closer
	said   chan string
}

// startAttackers starts a siege and returns when nearly all attackers have come.
func startAttackers(t *testing.T, kind siege) *strangers {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	spec, err := json.Marshal(kind)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	if *attackCPUs != "" {
		cmd = exec.Command("taskset", "-c", *attackCPUs, self)
	}
	cmd.Env = append(os.Environ(), attackSpec+"="+string(spec))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &strangers{in, make(chan string)}
	go func() {
		defer close(s.said)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			select {
			case s.said <- lines.Text():
			case <-t.Context().Done():
			}
		}
	}()
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the attackers: %v", err)
		}
	})
	s.next(t, "come")
	return s
}

// next waits for the next line that the attackers say.
func (s *strangers) next(t *testing.T, what string) string {
	t.Helper()
	select {
	case line := <-s.said:
		return line
	case <-time.After(2 * await.Patience):
		t.Fatalf("the attackers did not %s", what)
		return ""
	}
}

// disperse ends the attack and returns what the attackers got.
func (s *strangers) disperse(t *testing.T) string {
	t.Helper()
	s.hangUp.Close()
	return s.next(t, "say what they got")
}

// besiege has attackers come, and compares what the client that behaves sees
// with its usual.
func (p *guest) besiege(t *testing.T, lasts time.Duration, kind siege) {
	t.Helper()
	memory := func() int64 { return residentBytes(t, p.api) + residentBytes(t, p.socket) }
	files := func() int { return openFiles(t, p.api) + openFiles(t, p.socket) }
	id := strings.ReplaceAll(kind.Name, " ", "-")
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
	strangers := startAttackers(t, kind)
	await.True(t, "others are let in", p.probe)
	got := p.behave(t, id, lasts)
	they := strangers.disperse(t)
	close(enough)
	await.Value(t, "end of the watch", watched)

	await.True(t, "the connections of the attackers are gone", func() bool { return files() <= filesBefore+10 })
	after := memory()
	if !daemontest.Race() {
		await.True(t, fmt.Sprintf("memory is given back: it was %d MB, at most %d MB", before/1e6, highest/1e6), func() bool {
			after = memory()
			return after < before+48<<20
		})
	}
	t.Logf("| %s | %d, %d | %s | %d → %d | %.1f → %.1f | %.1f → %.1f | %.0f → %.0f | %d | %d → %d → %d |", kind.Name, kind.N+kind.Readers, min(kind.N, kind.Addresses), they,
		2*len(usual.times), len(got.times), usual.at(0.5), got.at(0.5), usual.at(0.99), got.at(0.99), 100*usual.cpu, 100*got.cpu, len(got.refused), before/1e6, highest/1e6, after/1e6)
	if lost := usual.lost + got.lost; lost > 0 {
		t.Errorf("%s: %d accepted texts were lost", kind.Name, lost)
	}
	if len(usual.refused) > 0 || len(got.refused) > len(got.times)/10 {
		t.Errorf("%s: %d of %d texts of the client that behaves were refused at first, as with %.300q; usually %d", kind.Name, len(got.refused), len(got.times), got.refused, len(usual.refused))
	}
	if usually, now := usual.at(0.5), got.at(0.5); *attackLong && now > 2*usually {
		t.Errorf("%s: a text of the client that behaves takes %.1f ms, usually %.1f ms", kind.Name, now, usually)
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
	t.Log("| attack | attackers, addresses | they got | texts accepted | p50, ms | p99, ms | CPU, % | refused at first | memory, MB |")
	for _, kind := range []siege{
		{"heads that never end, of one address", senders, 1, s.apiSites, 0, nil},
		{"heads that never end", senders, 1000, s.apiSites, 0, nil},
		{"bodies that never end", senders, 1000, s.apiSites, 0, nil},
		{"chunked bodies that never end", senders, 1000, s.apiSites, 0, nil},
		{"connections that say nothing", senders, 1000, s.apiSites, 0, nil},
		{"headers without end", senders / 10, 30, s.apiSites, 0, nil},
		{"pipelined requests whose answers are not read", readers / 10, 10, s.apiSites, 0, nil},
		{"pipelined texts whose answers are not read", readers / 10, 10, s.apiSites, 0, nil},
		{"a connection for each request", readers / 10, 10, s.apiSites, 0, nil},
		{"listeners by websocket that read nothing", readers, 1000, sockets, 0, nil},
		{"event streams that are not read", readers, 1000, sockets, 0, nil},
		{"polls for results that nobody knows", readers, 1000, sockets, 0, nil},
		{"listeners of one address", readers, 1, sockets, 0, nil},
		{"listeners that send small frames", readers / 10, 10, sockets, 0, nil},
		{"listeners that ping and read nothing", readers / 10, 10, sockets, 0, nil},
		{"handshakes that never end", senders, 1000, sockets, 0, nil},
		{"heads that never end, and listeners that read nothing", senders, 1000, s.apiSites, readers, sockets},
	} {
		t.Run(kind.Name, func(t *testing.T) { p.besiege(t, lasts, kind) })
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
		{"TLS handshakes that never end", senders, 1000, s.apiSites, 0, nil},
		{"TLS handshakes that never begin", senders, 1000, s.apiSites, 0, nil},
		{"bytes that are not TLS", senders, 1000, s.apiSites, 0, nil},
	} {
		t.Run(kind.Name, func(t *testing.T) { p.besiege(t, lasts, kind) })
	}
}
