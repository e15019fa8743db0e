package rabbit

import (
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/task"
)

// progressHeader has the text of a progress. It is a header, and the body is
// empty, so that no version of revq takes a progress for the result of its task.
const progressHeader = "revq-progress"

func encodeProgress(r task.Result) amqp.Publishing {
	headers := amqp.Table{progressHeader: r.Text}
	setTime(headers, acceptedHeader, r.Accepted)
	setQueue(headers, r.Queue)
	setTrace(headers, r.Trace)
	return message(r.ID, nil, time.Now(), headers)
}

// decodeProgress returns false if d is not a progress.
func decodeProgress(d amqp.Delivery) (r task.Result, ok bool) {
	text, ok := d.Headers[progressHeader].(string)
	if !ok {
		return task.Result{}, false
	}
	return task.Result{
		Kind:     task.Progress,
		ID:       d.MessageId,
		Queue:    queueHeaderOf(d.Headers),
		Text:     text,
		Accepted: timeHeader(d.Headers, acceptedHeader),
		Trace:    traceOf(d.Headers),
	}, true
}
