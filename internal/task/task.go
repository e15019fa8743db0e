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
	Text     string    // not empty, UTF-8
	Accepted time.Time // when the API accepted it; zero if another program queued it

	// A worker sets these for the handler.
	Attempt int64 // which attempt this is, from 1
	Last    bool  // if it fails, the task is given up
}

// A Result is a processed text.
type Result struct {
	ID       string    // the ID of its Task
	Text     string    // the processed text, UTF-8
	Of       Digest    // of its Task's text: a repeated ID with the same Of is the same result
	Accepted time.Time // copied from its Task
	Done     time.Time // when the worker finished it

	// Lost is why listeners cannot get the text, which is empty then: it is no
	// text, or too long. "" for an ordinary result. The ID may be missing.
	Lost string
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
