package rabbit

import (
	"encoding/binary"
	"testing"
	"time"
	"unicode/utf8"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// headerNames are all headers that are read of a message.
var headerNames = []string{
	acceptedHeader, doneHeader, digestHeader, queueHeader, failedHeader, dueHeader, expiresHeader, deliveryCountHeader, offsetHeader,
	traceHeader, tracesHeader, progressHeader, diedHeader, errorHeader, saidHeader, deathsHeader,
	"x-death", "x-first-death-reason", "x-last-death-reason", "x-first-death-queue", "x-last-death-queue", "count", "reason", "queue", "time",
}

// headersFrom makes headers of any type out of bytes: for each the number of its
// name, that of its type, the length of its value, and the value.
func headersFrom(b []byte, depth int) amqp.Table {
	headers := amqp.Table{}
	for len(b) > 3 {
		name, kind, n := headerNames[int(b[0])%len(headerNames)], b[1], min(int(b[2]), len(b)-3)
		value := b[3 : 3+n]
		b = b[3+n:]
		number := int64(0)
		if n >= 8 {
			number = int64(binary.BigEndian.Uint64(value))
		} else if n > 0 {
			number = int64(int8(value[0]))
		}
		switch kind % 12 {
		case 0, 1, 2:
			headers[name] = string(value)
		case 3:
			headers[name] = number
		case 4:
			headers[name] = int32(number)
		case 5:
			headers[name] = uint8(number)
		case 6:
			headers[name] = float64(number)
		case 7:
			headers[name] = time.Unix(number, 0)
		case 8:
			headers[name] = nil
		case 9:
			headers[name] = value
		default:
			if depth == 0 {
				headers[name] = []any{}
			} else if inner := headersFrom(value, depth-1); kind%12 == 10 {
				headers[name] = []any{inner, string(value)}
			} else {
				headers[name] = inner
			}
		}
	}
	return headers
}

// header is one header as headersFrom reads it.
func header(name, kind byte, value string) string {
	return string([]byte{name, kind, byte(len(value))}) + value
}

// FuzzStrangers reads any message that a program that is not revq may have put
// into one of the queues, with headers of any type: what is passed on is a
// proper task or something that listeners can be sent.
func FuzzStrangers(f *testing.F) {
	trace := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	deathOf := func(count string) string {
		return header(23, 0, TasksQueue) + header(22, 0, "rejected") + header(24, 7, "\x01") + header(21, 3, count)
	}
	death := deathOf("\x02")
	for _, headers := range []string{
		"", header(0, 3, "\x00\x06\x43\x00\x00\x00\x00\x00") + header(9, 0, trace), header(16, 10, death), header(16, 11, death), header(16, 0, "no list"), header(16, 10, deathOf("\xf8")),
		header(12, 3, "\x00\x06\x43\x00\x00\x00\x00\x00") + header(13, 0, "\xff\xfe") + header(14, 0, "said"), header(11, 0, "progress \xff"), header(4, 3, "\x80\x00\x00\x00\x00\x00\x00\x00"),
		header(3, 0, "No Queue") + header(17, 0, "\xff"), header(8, 0, "not an offset"), header(10, 0, trace+","+trace), header(5, 3, "\x7f\xff\xff\xff\xff\xff\xff\xff"),
	} {
		f.Add([]byte(headers), "id", Exchange, deadKey, "text/plain", []byte("text"))
		f.Add([]byte(headers), "", DueExchange, "", bundleType, []byte{0xff})
		f.Add([]byte(headers), "not an id\n", MarksExchange, resultsKey, "", []byte{})
	}
	f.Fuzz(func(t *testing.T, headers []byte, id, exchange, key, contentType string, body []byte) {
		d := amqp.Delivery{
			Headers: headersFrom(headers, 2), MessageId: id, Exchange: exchange, RoutingKey: key, ContentType: contentType, Body: body,
		}
		checkTrace := func(trace string) {
			if trace != "" && wire.ParseTraceparent(trace) != trace {
				t.Errorf("the trace %q", trace)
			}
		}
		one, err := decodeTask(d, "pages")
		if err == nil && (wire.CheckID(one.ID) != nil || task.CheckText(one.Text, task.MaxText) != nil) {
			t.Errorf("the task %+v", one)
		}
		if one.Failed < 0 || one.Deaths < 0 {
			t.Errorf("failed %d times, died %d times", one.Failed, one.Deaths)
		}
		checkTrace(one.Trace)

		const maxLength = 100
		entries, err := decodeEntries(nil, d, maxLength)
		if err != nil {
			if _, ok := d.Headers[offsetHeader].(int64); ok {
				t.Errorf("a message of the stream: %v", err)
			}
			entries = nil
		}
		for _, e := range entries {
			r := e.result
			if r.ID != "" && wire.CheckID(r.ID) != nil || !utf8.ValidString(r.Text) || len(r.Text) > 4*maxError || wire.CheckQueue(r.Queue) != nil && r.Queue != "" {
				t.Errorf("listeners cannot get %+v", r)
			}
			checkTrace(r.Trace)
		}

		letter := decodeDead(d)
		if letter.Count < 0 {
			t.Errorf("a dead letter died %d times", letter.Count)
		}
		if told, err := decodeGivenUp(d); err == nil && (!utf8.ValidString(told.Text) || len(told.Text) > 4*maxError || wire.CheckQueue(told.Queue) != nil && told.Queue != "") {
			t.Errorf("listeners cannot get %+v", told)
		}
	})
}
