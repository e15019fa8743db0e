// Package task defines what travels through revq: a Task on its way to a
// worker, a Result on its way to the listeners, and the rules that both keep.
package task

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/google/uuid"
)

// Limits on texts.
const (
	// DefaultMaxText is the default maximum length of a text, in bytes.
	DefaultMaxText = 64 << 10

	// MaxText is the upper bound of the configured maximum, in bytes: each
	// process has several texts in memory at once, and RabbitMQ 4 accepts
	// messages of at most 16 MiB by default.
	MaxText = 16 << 20
)

// A Task is a text that was accepted for processing.
type Task struct {
	ID       string    // the same ID with the same Text is the same task
	Queue    string    // the name of its queue, such as wire.DefaultQueue
	Text     string    // not empty, UTF-8
	Accepted time.Time // when the API accepted it; zero if another program queued it

	// NotBefore is when its next attempt may begin, and Expires when it is
	// given up unless an attempt has begun; zero for no limit.
	NotBefore, Expires time.Time

	// Failed is how many attempts have failed. An attempt that was cut short,
	// or that the handler could not make, does not count.
	Failed int64

	// Trace is the traceparent that it was posted with, as
	// wire.ParseTraceparent returns it; "" for none.
	Trace string

	// Deaths is how often it was given up and requeued.
	Deaths int64

	// A worker sets this for the handler: if this attempt fails, the task is
	// given up.
	Last bool
}

// Attempt returns which attempt the next one is, from 1.
func (t Task) Attempt() int64 { return t.Failed + 1 }

// A Kind says what a Result tells about a task.
type Kind uint8

// The kinds.
const (
	Done     Kind = iota // it is done, and the text is the processed text
	GivenUp              // no worker will attempt it again, and the text says why
	Progress             // it is running, and the text says how far it is
	Lost                 // listeners cannot get its result, and the text says why; the ID may be missing
)

// A Result is what listeners are told about a task.
type Result struct {
	Kind     Kind
	ID       string    // the ID of its Task
	Queue    string    // the queue of its Task; "" if that is not known
	Text     string    // see Kind; UTF-8
	Of       Digest    // of its Task's text: a repeated ID with the same Of is the same result
	Accepted time.Time // copied from its Task
	Done     time.Time // when the worker finished it, or gave it up; zero for other kinds
	Trace    string    // copied from its Task
}

// A Digest distinguishes texts with the same ID. It is the first 8 bytes of the
// text's SHA-256; 0 means unknown. With a shorter or faster hash, someone could
// make a text with the digest of another's, and so get that one's result
// dropped.
type Digest uint64

// DigestOf returns the digest of a task's text.
func DigestOf(text string) Digest {
	sum := sha256.Sum256(unsafe.Slice(unsafe.StringData(text), len(text))) // only read
	return Digest(binary.BigEndian.Uint64(sum[:]))
}

// The errors of CheckText.
var (
	ErrNoText  = errors.New("the text is empty")
	ErrNotUTF8 = errors.New("the text is not valid UTF-8")
	ErrTooLong = errors.New("the text is too long")
)

// ErrNoQueue is the error of publishing a task to a queue that does not exist.
var ErrNoQueue = errors.New("the broker has no such queue")

// DeliveryLimit is how often a task is delivered by default whose workers die or
// lose their connection: a worker that is killed with its host, and a few faults
// more. MaxDeliveryLimit is the maximum that can be set, which is like none.
const (
	DeliveryLimit    = 5
	MaxDeliveryLimit = 1_000_000
)

// ErrNoDeadQueue is the error of publishing a dead letter while there is no
// queue that keeps it.
var ErrNoDeadQueue = errors.New("the broker has no queue of dead letters: run `revq setup`")

// NewID returns a new task id: a UUID of version 7 (RFC 9562), which sorts by
// the time of its creation.
func NewID() string {
	// NewV7 fails only when the system has no randomness, and then crypto/rand
	// has already ended the program.
	return uuid.Must(uuid.NewV7()).String()
}

// CheckText returns nil if text is valid, and otherwise ErrNoText, ErrNotUTF8,
// or ErrTooLong wrapped with both lengths. maxBytes is the maximum length.
func CheckText(text string, maxBytes int) error {
	switch {
	case text == "":
		return ErrNoText
	case len(text) > maxBytes:
		return fmt.Errorf("%w: %d bytes, at most %d are taken", ErrTooLong, len(text), maxBytes)
	case !utf8.ValidString(text):
		return ErrNotUTF8
	}
	return nil
}
