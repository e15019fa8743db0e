// Package client sends texts to revq's API and listens to its results. The
// CLI, the benchmarks and the tests use it.
package client

import (
	"bufio"
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

	"github.com/revq/revq/internal/problem"
	"github.com/revq/revq/internal/task"
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

// A Sender posts texts. Every text has an id, so that it can be posted again
// when it is not known whether the first time worked.
type Sender struct {
	// URL is the API's, as http://localhost:8081.
	URL string

	// Timeout is how long one Send may take with all its attempts.
	Timeout time.Duration

	// HTTP makes the requests; http.DefaultClient if nil.
	HTTP *http.Client
}

// Send posts tasks and returns an error for each: nil if it was accepted. It
// tries again, with the same ids, what failed for a reason that may pass. The
// second error says that there is no such API, or that none answered in time.
func (s *Sender) Send(ctx context.Context, tasks []task.Task) ([]error, error) {
	ctx, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	answers := make([]error, len(tasks))
	left := make([]int, len(tasks)) // indices of what is not decided yet
	for i := range left {
		left[i] = i
	}
	for wait := retryMin; ; wait = min(2*wait, retryMax) {
		batch := make([]task.Task, len(left))
		for i, index := range left {
			batch[i] = tasks[index]
		}
		results, after, err := s.post(ctx, batch)
		if err != nil {
			return nil, err
		}
		var again []int
		for i, index := range left {
			answers[index] = results[i]
			if retryable(results[i]) {
				again = append(again, index)
			}
		}
		if left = again; len(left) == 0 {
			return answers, nil
		}
		select {
		case <-time.After(max(after, wait/2+rand.N(wait/2))):
		case <-ctx.Done():
			return answers, nil // with the reasons of the last attempt
		}
	}
}

// A Refusal is the API's answer to a text that it did not accept.
type Refusal struct{ problem.Problem }

func (r *Refusal) Error() string { return r.Detail }

// errNoAnswer means that the connection broke before the answer: the text may
// be queued or not.
var errNoAnswer = errors.New("the connection was lost before the answer came")

func retryable(err error) bool {
	var refusal *Refusal
	if errors.As(err, &refusal) {
		return problem.Retryable(refusal.Status)
	}
	return errors.Is(err, errNoAnswer)
}

// post makes one attempt. It returns a result for each task, and how long the
// API asks to wait.
func (s *Sender) post(ctx context.Context, tasks []task.Task) (results []error, after time.Duration, err error) {
	if err := checkURL(s.URL, "http", "https"); err != nil {
		return nil, 0, err
	}
	url := strings.TrimSuffix(s.URL, "/") + QueuePath
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
		if ctx.Err() != nil {
			return nil, 0, fmt.Errorf("no answer from %s: %w", url, ctx.Err())
		}
		return all(len(tasks), errNoAnswer), 0, nil
	}
	defer res.Body.Close()
	seconds, _ := strconv.Atoi(res.Header.Get("Retry-After")) // 0 where there is none
	after = time.Duration(seconds) * time.Second
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	switch {
	case err != nil:
		return all(len(tasks), errNoAnswer), after, nil
	case res.Header.Get("Content-Type") == problem.ContentType:
		return all(len(tasks), refusal(answer, res.Status)), after, nil
	case len(tasks) == 1 && res.StatusCode == http.StatusAccepted:
		return []error{nil}, 0, nil
	}
	results, err = lines(answer, len(tasks))
	if err != nil {
		return nil, 0, fmt.Errorf("%s answers %s, not as revq does: check the URL", url, res.Status)
	}
	return results, after, nil
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

// lines reads a batch's answer: one line for each of n tasks.
func lines(answer []byte, n int) ([]error, error) {
	var results []error
	for scanner := bufio.NewScanner(bytes.NewReader(answer)); scanner.Scan(); {
		var line struct {
			Status int `json:"status"`
		}
		if err := json.Unmarshal(scanner.Bytes(), &line); err != nil {
			return nil, err
		}
		if line.Status == http.StatusAccepted {
			results = append(results, nil)
		} else {
			results = append(results, refusal(scanner.Bytes(), strconv.Itoa(line.Status)))
		}
	}
	if len(results) != n {
		return nil, fmt.Errorf("%d lines answer %d texts", len(results), n)
	}
	return results, nil
}

func refusal(answer []byte, status string) error {
	r := new(Refusal)
	if err := json.Unmarshal(answer, &r.Problem); err != nil {
		return fmt.Errorf("the API answers %s", status)
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
