package rabbit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/task"
)

const (
	// maxUnderWay is how many messages with results may wait for confirmation.
	// A lone result is sent at once; under load, what comes meanwhile shares
	// the next message. One alone would leave the connection idle for a round trip.
	maxUnderWay = 2

	// maxBundle is how many results share a message. A stream costs the broker
	// about as much for a message of fifty as for one of one, so that more
	// would gain nothing; and a reader that begins so many messages in
	// the past has so many times more results to read at most.
	maxBundle = 50

	// maxBundleBytes is above which size a message takes no more results:
	// larger ones cost by their length anyway.
	maxBundleBytes = 64 << 10

	// places is how many offsets each message of the stream has: its results
	// are numbered from the broker's offset times places on. It is a round
	// number, so that people can read the one in the other.
	places = 100

	bundleType = "application/vnd.revq.results"
)

// A bundler publishes results, several in one message where they come faster
// than the broker confirms.
type bundler struct {
	publish    func(amqp.Publishing) <-chan error
	maxWaiting int // results; what comes on top is answered with ErrBusy

	mu       sync.Mutex
	waiting  []unsent
	underWay int // messages sent and not confirmed
}

// An unsent is a result that waits to be sent, and whoever waits for it.
type unsent struct {
	result task.Result
	answer chan error // has room for the one answer
}

// add sends r, now or with the next message.
func (b *bundler) add(r task.Result) <-chan error {
	answer := make(chan error, 1)
	b.mu.Lock()
	if len(b.waiting) >= b.maxWaiting {
		b.mu.Unlock()
		answer <- ErrBusy
		return answer
	}
	b.waiting = append(b.waiting, unsent{r, answer})
	free := b.underWay < maxUnderWay
	if free {
		b.underWay++
	}
	b.mu.Unlock()
	if free {
		runtime.Gosched() // handlers that end in this moment add theirs
		if bundle, confirmed := b.next(); bundle != nil {
			go b.follow(bundle, confirmed)
		}
	}
	return answer
}

// follow answers for a bundle, and sends the next ones as long as there are any.
func (b *bundler) follow(bundle []unsent, confirmed <-chan error) {
	for bundle != nil {
		err := <-confirmed
		for _, u := range bundle {
			u.answer <- err
		}
		bundle, confirmed = b.next()
	}
}

// next sends the next message and returns what it holds; nil if nothing waits,
// and then one message less is under way.
func (b *bundler) next() (bundle []unsent, confirmed <-chan error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, size := 0, 0
	for n < min(len(b.waiting), maxBundle) {
		r := b.waiting[n].result
		if size += len(r.ID) + len(r.Text); n > 0 && size > maxBundleBytes {
			break
		}
		n++
	}
	if n == 0 {
		b.underWay--
		return nil, nil
	}
	bundle, b.waiting = b.waiting[:n:n], b.waiting[n:]
	if len(b.waiting) == 0 {
		b.waiting = nil
	}
	return bundle, b.send(bundle)
}

func (b *bundler) send(bundle []unsent) <-chan error {
	if len(bundle) == 1 {
		return b.publish(encodeResult(bundle[0].result))
	}
	var body []byte
	for _, u := range bundle {
		body = appendRecord(body, u.result)
	}
	first := bundle[0].result
	m := message(first.ID, body, first.Done, nil)
	m.ContentType = bundleType
	return b.publish(m)
}

// appendRecord appends r as one of several results in the body of a message:
// both times in microseconds since 1970 (8 bytes each, big endian; a time
// that is not known is the zero time), and id and text, each behind its length in bytes (varint).
func appendRecord(dst []byte, r task.Result) []byte {
	for _, t := range []time.Time{r.Accepted, r.Done} {
		dst = binary.BigEndian.AppendUint64(dst, uint64(t.UnixMicro()))
	}
	for _, s := range []string{r.ID, r.Text} {
		dst = append(binary.AppendUvarint(dst, uint64(len(s))), s...)
	}
	return dst
}

// What decodeBundle finds wrong.
var (
	errGarbled = errors.New("a message with several results is cut off or garbled")
	errTooMany = fmt.Errorf("a message has more than %d results", places)
)

// decodeBundle reads a body that appendRecord has written. It has at least one result.
func decodeBundle(body []byte) (results []task.Result, err error) {
	for len(results) == 0 || len(body) > 0 {
		if len(results) == places {
			return nil, errTooMany
		}
		var r task.Result
		if r, body, err = cutRecord(body); err != nil {
			return nil, err
		}
		results = append(results, r)
	}
	return results, nil
}

// cutRecord returns the first result in body, and what follows it.
func cutRecord(body []byte) (r task.Result, rest []byte, err error) {
	for _, t := range []*time.Time{&r.Accepted, &r.Done} {
		if len(body) < 8 {
			return r, nil, errGarbled
		}
		*t, body = time.UnixMicro(int64(binary.BigEndian.Uint64(body))), body[8:]
	}
	for _, s := range []*string{&r.ID, &r.Text} {
		length, n := binary.Uvarint(body)
		if n <= 0 || length > uint64(len(body)-n) {
			return r, nil, errGarbled
		}
		end := n + int(length)
		*s, body = string(body[n:end]), body[end:]
	}
	return r, body, nil
}
