package handler

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"time"
	"unicode/utf8"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
	"github.com/revq/revq/internal/worker"
)

// version is the version of the protocol, which each side's hello has.
const version = 1

const helloLine = `{"revq":1}` + "\n"

// maxLineFor returns the maximum length of a line with up to n bytes of text:
// JSON may write each of them as six, and the rest needs little.
func maxLineFor(n int) int { return 6*n + 16<<10 }

// A request is a task in the form that programs read.
type request struct {
	ID       string  `json:"id"`
	Queue    string  `json:"queue"`
	Text     string  `json:"text"`
	Attempt  int64   `json:"attempt"`
	Last     bool    `json:"last_attempt"`
	Deadline float64 `json:"deadline"` // seconds since 1970

	Trace string `json:"traceparent,omitzero"`
}

func appendLine(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err) // cannot happen with the values that are encoded here
	}
	return b.Bytes()
}

func encodeJob(j job) []byte {
	return appendLine(request{j.id, j.queue, j.text, j.attempt, j.last, float64(j.deadline.UnixMilli()) / 1000, j.trace})
}

// parseJob reads what encodeJob has written.
func parseJob(line []byte) (job, error) {
	var r request
	if err := unmarshal(line, &r); err != nil {
		return job{}, err
	}
	if err := wire.CheckID(r.ID); err != nil {
		return job{}, err
	}
	if err := task.CheckText(r.Text, task.MaxText); err != nil {
		return job{}, err
	}
	if !(r.Deadline > 0 && r.Deadline < 1<<40) { // 36,000 years
		return job{}, errors.New("the deadline is no time in seconds since 1970")
	}
	ms := int64(math.Round(r.Deadline * 1000))
	return job{id: r.ID, queue: r.Queue, text: r.Text, attempt: r.Attempt, last: r.Last, deadline: time.UnixMilli(ms), trace: wire.ParseTraceparent(r.Trace)}, nil
}

// A reply is a line of a program, of one of the kinds below.
type reply struct {
	kind  replyKind
	id    string
	text  string // of a result, an error or a progress
	retry worker.Outcome
}

type replyKind int

const (
	isHello replyKind = iota
	isResult
	isError
	isProgress
)

// retries has the values of "retry" in a reply of the kind isError.
var retries = map[string]worker.Outcome{"yes": worker.Failed, "later": worker.Later, "no": worker.Never}

func retryOf(o worker.Outcome) string {
	switch o {
	case worker.Never:
		return "no"
	case worker.Later, worker.Misconfigured, worker.Stopped:
		return "later"
	}
	return "yes"
}

// encodeReply returns the answer for a task: the result or the error.
func encodeReply(id, text string, wrong *worker.Error) []byte {
	if wrong == nil {
		return appendLine(struct {
			ID   string `json:"id"`
			Text string `json:"text"`
		}{id, text})
	}
	said := wrong.Error()
	if wrong.Said != "" {
		said += "\n" + wrong.Said
	}
	return appendLine(struct {
		ID    string `json:"id"`
		Error string `json:"error"`
		Retry string `json:"retry"`
	}{id, said, retryOf(wrong.Outcome)})
}

// parseReply reads a line of a program. It returns an error if the line does
// not follow the protocol. It ignores unknown members: later versions may have
// more.
func parseReply(line []byte) (reply, error) {
	var r struct {
		Revq     *int            `json:"revq"`
		ID       *string         `json:"id"`
		Text     *string         `json:"text"`
		Error    *string         `json:"error"`
		Retry    *string         `json:"retry"`
		Progress json.RawMessage `json:"progress"`
	}
	if err := unmarshal(line, &r); err != nil {
		return reply{}, err
	}
	kinds := 0
	for _, there := range []bool{r.Revq != nil, r.Text != nil, r.Error != nil, r.Progress != nil} {
		if there {
			kinds++
		}
	}
	switch {
	case kinds != 1:
		return reply{}, errors.New(`it must have one of the members "text", "error" and "progress"`)
	case r.Retry != nil && r.Error == nil:
		return reply{}, errors.New(`"retry" belongs to "error"`)
	case r.Revq != nil && *r.Revq != version:
		return reply{}, fmt.Errorf("it speaks version %d of the protocol, revq speaks version %d", *r.Revq, version)
	case r.Revq != nil:
		return reply{kind: isHello}, nil
	case r.ID == nil:
		return reply{}, errors.New(`it has no "id"`)
	case r.Text != nil:
		return reply{kind: isResult, id: *r.ID, text: *r.Text}, nil
	case r.Progress != nil:
		return reply{kind: isProgress, id: *r.ID, text: progressText(r.Progress)}, nil
	}
	retry := worker.Failed
	if r.Retry != nil {
		var known bool
		if retry, known = retries[*r.Retry]; !known {
			return reply{}, fmt.Errorf(`"retry" is %.20q, and must be "yes", "later" or "no"`, *r.Retry)
		}
	}
	return reply{kind: isError, id: *r.ID, text: *r.Error, retry: retry}, nil
}

// progressText returns what listeners are told of a progress: a string as it
// is, other JSON in its compact form. Null says nothing.
func progressText(value json.RawMessage) string {
	var text *string
	if json.Unmarshal(value, &text) == nil {
		if text == nil {
			return ""
		}
		return *text
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, value); err != nil {
		return "" // cannot happen: it was a part of valid JSON
	}
	return compact.String()
}

// unmarshal is json.Unmarshal for objects in valid UTF-8.
func unmarshal(line []byte, into any) error {
	line = bytes.TrimSpace(line)
	if len(line) == 0 || line[0] != '{' {
		return errors.New("it is not a JSON object")
	}
	if !utf8.Valid(line) {
		return errors.New("it is not UTF-8")
	}
	if err := json.Unmarshal(line, into); err != nil {
		return fmt.Errorf("it does not follow the protocol: %w", err)
	}
	return nil
}

// lines reads lines of a limited length.
type lines struct {
	r        *bufio.Reader
	maxBytes int
	long     []byte // a line that is longer than r's buffer
}

var errLongLine = errors.New("a line is too long")

func newLines(r io.Reader, maxBytes int) *lines {
	return &lines{r: bufio.NewReader(r), maxBytes: maxBytes}
}

// next returns the next line, which is valid until the next call. The end of
// the input in the middle of a line is io.ErrUnexpectedEOF.
func (l *lines) next() ([]byte, error) {
	line, err := l.r.ReadSlice('\n')
	if err == nil {
		return line, nil
	}
	l.long = append(l.long[:0], line...)
	for errors.Is(err, bufio.ErrBufferFull) {
		if len(l.long) > l.maxBytes {
			return nil, errLongLine
		}
		line, err = l.r.ReadSlice('\n')
		l.long = append(l.long, line...)
	}
	switch {
	case errors.Is(err, io.EOF) && len(l.long) > 0:
		err = io.ErrUnexpectedEOF
	case err == nil && len(l.long) > l.maxBytes:
		err = errLongLine
	}
	line = l.long
	if cap(l.long) > 1<<20 {
		l.long = nil // do not keep the memory
	}
	return line, err
}
