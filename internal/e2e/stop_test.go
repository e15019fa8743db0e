//go:build linux

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/wire"
)

// A worker that is told to stop returns its task to the queue at once, and
// another one does it.
func TestWorkerStops(t *testing.T) {
	t.Parallel()
	s := start(t)
	l := s.listen(t, "json")
	first := s.startWorker(t)
	send(t, s.apiSites[0], "long", strings.Repeat("x", 300)) // 30 s
	await.True(t, "the worker has the task", func() bool { return s.workerUnacked(t) == "[1]" })
	s.startWorker(t, "--pause", "0s") // the task is done as soon as this worker has it
	began := time.Now()
	first.Signal(t, syscall.SIGTERM)
	l.collect(t, []string{"long"})
	result := time.Since(began)
	if status := first.Wait(t); status != 0 {
		t.Errorf("the worker ended with status %d, want 0", status)
	}
	exit := time.Since(began)
	if result > 15*time.Second || exit > 15*time.Second {
		t.Errorf("result after %v, exit after %v; want both within 15s of SIGTERM", result, exit)
	}
	t.Logf("after SIGTERM in a pause of 30s: result after %v, exit 0 after %v", result.Round(time.Millisecond), exit.Round(time.Millisecond))
	l.drainWith(t, s, "the-end")
}

// An API that is told to stop under load loses no task that it has accepted,
// and interrupts no request. Requests that come while none runs wait in
// systemd's sockets for the next one.
func TestAPIRestarts(t *testing.T) {
	t.Parallel()
	s := start(t)
	l := s.listen(t, "json")
	s.startWorker(t, "--pause", "0s")
	load := s.startLoad(t, 8)
	load.awaitAccepted(t, 200)
	stop := s.api.Terminate(t)
	before := load.accepted.Load()
	began := time.Now()
	s.api = s.startDaemon(t, "revq-api", s.apiSockets)
	load.awaitAccepted(t, before+200)
	again := time.Since(began)
	ids := load.stop()
	l.collect(t, ids)
	l.drainWith(t, s, "the-end")
	if n := load.failed.Load(); n > 0 {
		t.Errorf("%d requests were broken off, the last with: %v", n, load.lastError.Load())
	}
	if stop > 15*time.Second {
		t.Errorf("took %v to stop", stop)
	}
	t.Logf("API: exit 0 %v after SIGTERM under load; 200 more accepted %v after the next start; %d accepted in all, each result once; %d broken off; %d asked to come again (503)",
		stop.Round(time.Millisecond), again.Round(time.Millisecond), len(ids), load.failed.Load(), load.refused.Load())
}

// A load is a number of clients that post until they are stopped.
type load struct {
	accepted, refused, failed atomic.Int64
	lastError                 atomic.Value

	cancel  context.CancelFunc
	running sync.WaitGroup
	mu      sync.Mutex
	ids     []string // accepted
}

// startLoad starts n clients, each with a connection that it keeps, spread over
// the API's sites. What was not accepted is posted again with the same id.
func (s *system) startLoad(t *testing.T, n int) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel}
	t.Cleanup(func() { l.stop() })
	for i := range n {
		url := "http://" + s.apiSites[i%len(s.apiSites)] + wire.QueuePath
		client := &http.Client{Transport: &http.Transport{}, Timeout: await.Patience}
		l.running.Go(func() {
			defer client.CloseIdleConnections()
			for number := 0; ctx.Err() == nil; number++ {
				id := fmt.Sprintf("load-%d-%d", i, number)
				for ctx.Err() == nil && !l.post(client, url, id) {
				}
			}
		})
	}
	return l
}

// post reports whether the task was accepted.
func (l *load) post(client *http.Client, url, id string) bool {
	// No context: the last request of each client is answered, so that all
	// accepted tasks are known.
	res, err := client.Post(url, "application/json", strings.NewReader(submission(id, id)))
	if err == nil {
		_, err = io.Copy(io.Discard, res.Body)
		res.Body.Close()
	}
	switch {
	case err != nil:
		l.failed.Add(1)
		l.lastError.Store(err.Error())
		return false
	case res.StatusCode != http.StatusAccepted:
		l.refused.Add(1)
		l.lastError.Store(res.Status)
		// Far sooner than Retry-After says, so that every moment is tried.
		<-time.After(await.Every)
		return false
	}
	l.mu.Lock()
	l.ids = append(l.ids, id)
	l.mu.Unlock()
	l.accepted.Add(1)
	return true
}

func (l *load) awaitAccepted(t *testing.T, n int64) {
	t.Helper()
	await.True(t, fmt.Sprintf("%d tasks are accepted", n), func() bool { return l.accepted.Load() >= n })
}

// stop stops the clients and returns the ids of what was accepted.
func (l *load) stop() []string {
	l.cancel()
	l.running.Wait()
	return l.ids
}

// A socket server that is told to stop tells its listeners, and the next one
// accepts them.
func TestSocketRestarts(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.startWorker(t, "--pause", "0s")
	listeners := []*listener{s.listen(t, "text"), s.listen(t, "json"), s.listen(t, "json")}
	send(t, s.apiSites[0], "before", "before")
	for _, l := range listeners {
		l.next(t)
	}
	took := s.socket.Terminate(t)
	for i, l := range listeners {
		if code := l.closeCode(t); code != wire.CloseRestart {
			t.Errorf("listener %d was closed with %d, want 1012", i, code)
		}
	}
	if took > 15*time.Second {
		t.Errorf("took %v to stop", took)
	}
	t.Logf("socket: exit 0 %v after SIGTERM, %d listeners closed with 1012", took.Round(time.Millisecond), len(listeners))

	s.socket = s.startDaemon(t, "revq-socket", s.socketSockets)
	l := s.listen(t, "json") // connects while no server runs, and waits
	s.awaitReadyz(t, http.StatusOK)
	send(t, s.apiSites[0], "after", "after")
	m := l.nextResult(t)
	if m.ID == "before" { // the stream finds the time of the start no closer than a chunk
		t.Log("a result from just before the restart came again")
		m = l.nextResult(t)
	}
	if m.ID != "after" {
		t.Errorf("got %+v, want the result that came after the restart", m)
	}
}

// No result is lost or repeated when connections to the broker are cut again
// and again.
func TestConnectionsCut(t *testing.T) {
	t.Parallel()
	s := start(t)
	listeners := []*listener{s.listen(t, "json"), s.listen(t, "json")}
	s.startWorker(t, "--pause", "0s")
	s.startWorker(t, "--pause", "0s")
	load := s.startLoad(t, 4)
	load.awaitAccepted(t, 100)
	const cuts = 3
	closed := 0
	for range cuts {
		closed += rabbittest.CloseConnections(t, s.node, s.url, "")
		load.awaitAccepted(t, load.accepted.Load()+100)
	}
	ids := load.stop()
	for _, l := range listeners {
		l.collect(t, ids)
	}
	send(t, s.apiSites[0], "the-end", "the end")
	for _, l := range listeners {
		l.collect(t, []string{"the-end"})
	}
	if n := load.failed.Load(); n > 0 {
		t.Errorf("%d requests were broken off, the last with: %v", n, load.lastError.Load())
	}
	if closed < 2*cuts {
		t.Errorf("%d connections were cut, want more", closed)
	}
	t.Logf("%d connections cut in %d rounds: all %d results once at each of %d listeners; %d posts answered 503 and repeated",
		closed, cuts, len(ids), len(listeners), load.refused.Load())
}
