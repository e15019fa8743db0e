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
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/revq/revq/internal/problem"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/visible"
)

// QueuePath is where texts are posted.
const QueuePath = "/queue_reverse_text"

const (
	// maxAnswer bounds what is read of an answer, in bytes.
	maxAnswer = 16 << 20

	// retryMin and retryMax bound the wait between two attempts.
	retryMin = 100 * time.Millisecond
	retryMax = 5 * time.Second
)

// ErrBadURL means that a URL cannot be one of revq.
var ErrBadURL = errors.New("unusable URL")

// ErrUnreachable means that no connection could be made at all.
var ErrUnreachable = errors.New("cannot reach the API")

// ErrNoAnswer means that the connection broke, or the time was over, before
// an answer came: what was sent may be queued or not.
var ErrNoAnswer = errors.New("no answer came, it may be queued or not")

// A Sender posts texts. Every text has an id, so that it can be posted again
// when it is not known whether the first time worked. It is for one goroutine.
type Sender struct {
	// URL is the API's, as http://localhost:8081.
	URL string

	// Timeout is how long one Send may take with all its attempts.
	Timeout time.Duration

	// HTTP makes the requests; http.DefaultClient if nil.
	HTTP *http.Client

	reached bool // the API has answered before: if it is gone, it may come back
}

// Send posts tasks and returns an answer for each: nil if it was accepted,
// otherwise why not. It tries again, with the same ids, what failed for a
// reason that may pass. A text that is not UTF-8 is not posted: JSON would
// make another text of it.
//
// The second error says that there is no use in sending more: nothing that
// answers as revq does was reached in time, or ctx has ended. It is then also
// the answer of each task that is not decided.
func (s *Sender) Send(ctx context.Context, tasks []task.Task) ([]error, error) {
	answers := make([]error, len(tasks))
	var left []int // indices of what is not decided yet
	for i, t := range tasks {
		if utf8.ValidString(t.Text) {
			left = append(left, i)
		} else {
			answers[i] = task.ErrNotUTF8
		}
	}
	limited, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	heard := false // some attempt was answered
	for wait := retryMin; len(left) > 0; wait = min(2*wait, retryMax) {
		results, after, err := s.post(limited, pick(tasks, left))
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		for i, index := range left {
			switch {
			case err == nil:
				answers[index] = results[i]
			case !heard || ctx.Err() != nil: // else the reason given before says more
				answers[index] = err
			}
		}
		heard = heard || err == nil
		s.reached = s.reached || err == nil
		switch {
		case err == nil, errors.Is(err, ErrNoAnswer), errors.Is(err, ErrUnreachable) && s.reached:
		default:
			return answers, err
		}
		left = slices.DeleteFunc(left, func(i int) bool { return !retryable(answers[i]) })
		if len(left) == 0 {
			break
		}
		select {
		case <-time.After(max(after, wait/2+rand.N(wait/2))):
		case <-limited.Done():
			switch {
			case ctx.Err() != nil:
				for _, index := range left {
					answers[index] = context.Cause(ctx)
				}
				return answers, context.Cause(ctx)
			case !heard:
				return answers, err
			}
			return answers, nil // with the reasons of the last attempt that was answered
		}
	}
	return answers, nil
}

func pick(tasks []task.Task, indices []int) []task.Task {
	picked := make([]task.Task, len(indices))
	for i, index := range indices {
		picked[i] = tasks[index]
	}
	return picked
}

// A Refusal is the API's answer to a text that it did not accept.
type Refusal struct{ problem.Problem }

func (r *Refusal) Error() string { return visible.Line(r.Detail) }

func retryable(err error) bool {
	var refusal *Refusal
	if errors.As(err, &refusal) {
		return mayPass(refusal.Status)
	}
	return errors.Is(err, ErrNoAnswer) || errors.Is(err, ErrUnreachable)
}

// mayPass reports whether a refusal may be over soon: what revq says so of,
// and what a proxy answers while revq is restarted.
func mayPass(status int) bool {
	return problem.Retryable(status) || status == http.StatusBadGateway || status == http.StatusGatewayTimeout
}

// post makes one attempt. It returns a result for each task, and how long the
// API asks to wait.
func (s *Sender) post(ctx context.Context, tasks []task.Task) (results []error, after time.Duration, err error) {
	if err := checkURL(s.URL, "http", "https"); err != nil {
		return nil, 0, err
	}
	url := strings.TrimSuffix(strings.TrimSuffix(s.URL, "/"), QueuePath) + QueuePath
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, encode(tasks))
	if err != nil {
		return nil, 0, fmt.Errorf("make a request to %s: %w", url, err)
	}
	req.Header.Set("Content-Type", "application/json")
	if len(tasks) > 1 {
		req.Header.Set("Content-Type", "application/x-ndjson")
	}
	client := s.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	res, err := client.Do(req)
	if err != nil {
		var dial *net.OpError
		if errors.As(err, &dial) && dial.Op == "dial" {
			return nil, 0, fmt.Errorf("%w: %w", ErrUnreachable, dial)
		}
		return nil, 0, s.noAnswer(ctx)
	}
	defer res.Body.Close()
	seconds, _ := strconv.Atoi(res.Header.Get("Retry-After")) // 0 where there is none
	after = time.Duration(seconds) * time.Second
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	switch {
	case err != nil:
		return nil, after, s.noAnswer(ctx)
	case res.Header.Get("Content-Type") == problem.ContentType:
		if r := refusal(answer); r != nil {
			return all(len(tasks), r), after, nil
		}
	case len(tasks) == 1 && res.StatusCode == http.StatusAccepted:
		return []error{nil}, 0, nil
	case len(tasks) > 1:
		if results := lines(answer, len(tasks)); results != nil {
			return results, after, nil
		}
	}
	if mayPass(res.StatusCode) {
		p := problem.New(res.StatusCode, fmt.Sprintf("%s answers %s", url, res.Status))
		return all(len(tasks), &Refusal{*p}), after, nil
	}
	return nil, 0, fmt.Errorf("%s answers %s, not as revq does: check the URL", url, visible.Line(res.Status))
}

// noAnswer returns an ErrNoAnswer that says whether the time was over.
func (s *Sender) noAnswer(ctx context.Context) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %v were not enough", ErrNoAnswer, s.Timeout)
	}
	return fmt.Errorf("%w: the connection was lost", ErrNoAnswer)
}

// checkURL returns an error unless url has one of the schemes and a host.
func checkURL(rawURL string, schemes ...string) error {
	u, err := url.Parse(rawURL)
	if err != nil || u.Host == "" || !slices.Contains(schemes, u.Scheme) {
		return fmt.Errorf("%w %q: give %s://HOST:PORT", ErrBadURL, rawURL, schemes[0])
	}
	return nil
}

// encode returns tasks as JSON objects, one a line.
func encode(tasks []task.Task) io.Reader {
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	for _, t := range tasks {
		if err := encoder.Encode(map[string]string{"text": t.Text, "id": t.ID}); err != nil {
			panic(err) // strings can always be encoded
		}
	}
	return &body
}

// lines reads a batch's answer: one line for each of n tasks. It returns nil if
// it is something else.
func lines(answer []byte, n int) []error {
	var results []error
	for line := range bytes.Lines(answer) {
		var accepted struct {
			Status int `json:"status"`
		}
		if err := json.Unmarshal(line, &accepted); err != nil {
			return nil
		}
		if accepted.Status == http.StatusAccepted {
			results = append(results, nil)
		} else if r := refusal(line); r != nil {
			results = append(results, r)
		}
	}
	if len(results) != n {
		return nil
	}
	return results
}

// refusal reads a problem. It returns nil if it is something else.
func refusal(answer []byte) *Refusal {
	r := new(Refusal)
	if err := json.Unmarshal(answer, &r.Problem); err != nil || r.Status == 0 || r.Detail == "" {
		return nil
	}
	return r
}

func all(n int, err error) []error {
	errs := make([]error, n)
	for i := range errs {
		errs[i] = err
	}
	return errs
}
