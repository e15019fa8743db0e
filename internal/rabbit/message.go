package rabbit

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// Headers hold the times of a message in microseconds since 1970: AMQP's
// timestamp property has only seconds.
const (
	acceptedHeader = "revq-accepted"
	doneHeader     = "revq-done"

	// digestHeader has the digest of the task's text for each result in the
	// message, in order, as 16 hexadecimal digits each. It is a header rather
	// than part of a bundle's records, so that any version of revq reads what
	// another has published: a version that does not know the header tells
	// results apart only by their ids. Without the header, as in messages of
	// other programs, the digests are not known.
	digestHeader = "revq-text-sha256"
	digestDigits = 16

	// queueHeader is the name of the queue of the task that a result or a dead
	// letter is of. Without it, as in messages of earlier versions, that is the
	// default queue.
	queueHeader = "revq-queue"

	// What a task that is published again carries along: how many attempts
	// have failed, when the next one may begin, and when the task is given up.
	failedHeader  = "revq-failed"
	dueHeader     = "revq-due"
	expiresHeader = "revq-expires"

	// traceHeader is the traceparent of a task, or of the only result in a
	// message, under the name that other programs' tracing uses.
	// tracesHeader has those of several results, in order, with commas between
	// them. Both are missing where no task has one.
	traceHeader  = wire.TraceparentHeader
	tracesHeader = "revq-traceparents"

	// deliveryCountHeader is set by quorum queues. It is the number of earlier
	// deliveries of the message that were not acknowledged.
	deliveryCountHeader = "x-delivery-count"

	// offsetHeader is set by streams. It is the broker's offset of the message.
	offsetHeader = "x-stream-offset"
)

func encodeTask(t task.Task) amqp.Publishing {
	headers := amqp.Table{}
	setTime(headers, acceptedHeader, t.Accepted)
	setTime(headers, dueHeader, t.NotBefore)
	setTime(headers, expiresHeader, t.Expires)
	if t.Failed > 0 {
		headers[failedHeader] = t.Failed
	}
	if t.Deaths > 0 {
		headers[deathsHeader] = t.Deaths
	}
	setTrace(headers, t.Trace)
	return message(t.ID, []byte(t.Text), t.Accepted, headers)
}

func encodeResult(r task.Result) amqp.Publishing {
	headers := amqp.Table{doneHeader: r.Done.UnixMicro()}
	if r.Of != 0 {
		headers[digestHeader] = string(appendDigest(make([]byte, 0, digestDigits), r.Of))
	}
	setTime(headers, acceptedHeader, r.Accepted)
	setQueue(headers, r.Queue)
	setTrace(headers, r.Trace)
	return message(r.ID, []byte(r.Text), r.Done, headers)
}

func message(id string, body []byte, when time.Time, headers amqp.Table) amqp.Publishing {
	return amqp.Publishing{
		Headers:      headers,
		ContentType:  "text/plain; charset=utf-8",
		DeliveryMode: amqp.Persistent,
		MessageId:    id,
		Timestamp:    when,
		AppId:        "revq",
		Body:         body,
	}
}

// decodeTask reads a task of a queue that any AMQP client may have enqueued. A
// task without a message id gets a new id, so its repetitions cannot be
// recognised.
func decodeTask(d amqp.Delivery, queue string) (task.Task, error) {
	t := task.Task{
		ID:        d.MessageId,
		Queue:     queue,
		Text:      string(d.Body),
		Accepted:  timeHeader(d.Headers, acceptedHeader),
		NotBefore: timeHeader(d.Headers, dueHeader),
		Expires:   timeHeader(d.Headers, expiresHeader),
		Failed:    countHeader(d.Headers, failedHeader),
		Deaths:    deaths(d.Headers),
		Trace:     traceOf(d.Headers),
	}
	if t.ID == "" {
		t.ID = task.NewID()
	}
	if err := wire.CheckID(t.ID); err != nil {
		return t, err
	}
	return t, task.CheckText(t.Text, task.MaxText)
}

// decodeResult reads a result of at most that many bytes, or a progress.
func decodeResult(d amqp.Delivery, maxLength int) (task.Result, error) {
	if r, ok := decodeProgress(d); ok {
		return r, checkResult(r, maxLength)
	}
	if len(d.Body) > maxLength {
		return task.Result{}, tooLong(len(d.Body), maxLength) // without a copy
	}
	r := task.Result{
		ID:       d.MessageId,
		Queue:    queueHeaderOf(d.Headers),
		Text:     string(d.Body),
		Of:       digestAt(d.Headers, 0),
		Accepted: timeHeader(d.Headers, acceptedHeader),
		Done:     timeHeader(d.Headers, doneHeader),
		Trace:    traceOf(d.Headers),
	}
	return r, checkResult(r, maxLength)
}

func checkResult(r task.Result, maxLength int) error {
	if err := wire.CheckID(r.ID); err != nil {
		return err
	}
	if len(r.Text) > maxLength {
		return tooLong(len(r.Text), maxLength)
	}
	return task.CheckText(r.Text, maxLength)
}

func tooLong(length, maxLength int) error {
	return fmt.Errorf("%w: %d bytes, at most %d are sent (a sixth of --keep-bytes)", task.ErrTooLong, length, maxLength)
}

// lost returns what listeners get in place of a result that cannot be sent.
func lost(id string, reason error) task.Result {
	if wire.CheckID(id) != nil {
		id = "" // listeners cannot get such an id
	}
	return task.Result{Kind: task.Lost, ID: id, Text: reason.Error()}
}

func appendDigest(dst []byte, d task.Digest) []byte {
	return hex.AppendEncode(dst, binary.BigEndian.AppendUint64(make([]byte, 0, 8), uint64(d)))
}

// digestAt returns the digest of the result at index i of a message, or 0 if it
// is missing or cannot be read.
func digestAt(headers amqp.Table, i int) task.Digest {
	all, _ := headers[digestHeader].(string)
	if len(all) < (i+1)*digestDigits {
		return 0
	}
	d, err := strconv.ParseUint(all[i*digestDigits:(i+1)*digestDigits], 16, 64)
	if err != nil {
		return 0
	}
	return task.Digest(d)
}

// setQueue sets the queueHeader for a queue other than the default one.
func setQueue(headers amqp.Table, name string) {
	if name != wire.DefaultQueue && name != "" {
		headers[queueHeader] = name
	}
}

func queueHeaderOf(headers amqp.Table) string {
	if name, ok := headers[queueHeader].(string); ok && wire.CheckQueue(name) == nil {
		return name
	}
	return wire.DefaultQueue
}

// setTrace sets no header if there is no trace.
func setTrace(headers amqp.Table, trace string) {
	if trace != "" {
		headers[traceHeader] = trace
	}
}

func traceOf(headers amqp.Table) string {
	value, _ := headers[traceHeader].(string)
	return wire.ParseTraceparent(value)
}

// setTraces sets no header if none of the results has a trace.
func setTraces(headers amqp.Table, bundle []unsent) {
	if !slices.ContainsFunc(bundle, func(u unsent) bool { return u.result.Trace != "" }) {
		return
	}
	var all []byte
	for i, u := range bundle {
		if i > 0 {
			all = append(all, ',')
		}
		all = append(all, u.result.Trace...)
	}
	headers[tracesHeader] = string(all)
}

// tracesOf returns the traces of a message's results, in order. There may be
// fewer than results.
func tracesOf(headers amqp.Table) []string {
	all, ok := headers[tracesHeader].(string)
	if !ok {
		return nil
	}
	traces := strings.SplitN(all, ",", places)
	for i, trace := range traces {
		traces[i] = wire.ParseTraceparent(trace)
	}
	return traces
}

// setTime sets no header for the zero time.
func setTime(headers amqp.Table, name string, t time.Time) {
	if !t.IsZero() {
		headers[name] = t.UnixMicro()
	}
}

// timeHeader returns the zero time if there is no such header.
func timeHeader(headers amqp.Table, name string) time.Time {
	if us, ok := headers[name].(int64); ok {
		return time.UnixMicro(us)
	}
	return time.Time{}
}

// countHeader returns 0 if there is no such header. RabbitMQ chooses the width
// of the integer by its value. Strangers may write any: what is no count is
// taken for the nearest one, to which another can be added.
func countHeader(headers amqp.Table, name string) int64 {
	var count int64
	switch n := headers[name].(type) {
	case int64:
		count = n
	case int32:
		count = int64(n)
	case int16:
		count = int64(n)
	case int8:
		count = int64(n)
	case uint8:
		count = int64(n)
	}
	return min(max(0, count), math.MaxInt32)
}
