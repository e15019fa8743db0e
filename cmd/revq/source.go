package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/revq/revq/internal/task"
)

const (
	// A batch holds the texts that have been read, within these limits. Bytes
	// are counted before the encoding: JSON needs up to six bytes for one, and
	// the API takes 1 MiB by default.
	maxBatch      = 100
	maxBatchBytes = 128 << 10
)

// A text is one text to send.
type text struct {
	content string
	number  int // of the argument or the line, from 1
	size    int // bytes of input, including lines that were skipped before it
}

// A source returns the texts in batches of those that have been read.
type source struct {
	unit   string    // what is numbered: "text" or "line"
	texts  chan text // closed at the end
	err    error     // why it ended early; set before texts is closed
	next   *text     // taken from texts, but too large for the last batch
	count  int       // of the texts returned so far
	closer io.Closer
}

// fromArguments returns a source of the arguments, starting with number from.
func fromArguments(args []string, from int) *source {
	s := &source{unit: "text", texts: make(chan text, len(args)), closer: io.NopCloser(nil)}
	for i, arg := range args {
		if i+1 >= from {
			s.texts <- text{arg, i + 1, len(arg)}
		}
	}
	close(s.texts)
	return s
}

// byteOrderMark is what some editors put before the first line. It is not part
// of the text.
const byteOrderMark = "\ufeff"

// fromLines returns a source of the lines of r that are not empty, starting
// with number from.
func fromLines(r io.ReadCloser, from int) *source {
	s := &source{unit: "line", texts: make(chan text, maxBatch), closer: r}
	go func() {
		defer close(s.texts)
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, task.MaxText+1)
		n, size := 0, 0
		for lines.Scan() {
			n++
			line := lines.Text()
			size += len(line) + 1
			if n == 1 {
				line = strings.TrimPrefix(line, byteOrderMark)
			}
			if line != "" && n >= from {
				s.texts <- text{line, n, size}
				size = 0
			}
		}
		if err := lines.Err(); err != nil {
			if errors.Is(err, bufio.ErrTooLong) {
				err = fmt.Errorf("it is longer than %d bytes, the maximum length of a text", task.MaxText)
			}
			s.err = fmt.Errorf("line %d and the lines after it were not sent: %w", n+1, err)
		}
	}()
	return s
}

// Close closes the file or the pipe that the texts come from.
func (s *source) Close() error { return s.closer.Close() }

// more reports whether there may be more texts.
func (s *source) more() bool { return s.unit == "line" || s.next != nil || len(s.texts) > 0 }

// batch waits for a text and returns it together with those that have been read
// already. At the end it returns io.EOF, or the error that ended the reading.
func (s *source) batch(ctx context.Context) ([]text, error) {
	var batch []text
	bytes := 0
	for len(batch) < maxBatch {
		t, ok := s.take(ctx, len(batch) == 0)
		if !ok {
			break
		}
		if bytes += len(t.content); bytes > maxBatchBytes && len(batch) > 0 {
			s.next = &t
			break
		}
		batch = append(batch, t)
	}
	s.count += len(batch)
	switch {
	case len(batch) > 0:
		return batch, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case s.err != nil:
		return nil, s.err
	}
	return nil, io.EOF
}

// take returns the next text. It returns false at the end, or, if wait is
// false, when no text has been read yet.
func (s *source) take(ctx context.Context, wait bool) (text, bool) {
	if s.next != nil {
		t := *s.next
		s.next = nil
		return t, true
	}
	if wait {
		select {
		case t, ok := <-s.texts:
			return t, ok
		case <-ctx.Done():
			return text{}, false
		}
	}
	select {
	case t, ok := <-s.texts:
		return t, ok
	default:
		return text{}, false
	}
}
