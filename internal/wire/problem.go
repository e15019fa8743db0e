package wire

import (
	"encoding/json"
	"net/http"
)

// ProblemType is the media type of a Problem.
const ProblemType = "application/problem+json"

// RetryAfter is the value of the header of that name, in seconds. Places come
// free as the broker confirms, and a session is set up again within about a
// second of the broker's return.
const RetryAfter = "1"

// A Problem is an error as the client sees it: problem details (RFC 9457), so
// that a client finds the reason and what to do about it in the same place for
// every error.
type Problem struct {
	Type   string `json:"type"`  // about:blank: the status says it all
	Title  string `json:"title"` // the status in words
	Status int    `json:"status"`
	Detail string `json:"detail"`         // what is wrong and what to do
	ID     string `json:"id,omitempty"`   // of a task that may or may not be queued
	Line   int    `json:"line,omitempty"` // of a batch, from 1
}

// NewProblem returns the problem with an HTTP status; detail says what is wrong
// and what to do.
func NewProblem(status int, detail string) Problem {
	return Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail}
}

// Retryable reports whether the same request may succeed later.
func Retryable(status int) bool {
	return status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable
}

// JSON returns p encoded.
func (p Problem) JSON() []byte {
	b, err := json.Marshal(p)
	if err != nil {
		panic(err) // a struct of strings and numbers always has an encoding
	}
	return b
}
