package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/visible"
	"github.com/revq/revq/internal/wire"
)

// An Uncertain answer means that the text may be queued or not. It is safe to
// post it again only under the same id. Every other error means that the text
// is not queued.
type Uncertain struct{ Reason error }

func (u *Uncertain) Error() string { return u.Reason.Error() + "; it may be queued or not" }
func (u *Uncertain) Unwrap() error { return u.Reason }

// IsUncertain reports whether an answer is Uncertain.
func IsUncertain(answer error) bool {
	var u *Uncertain
	return errors.As(answer, &u)
}

// IsFinal reports whether a retry cannot change an answer: the text was
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

// IsNotFound reports whether an answer says that there is no such queue, or
// nothing of revq's at this URL.
func IsNotFound(answer error) bool {
	refusal, ok := errors.AsType[*Refusal](answer)
	return ok && refusal.Status == http.StatusNotFound
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

// mayPass reports whether a refusal with this status may be over soon. It may
// be revq's, or a proxy's while revq restarts.
func mayPass(status int) bool {
	return wire.Retryable(status) || status == http.StatusBadGateway || status == http.StatusGatewayTimeout
}

// maybeQueued reports whether a text may be queued in spite of a refusal. The
// API then names the task. A proxy does not know whether the API has it.
func maybeQueued(answer error) bool {
	var refusal *Refusal
	return errors.As(answer, &refusal) &&
		(refusal.ID != "" || refusal.Status >= 500 && refusal.Status != http.StatusServiceUnavailable)
}

// unnamed is the id in a Refusal by something before the API, such as a proxy,
// which may have passed the text on.
const unnamed = "unknown"

// read returns what the answer of a server at a URL says of each of n texts. It
// returns nil if neither revq nor a proxy whose server is away answers so.
func read(url string, res *http.Response, answer []byte, n int) []error {
	switch {
	case res.Header.Get("Content-Type") == wire.ProblemType:
		if r := refusal(answer); r != nil {
			return all(n, r)
		}
	case n == 1 && res.StatusCode == http.StatusAccepted:
		return []error{nil}
	case n > 1:
		if results := lines(answer, n); results != nil {
			return results
		}
	}
	if !mayPass(res.StatusCode) {
		return nil
	}
	p := wire.NewProblem(res.StatusCode, fmt.Sprintf("%s answers %s", url, res.Status))
	if res.StatusCode != http.StatusTooManyRequests {
		p.ID = unnamed
	}
	return all(n, &Refusal{p})
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
