// Package client sends texts to revq's API and listens to its results. The
// CLI, the benchmarks and the tests use it.
package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

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

// ErrBadURL means that a URL cannot be one of revq.
var ErrBadURL = errors.New("unusable URL")

// ErrUnreachable means that no connection could be made: nothing was sent.
var ErrUnreachable = errors.New("cannot reach the API")

// ErrTLS means that client and server do not agree on TLS, or on whether to
// use it: nothing was sent, and trying again does not help.
var ErrTLS = errors.New("cannot connect")

// ErrNoAnswer means that the connection broke, or the time was over, before
// an answer came.
var ErrNoAnswer = errors.New("no answer came")

// An Uncertain answer means that the text may be queued or not. To post it
// again is safe under the same id only. Every other error means that the text
// is not queued.
type Uncertain struct{ Reason error }

func (u *Uncertain) Error() string { return u.Reason.Error() + "; it may be queued or not" }
func (u *Uncertain) Unwrap() error { return u.Reason }

// IsUncertain reports whether an answer is Uncertain.
func IsUncertain(answer error) bool {
	var u *Uncertain
	return errors.As(answer, &u)
}

// IsFinal reports whether an answer is the last word about a text: it was
// accepted, or refused for what it is.
func IsFinal(answer error) bool {
	var refusal *Refusal
	switch {
	case answer == nil, errors.Is(answer, task.ErrNotUTF8):
		return true
	case IsUncertain(answer) || !errors.As(answer, &refusal):
		return false
	}
	return !mayPass(refusal.Status)
}

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
// otherwise why not, and whether that is certain. It tries again, with the
// same ids, what failed for a reason that may pass. A text that is not UTF-8
// is not posted: JSON would make another text of it.
//
// The second error says that there is no use in sending more: nothing that
// answers as revq does was reached in time, or ctx has ended. It is then also
// the reason for each task that is not decided.
func (s *Sender) Send(ctx context.Context, tasks []task.Task) ([]error, error) {
	reasons := make([]error, len(tasks))
	uncertain := make([]bool, len(tasks)) // some attempt may have queued it
	var left []int                        // indices of what is not decided yet
	for i, t := range tasks {
		if utf8.ValidString(t.Text) {
			left = append(left, i)
		} else {
			reasons[i] = task.ErrNotUTF8
		}
	}
	err := s.attempts(ctx, tasks, left, reasons, uncertain)
	for i, reason := range reasons {
		if reason != nil && uncertain[i] {
			reasons[i] = &Uncertain{reason}
		}
	}
	return reasons, err
}

// attempts posts the tasks that are left until all are decided, the time is
// over, or there is no use in going on.
func (s *Sender) attempts(ctx context.Context, tasks []task.Task, left []int, reasons []error, uncertain []bool) error {
	limited, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	heard := false // some attempt was answered
	there := s.reached
	for wait := retryMin; len(left) > 0; wait = min(2*wait, retryMax) {
		results, after, err := s.post(limited, pick(tasks, left))
		unknown := IsUncertain(err)
		if unknown {
			err = errors.Unwrap(err)
		}
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		for i, index := range left {
			maybe := unknown
			switch {
			case err == nil:
				reasons[index], maybe = results[i], maybeQueued(results[i])
			case !heard || ctx.Err() != nil: // else the reason given before says more
				reasons[index] = err
			}
			uncertain[index] = uncertain[index] || maybe
		}
		heard = heard || err == nil
		s.reached = s.reached || err == nil
		there = there || s.reached || unknown
		switch {
		case err == nil, errors.Is(err, ErrNoAnswer), errors.Is(err, ErrUnreachable) && there:
		default:
			return err
		}
		left = slices.DeleteFunc(left, func(i int) bool { return !retryable(reasons[i]) })
		if len(left) == 0 {
			break
		}
		select {
		case <-time.After(max(after, wait/2+rand.N(wait/2))):
		case <-limited.Done():
			switch {
			case ctx.Err() != nil:
				for _, index := range left {
					reasons[index] = context.Cause(ctx)
				}
				return context.Cause(ctx)
			case !heard:
				return err
			}
			return nil // with the reasons of the last attempt that was answered
		}
	}
	return nil
}

// maybeQueued reports whether a text may be queued in spite of a refusal: the
// API then names the task, and a proxy does not know whether the API has it.
func maybeQueued(answer error) bool {
	var refusal *Refusal
	return errors.As(answer, &refusal) &&
		(refusal.ID != "" || refusal.Status >= 500 && refusal.Status != http.StatusServiceUnavailable)
}

func pick(tasks []task.Task, indices []int) []task.Task {
	picked := make([]task.Task, len(indices))
	for i, index := range indices {
		picked[i] = tasks[index]
	}
	return picked
}

// A Refusal is the API's answer to a text that it did not accept.
type Refusal struct{ wire.Problem }

func (r *Refusal) Error() string { return visible.Line(r.Detail) }

func retryable(err error) bool {
	if refusal, ok := errors.AsType[*Refusal](err); ok {
		return mayPass(refusal.Status)
	}
	return errors.Is(err, ErrNoAnswer) || errors.Is(err, ErrUnreachable)
}

// mayPass reports whether a refusal may be over soon: what revq says so of,
// and what a proxy answers while revq is restarted.
func mayPass(status int) bool {
	return wire.Retryable(status) || status == http.StatusBadGateway || status == http.StatusGatewayTimeout
}

// post makes one attempt. It returns a result for each task, and how long the
// API asks to wait.
func (s *Sender) post(ctx context.Context, tasks []task.Task) (results []error, after time.Duration, err error) {
	endpoint, err := parseURL(s.URL, wire.QueuePath, "http", "https")
	if err != nil {
		return nil, 0, err
	}
	url := endpoint.String()
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
	switch {
	case err != nil:
		return nil, after, s.noAnswer(ctx)
	case res.Header.Get("Content-Type") == wire.ProblemType:
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
		p := wire.NewProblem(res.StatusCode, fmt.Sprintf("%s answers %s", url, res.Status))
		if res.StatusCode != http.StatusTooManyRequests {
			p.ID = unnamed
		}
		return all(len(tasks), &Refusal{p}), after, nil
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

// unnamed is the id in a Refusal by something before the API, such as a proxy,
// which may have passed the text on.
const unnamed = "unknown"

// failure returns why a request got no answer, given the error of the HTTP
// client and whether there was a connection.
func (s *Sender) failure(ctx context.Context, to *url.URL, err error, connected bool) error {
	if outer, ok := errors.AsType[*url.Error](err); ok {
		err = outer.Err // without the URL and the method
	}
	var (
		certificate *tls.CertificateVerificationError
		record      tls.RecordHeaderError
		operation   *net.OpError
	)
	site := to.Scheme + "://" + to.Host
	switch {
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record):
		return fmt.Errorf("%w to %s: the server does not speak TLS there: use http:// or another port", ErrTLS, site)
	case errors.As(err, &certificate), !connected && errors.As(err, &operation) && operation.Op == "remote error":
		return fmt.Errorf("%w to %s: %w", ErrTLS, site, err)
	case connected && ctx.Err() == nil && s.wantsTLS(ctx, to):
		return errSpeaksTLS(to)
	case connected:
		return s.noAnswer(ctx)
	case errors.As(err, &operation) && operation.Op == "dial":
		return fmt.Errorf("%w: %w", ErrUnreachable, operation)
	case ctx.Err() != nil:
		return fmt.Errorf("%w: no connection to %s within %v", ErrUnreachable, site, s.Timeout)
	}
	return fmt.Errorf("%w: connect to %s: %w", ErrUnreachable, site, err)
}

// probeTimeout bounds the look at what a server speaks.
const probeTimeout = 2 * time.Second

func errSpeaksTLS(to *url.URL) error {
	return fmt.Errorf("%w to http://%s: the server speaks TLS there: use https://", ErrTLS, to.Host)
}

// wantsTLS reports whether TLS is spoken where a request without it got no
// answer: most such servers close the connection without a word.
func (s *Sender) wantsTLS(ctx context.Context, to *url.URL) bool {
	if to.Scheme != "http" || s.reached {
		return false
	}
	if proxy, err := http.ProxyFromEnvironment(&http.Request{URL: to}); proxy != nil || err != nil {
		return false // it is the proxy that speaks
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	address := net.JoinHostPort(to.Hostname(), cmp.Or(to.Port(), "80"))
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} // nothing is sent or believed
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err == nil {
		conn.Close()
		return true
	}
	var alert *net.OpError
	return errors.As(err, &alert) && alert.Op == "remote error"
}

// noAnswer returns an ErrNoAnswer that says whether the time was over.
func (s *Sender) noAnswer(ctx context.Context) error {
	if ctx.Err() != nil {
		return &Uncertain{fmt.Errorf("%w within %v", ErrNoAnswer, s.Timeout)}
	}
	return &Uncertain{fmt.Errorf("%w: the connection was lost", ErrNoAnswer)}
}

// parseURL returns the URL of what is at path below rawURL, which may end with
// the path already. It has to have one of the schemes, and a host.
func parseURL(rawURL, path string, schemes ...string) (*url.URL, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Host == "" || !slices.Contains(schemes, u.Scheme) {
		return nil, fmt.Errorf("%w %q: give %s://HOST:PORT", ErrBadURL, rawURL, schemes[0])
	}
	u.RawPath = strings.TrimSuffix(strings.TrimSuffix(u.EscapedPath(), "/"), path) + path
	u.Path = strings.TrimSuffix(strings.TrimSuffix(u.Path, "/"), path) + path
	return u, nil
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
