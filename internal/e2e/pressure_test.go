//go:build linux

package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/rabbit/rabbittest"
)

// A full queue refuses more tasks, and keeps what it has.
func TestQueueFull(t *testing.T) {
	t.Parallel()
	const limit = 100
	s := prepare(t, rabbittest.Shared(t))
	s.revq(t, "setup", "--max-tasks", strconv.Itoa(limit))
	s.startFronts(t)
	s.awaitReadyz(t, http.StatusOK)
	l := s.listen(t, "json")
	var accepted []string
	for i, id := range names("task", limit+10) {
		a := post(t, s.apiSites[i%2], "application/json", submission(id, "abcdef"))
		switch {
		case a.status == http.StatusAccepted:
			accepted = append(accepted, id)
		case i < limit:
			t.Errorf("text %d: %d %s", i+1, a.status, a.body)
		default:
			if err := checkRefused(a, http.StatusServiceUnavailable); err != nil {
				t.Errorf("text %d: %v", i+1, err)
			}
			if !strings.Contains(a.body, `"id":"`+id+`"`) {
				t.Errorf("answer %s, want the id", a.body)
			}
		}
	}
	t.Logf("%d of a limit of %d are accepted", len(accepted), limit)
	if len(accepted) != limit {
		t.Errorf("%d are accepted, want %d", len(accepted), limit)
	}
	if n := rabbittest.QueueLength(t, s.node, s.url, "revq.tasks"); n != len(accepted) {
		t.Errorf("%d tasks wait, want the %d accepted", n, len(accepted))
	}
	s.startWorker(t, "--pause", "0s")
	l.collect(t, accepted)
	// There is room again, and what was refused is not in the queue.
	await.True(t, "texts are accepted", func() bool {
		return post(t, s.apiSites[0], "application/json", submission("the-end", "x")).status == http.StatusAccepted
	})
	l.collect(t, []string{"the-end"})
}

// When as many texts as allowed are in flight, because the broker confirms
// none, the next ones are refused at once.
func TestTooManyInFlight(t *testing.T) {
	t.Parallel()
	const places, texts = 4, 10
	n := rabbittest.StartNode(t)
	s := prepare(t, n)
	s.api = s.startDaemon(t, "revq-api", s.apiSockets, "--max-in-flight", strconv.Itoa(places), "--confirm-timeout", "5s")
	s.awaitAPI(t)
	resume := s.suspendBroker(t)
	answers := make(chan answer, texts)
	for i := range texts {
		go func() { answers <- post(t, s.apiSites[i%2], "text/plain", "abcdef") }()
	}
	var got []int
	for range texts {
		a := <-answers
		if err := checkRefused(a, a.status); err != nil {
			t.Error(err)
		}
		got = append(got, a.status)
	}
	want := append(slices.Repeat([]int{http.StatusTooManyRequests}, texts-places), slices.Repeat([]int{http.StatusServiceUnavailable}, places)...)
	if !slices.Equal(got, want) {
		t.Errorf("answered %d, want %d", got, want)
	}
	resume()
	await.True(t, "texts are accepted", func() bool {
		return post(t, s.apiSites[0], "text/plain", "abcdef").status == http.StatusAccepted
	})
}

// awaitAPI waits until the API's second site accepts texts. An API that has
// started is ready all the same: it tells clients to try again.
func (s *system) awaitAPI(t *testing.T) {
	t.Helper()
	s.api.WaitReady(t)
	await.True(t, "a text is accepted", func() bool {
		return post(t, s.apiSites[1], "text/plain", "abcdef").status == http.StatusAccepted
	})
}

// checkRefused returns an error unless a tells the client to retry later.
func checkRefused(a answer, status int) error {
	if err := checkProblem(a, status); err != nil {
		return err
	}
	if a.header.Get("Retry-After") == "" {
		return fmt.Errorf("%d without Retry-After: %s", a.status, a.body)
	}
	return nil
}

// Connections beyond the limit are refused with a problem while each of the
// others is being answered. When they have their answers, there is room.
func TestTooManyConnections(t *testing.T) {
	t.Parallel()
	const limit, more = 3, 10
	s := prepare(t, rabbittest.StartNode(t))
	s.api = s.startDaemon(t, "revq-api", s.apiSockets, "--max-connections", strconv.Itoa(limit), "--confirm-timeout", "20s")
	s.awaitAPI(t)
	resume := s.suspendBroker(t)
	answers := make(chan answer, limit+more)
	for range limit + more {
		go func() { answers <- post(t, s.apiSites[0], "text/plain", "abcdef") }()
	}
	for range more {
		if err := checkRefused(await.Value(t, "answer", answers), http.StatusServiceUnavailable); err != nil {
			t.Error(err)
		}
	}
	resume()
	for range limit {
		if a := <-answers; a.status != http.StatusAccepted {
			t.Errorf("answered %d %s, want 202", a.status, a.body)
		}
	}
	send(t, s.apiSites[1], "other", "abcdef") // each site has its own limit
	await.True(t, "there is room", func() bool {
		return post(t, s.apiSites[0], "text/plain", "abcdef").status == http.StatusAccepted
	})
}
