// Package client sends texts to revq's API and listens to its results. The
// CLI, the benchmarks and the tests use it.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/visible"
	"github.com/revq/revq/internal/wire"
)

const (
	// maxAnswer bounds what is read of an answer, in bytes.
	maxAnswer = 16 << 20

	// retryMin and retryMax bound the wait between two attempts.
	retryMin = 100 * time.Millisecond
	retryMax = 5 * time.Second
)

// A Sender posts texts. Every text has an id, so that it can be posted again
// when it is not known whether the first time worked. It is for one goroutine.
type Sender struct {
	// URL is the API's, as http://localhost:8081.
	URL string

	// Token is sent with each request; "" for none.
	Token string

	// Queue is the name of the tasks' queue; "" is wire.DefaultQueue.
	Queue string

	// Delay is how long after they were accepted tasks may begin at the
	// soonest, and Expires after which time they are given up if they have not
	// begun; 0 for no limit.
	Delay, Expires time.Duration

	// Timeout is how long one Send may take with all its attempts.
	Timeout time.Duration

	// HTTP makes the requests; http.DefaultClient if nil.
	HTTP *http.Client

	reached bool // the API has answered before: if it is gone, it may come back
}

// Send posts tasks and returns an answer for each: nil if it was accepted,
// otherwise why not, and whether that is certain. It retries what failed for a
// reason that may pass, with the same ids. It does not post a text that is not
// UTF-8: JSON would change it.
//
// The second error says that sending more is of no use: no server that answers
// as revq does was reached in time, or ctx has ended. It is then also the
// reason for each task that is not decided.
func (s *Sender) Send(ctx context.Context, tasks []task.Task) ([]error, error) {
	r := newRecord(tasks)
	err := s.attempts(ctx, r)
	return r.answers(), err
}

// attempts posts the tasks that are left until all are decided, the time is
// over, or trying again is of no use.
func (s *Sender) attempts(ctx context.Context, r *record) error {
	limited, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	there := s.reached // something is at the URL: if it is gone, it may come back
	for wait := retryMin; len(r.left) > 0; wait = min(2*wait, retryMax) {
		results, after, err := s.post(limited, r.pending())
		uncertain := IsUncertain(err)
		if uncertain {
			err = errors.Unwrap(err)
		}
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err == nil {
			r.answer(results)
			s.reached = true
		} else {
			r.fail(err, uncertain, ctx.Err() != nil)
		}
		there = there || s.reached || uncertain
		if retry := err == nil || errors.Is(err, ErrNoAnswer) || errors.Is(err, ErrUnreachable) && there; !retry {
			return err
		}
		if len(r.left) == 0 {
			break
		}
		select {
		case <-time.After(max(after, wait/2+rand.N(wait/2))):
		case <-limited.Done():
			switch {
			case ctx.Err() != nil:
				r.fail(context.Cause(ctx), false, true)
				return context.Cause(ctx)
			case !r.answered:
				return err
			}
			return nil // with the reasons of the last attempt that was answered
		}
	}
	return nil
}

// post makes one attempt. It returns a result for each task, and how long the
// API asks to wait.
func (s *Sender) post(ctx context.Context, tasks []task.Task) (results []error, after time.Duration, err error) {
	path := wire.QueuePath
	if s.Queue != "" && s.Queue != wire.DefaultQueue {
		path = wire.QueuePrefix + s.Queue
	}
	endpoint, err := parseURL(s.URL, path, "http", "https")
	if err != nil {
		return nil, 0, err
	}
	url := endpoint.String()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, s.encode(tasks))
	if err != nil {
		return nil, 0, fmt.Errorf("make a request to %s: %w", url, err)
	}
	req.Header.Set("Content-Type", "application/json")
	if s.Token != "" {
		req.Header.Set("Authorization", "Bearer "+s.Token)
	}
	if len(tasks) > 1 {
		req.Header.Set("Content-Type", "application/x-ndjson")
	}
	client := s.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	var connected atomic.Bool // so that the request may have been written
	req = req.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	}))
	res, err := client.Do(req)
	if err != nil {
		return nil, 0, s.failure(ctx, req.URL, err, connected.Load())
	}
	defer res.Body.Close()
	seconds, _ := strconv.Atoi(res.Header.Get("Retry-After")) // 0 where there is none
	after = time.Duration(seconds) * time.Second
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, after, s.noAnswer(ctx)
	}
	if results := read(url, res, answer, len(tasks)); results != nil {
		return results, after, nil
	}
	if res.StatusCode == http.StatusBadRequest && s.wantsTLS(ctx, req.URL) { // as Go's server answers
		return nil, 0, errSpeaksTLS(req.URL)
	}
	err = fmt.Errorf("%s answers %s, not as revq does: check the URL", url, visible.Line(res.Status))
	if res.StatusCode < 400 || res.StatusCode >= 500 {
		err = &Uncertain{err}
	}
	return nil, 0, err
}

// encode returns tasks as JSON objects, one a line.
func (s *Sender) encode(tasks []task.Task) io.Reader {
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	for _, t := range tasks {
		fields := map[string]string{"text": t.Text, "id": t.ID}
		if s.Delay > 0 {
			fields["delay"] = s.Delay.String()
		}
		if s.Expires > 0 {
			fields["expires"] = s.Expires.String()
		}
		if err := encoder.Encode(fields); err != nil {
			panic(err) // strings can always be encoded
		}
	}
	return &body
}
