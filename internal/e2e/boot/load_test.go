//go:build linux

package boot

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/wire"
)

// A crowd is a number of clients of a booted host that post until they are
// stopped. Each keeps one connection for as long as the API does, and retries
// nothing: what fails is counted.
type crowd struct {
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu       sync.Mutex
	accepted []string // ids
	failed   []string // what went wrong, in full
	dials    int
}

// crowdPace is how long a client waits after an answer. That is some hundred
// tasks a second, with which the workers keep up.
const crowdPace = 20 * time.Millisecond

// post starts clients, half of them at each site of the API. The ids of their
// tasks begin with prefix.
func startCrowd(t *testing.T, h *Host, prefix string) *crowd {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := &crowd{cancel: cancel}
	for i := range 8 {
		client := &poster{host: h, site: apiSites[i%2]}
		c.running.Go(func() {
			defer client.close()
			for n := 0; ctx.Err() == nil; n++ {
				id := fmt.Sprintf("%s-%d-%d", prefix, i, n)
				err := client.post(id, "text of "+id)
				c.mu.Lock()
				if err == nil {
					c.accepted = append(c.accepted, id)
				} else {
					c.failed = append(c.failed, fmt.Sprintf("%s %s: %v", time.Now().Format("15:04:05.000"), id, err))
				}
				c.mu.Unlock()
				select {
				case <-time.After(crowdPace):
				case <-ctx.Done():
				}
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			c.dials += client.dials
		})
	}
	t.Cleanup(func() { c.stop() })
	return c
}

// count returns how many tasks have been accepted so far.
func (c *crowd) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.accepted)
}

// awaitMore waits until another task is accepted, which shows that the service
// works.
func (c *crowd) awaitMore(t *testing.T, n int) {
	t.Helper()
	want := c.count() + n
	await.True(t, fmt.Sprintf("%d more tasks accepted", n), func() bool { return c.count() >= want })
}

// stop stops the clients, and returns the ids that were accepted and what has
// failed.
func (c *crowd) stop() (accepted, failed []string) {
	c.cancel()
	c.running.Wait()
	return c.accepted, c.failed
}

// A poster is an HTTP client with one connection that retries nothing.
type poster struct {
	host  *Host
	site  string
	conn  net.Conn
	r     *bufio.Reader
	began time.Time // of the last request
	dials int
}

// lastCall is how long an API that stops waits for requests over connections
// that it has (api.defaultLastCall). Who was silent for longer may be cut off.
const lastCall = 250 * time.Millisecond

func (p *poster) close() {
	if p.conn != nil {
		p.conn.Close()
		p.conn = nil
	}
}

// post posts a text with an id, and returns an error unless it is answered 202.
// On a machine that is so busy that this client was silent for longer than
// lastCall, it does as HTTP's clients do: it connects and posts once more. When
// RabbitMQ itself is so busy that it confirms nothing within the time that an API
// waits, it posts again with the id, as the answer says.
func (p *poster) post(id, text string) error {
	kept := p.conn != nil
	last := p.began
	p.began = time.Now()
	sent, err := p.try(id, text)
	if cut := errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE); cut && kept && sent.Sub(last) > lastCall {
		_, err = p.try(id, text)
	}
	for n := 0; n < 5 && errors.Is(err, errUnconfirmed); n++ {
		_, err = p.try(id, text)
	}
	return err
}

// errUnconfirmed is the answer that RabbitMQ has not confirmed a text in time.
var errUnconfirmed = errors.New("not confirmed")

// try posts a text once, and returns when it was sent.
func (p *poster) try(id, text string) (sent time.Time, err error) {
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), await.Patience)
	defer cancel()
	if p.conn == nil {
		p.dials++
		if p.conn, err = p.host.Dial(ctx, "tcp", p.site); err != nil {
			return sent, err
		}
		p.r = bufio.NewReader(p.conn)
	}
	if err := p.conn.SetDeadline(time.Now().Add(await.Patience)); err != nil {
		return sent, err
	}
	if _, err := fmt.Fprintf(p.conn, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: text/plain\r\n%s: %s\r\nContent-Length: %d\r\n\r\n%s",
		wire.QueuePath, p.site, wire.KeyHeader, id, len(text), text); err != nil {
		return time.Now(), err
	}
	sent = time.Now()
	res, err := http.ReadResponse(p.r, nil)
	if err != nil {
		return sent, fmt.Errorf("read the answer: %w", err)
	}
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return sent, fmt.Errorf("read the answer's body: %w", err)
	}
	switch {
	case res.StatusCode == http.StatusServiceUnavailable && bytes.Contains(answer, []byte(rabbit.ErrTimeout.Error())):
		return sent, fmt.Errorf("answered %d %s: %w", res.StatusCode, answer, errUnconfirmed)
	case res.StatusCode != http.StatusAccepted:
		return sent, fmt.Errorf("answered %d %s", res.StatusCode, answer)
	}
	if res.Close {
		p.close()
	}
	return sent, nil
}

// An ear is `revq listen --json` in a booted host, as the unit ear. It
// reconnects and resumes by itself.
type ear struct {
	mu    sync.Mutex
	times map[string]int // how often a result has arrived, by id
	other []string       // messages that are not results
}

func startEar(t *testing.T, h *Host) *ear {
	t.Helper()
	e := &ear{times: make(map[string]int)}
	h.Lines(t, func(line string) {
		var m wire.Message
		err := json.Unmarshal([]byte(line), &m)
		e.mu.Lock()
		defer e.mu.Unlock()
		switch {
		case err != nil:
			e.other = append(e.other, fmt.Sprintf("%s: %v", line, err))
		case m.Type == wire.TypeResult:
			e.times[m.ID]++
		case m.Type != wire.TypeGreeting:
			e.other = append(e.other, line)
		}
	}, "systemd-run", "--quiet", "--pipe", "--collect", "--unit=ear", "revq", "listen", "--json", "--after", "-1")
	return e
}

// missing returns those of ids that have not arrived.
func (e *ear) missing(ids []string) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return e.times[id] > 0 })
}

// check waits until all results have arrived, and expects each once and no gap.
func (e *ear) check(t *testing.T, ids []string) {
	t.Helper()
	began := time.Now()
	for missing := e.missing(ids); len(missing) > 0; missing = e.missing(ids) {
		if time.Since(began) > await.Patience {
			t.Fatalf("of %d results %d have not come within %v: %s", len(ids), len(missing), await.Patience, some(missing))
		}
		<-time.After(await.Every)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, n := range e.times {
		if n > 1 {
			t.Errorf("the result for %s came %d times", id, n)
		}
	}
	if len(e.other) > 0 {
		t.Errorf("the listener got more than results: %s", some(e.other))
	}
	e.other = nil
}

// some returns the first lines of many.
func some(lines []string) string {
	const maxLines = 5
	if len(lines) > maxLines {
		return strings.Join(lines[:maxLines], "\n") + fmt.Sprintf("\nand %d more", len(lines)-maxLines)
	}
	return strings.Join(lines, "\n")
}

// checkNoneFailed stops the clients and expects that all tasks were accepted
// and have a result.
func (c *crowd) checkNoneFailed(t *testing.T, e *ear) {
	t.Helper()
	accepted, failed := c.stop()
	if len(failed) > 0 {
		t.Errorf("of %d requests %d failed:\n%s", len(accepted)+len(failed), len(failed), some(failed))
	}
	e.check(t, accepted)
	t.Logf("%d requests over %d connections, %d failed; every result came once", len(accepted)+len(failed), c.dials, len(failed))
}

// checkKept stops the clients and expects that every accepted task has one
// result. Posts may have failed.
func (c *crowd) checkKept(t *testing.T, e *ear) {
	t.Helper()
	accepted, failed := c.stop()
	if len(accepted) == 0 {
		t.Fatal(errors.New("no task was accepted: " + some(failed)))
	}
	e.check(t, accepted)
	t.Logf("%d requests were accepted and %d not; every result came once", len(accepted), len(failed))
}
