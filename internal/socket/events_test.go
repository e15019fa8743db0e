package socket

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/wire"
)

func TestEvents(t *testing.T) {
	s, b := setup(t, DefaultConfig(), feed.DefaultConfig())
	b.append(0, 3)
	res, next := b.events(t, "", "")
	defer res.Body.Close()
	if ct := res.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Errorf("Content-Type = %q", ct)
	}
	if e := next(); e.name != "greeting" || e.id != "2/id2" {
		t.Errorf("first event %+v, want a greeting at 2", e)
	}
	b.append(3, 5)
	for i := 3; i < 5; i++ {
		e := next()
		var m wire.Message
		if err := json.Unmarshal([]byte(e.data), &m); err != nil || e.name != "" || e.id != fmt.Sprintf("%d/id%d", i, i) || m.Text != fmt.Sprint("text ", i) {
			t.Errorf("event %+v, want result %d", e, i)
		}
	}
	// Last-Event-ID wins over the URL, which a browser repeats.
	again, next := b.events(t, "?after=0", "3/id3")
	defer again.Body.Close()
	if e := next(); e.name != "greeting" {
		t.Errorf("first event %+v", e)
	}
	if e := next(); e.id != "4/id4" {
		t.Errorf("event %+v, want 4", e)
	}
	again.Body.Close()
	until(t, "the listener is gone", func() bool { return s.Listeners() == 1 })
}

func TestEventsEndInOrder(t *testing.T) {
	s, b := setup(t, DefaultConfig(), feed.DefaultConfig())
	res, next := b.events(t, "", "")
	defer res.Body.Close()
	next()
	go s.Shutdown(context.Background())
	if e := next(); !strings.Contains(e.comment, "restarts") {
		t.Errorf("last words %+v", e)
	}
	if e := next(); !e.end {
		t.Errorf("after the last words came %+v", e)
	}
}

// A browser gives up for good on every status but 200: for reasons that pass it
// gets a stream that says when to reconnect, and ends.
func TestEventsAreToldWhatPasses(t *testing.T) {
	cfg := DefaultConfig()
	const places = 3
	cfg.MaxListeners, cfg.MaxResuming = places, 0
	retry := func(e event) time.Duration {
		ms, err := strconv.Atoi(e.retry)
		if err != nil {
			t.Errorf("%+v says nothing of when to come again", e)
		}
		return time.Duration(ms) * time.Millisecond
	}
	expect := func(next func() event, reason string) time.Duration {
		t.Helper()
		e := next()
		var p wire.Problem
		if err := json.Unmarshal([]byte(e.data), &p); err != nil || e.name != "unavailable" || e.id != "" || p.Status != 503 || !strings.Contains(p.Detail, reason) {
			t.Errorf("event %+v, want to hear that: %s", e, reason)
		}
		if e := next(); !e.end {
			t.Errorf("then came %+v, want the end", e)
		}
		return retry(e)
	}
	s, b := setup(t, cfg, small)
	b.append(0, 10_000)

	res, next := b.events(t, "", "1/id1") // is not in the log
	defer res.Body.Close()
	if e := next(); e.name != "greeting" {
		t.Errorf("first event %+v", e)
	}
	expect(next, "cannot resume now")
	until(t, "it is gone", func() bool { return s.Listeners() == 0 })

	first := b.listen(t, "")
	for range places - 1 {
		b.listen(t, "")
	}
	waits := make(map[time.Duration]bool)
	for range 20 {
		res, next := b.events(t, "", "")
		defer res.Body.Close()
		if ct := res.Header.Get("Content-Type"); ct != "text/event-stream" || res.Header.Get("Retry-After") == "" || !res.Close {
			t.Errorf("header %v", res.Header)
		}
		wait := expect(next, "3 listeners are connected")
		if waits[wait] = true; wait < minRetryAfter || wait > maxRetryAfter {
			t.Errorf("to come again after %v", wait)
		}
	}
	if len(waits) < 5 {
		t.Errorf("all come again at the same times: %v", waits)
	}
	if n := s.Listeners(); n != places {
		t.Errorf("%d listeners", n)
	}
	first.Close()
	until(t, "the place is free", func() bool { return s.Listeners() == places-1 })
	res, next = b.events(t, "", "")
	defer res.Body.Close()
	if e := next(); e.name != "greeting" {
		t.Errorf("first event %+v, want a greeting", e)
	}
}

func TestEventsAreRefused(t *testing.T) {
	_, b := setup(t, DefaultConfig(), feed.DefaultConfig())
	for _, tc := range []struct {
		name, request string
		status        int
	}{
		{"HTTP/1.0", "GET /listen_results HTTP/1.0\r\nAccept: text/event-stream\r\n\r\n", 505},
		{"foreign origin", "GET /listen_results HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\nOrigin: https://example.org\r\n\r\n", 403},
		{"bad mark", "GET /listen_results HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\nLast-Event-ID: x\r\n\r\n", 400},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := net.Dial("tcp", b.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			fmt.Fprint(c, tc.request)
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil || res.StatusCode != tc.status {
				t.Errorf("%v, %v; want status %d", res, err, tc.status)
			}
		})
	}
}

type event struct {
	name, id, data, comment, retry string
	end                            bool
}

// events connects as an EventSource does, and returns a function that reads
// the next event.
func (b *bundle) events(t *testing.T, query, lastID string) (*http.Response, func() event) {
	t.Helper()
	req, _ := http.NewRequest("GET", "http://"+b.addr+"/listen_results"+query, nil)
	req.Header.Set("Accept", "text/event-stream")
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("%v, %v", res, err)
	}
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, 1<<20)
	return res, func() (e event) {
		for lines.Scan() {
			field, value, _ := strings.Cut(lines.Text(), ": ")
			switch field {
			case "event":
				e.name = value
			case "id":
				e.id = value
			case "data":
				e.data = value
			case "retry":
				e.retry = value
			case "":
				if lines.Text() == "" {
					return e
				}
				e.comment = value
			}
		}
		e.end = lines.Err() == nil
		return e
	}
}
