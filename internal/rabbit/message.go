package rabbit

import (
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/task"
)

// Headers carry the times of a message in microseconds since 1970: the
// property timestamp of AMQP knows only seconds.
const (
	acceptedHeader = "revq-accepted"
	doneHeader     = "revq-done"

	// deliveryCountHeader is set by quorum queues: how often the message was
	// delivered before without being acknowledged.
	deliveryCountHeader = "x-delivery-count"

	// offsetHeader is set by streams: the position of the message.
	offsetHeader = "x-stream-offset"
)

func encodeTask(t task.Task) amqp.Publishing {
	return message(t.ID, []byte(t.Text), t.Accepted, amqp.Table{acceptedHeader: t.Accepted.UnixMicro()})
}

func encodeResult(r task.Result) amqp.Publishing {
	headers := amqp.Table{doneHeader: r.Done.UnixMicro()}
	if !r.Accepted.IsZero() {
		headers[acceptedHeader] = r.Accepted.UnixMicro()
	}
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

// decodeTask reads a task that any AMQP client may have enqueued. One without
// a message id gets a new one, so that repetitions of it cannot be told apart.
func decodeTask(d amqp.Delivery) (task.Task, error) {
	t := task.Task{ID: d.MessageId, Text: string(d.Body), Accepted: timeHeader(d.Headers, acceptedHeader)}
	if t.ID == "" {
		t.ID = task.NewID()
	}
	if err := task.CheckID(t.ID); err != nil {
		return t, err
	}
	return t, task.CheckText(t.Text, task.MaxText)
}

func decodeResult(d amqp.Delivery) (task.Result, error) {
	r := task.Result{
		ID:       d.MessageId,
		Text:     string(d.Body),
		Accepted: timeHeader(d.Headers, acceptedHeader),
		Done:     timeHeader(d.Headers, doneHeader),
	}
	return r, checkResult(r)
}

func checkResult(r task.Result) error {
	if err := task.CheckID(r.ID); err != nil {
		return err
	}
	return task.CheckText(r.Text, task.MaxText)
}

// timeHeader returns the zero time where there is no such header.
func timeHeader(headers amqp.Table, name string) time.Time {
	if us, ok := headers[name].(int64); ok {
		return time.UnixMicro(us)
	}
	return time.Time{}
}

// intHeader returns 0 where there is no such header. RabbitMQ picks the
// integer's width by its value.
func intHeader(headers amqp.Table, name string) int64 {
	switch n := headers[name].(type) {
	case int64:
		return n
	case int32:
		return int64(n)
	case int16:
		return int64(n)
	case int8:
		return int64(n)
	case uint8:
		return int64(n)
	}
	return 0
}
