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
	// bundleInterval is the minimum time between two messages that are not
	// full. A single result is sent at once. Under load, the results that
	// arrive meanwhile share the next message. Each message costs the broker
	// up to a millisecond besides its results, most of it for the readers of
	// the stream: this interval limits that to a tenth of a processor for each
	// worker.
	bundleInterval = 10 * time.Millisecond

	// maxInFlight is how many messages with results may be in flight. With 4,
	// even a broker that is far away gets a few thousand results a second.
	maxInFlight = 4

	// maxBundle is how many results may share a message. A message with fifty
	// results costs the broker about as much as a message with one, so more
	// would gain nothing. It also bounds what a reader has to read that begins
	// at a given number of messages before the end.
	maxBundle = 50

	// maxBundleBytes is the size from which on a message takes no more
	// results: the cost of larger messages depends on their length anyway.
	maxBundleBytes = 64 << 10

	// places is how many offsets each message of the stream has. The first
	// result in a message has the broker's offset times places. It is a round
	// number, so that people can see the broker's offset in a result's offset.
	places = 100

	bundleType = "application/vnd.revq.results"

	// ownTypes is what all content types of revq's own forms begin with. A new
	// form gets a new one, so that older versions do not take it for a text.
	ownTypes = "application/vnd.revq."
)

// A bundler publishes results. Results that arrive fast share messages.
type bundler struct {
	publish    func(amqp.Publishing) <-chan error
	maxResults int // results in a message
	maxWaiting int // results; further ones are answered with ErrBusy

	mu       sync.Mutex
	waiting  []unsent
	bytes    int       // of waiting
	inFlight int       // messages published and not confirmed
	last     time.Time // when the last message was published
	timed    bool      // a timer will call send
}

// An unsent is a result that waits to be published.
type unsent struct {
	result task.Result
	answer chan error // has room for the one answer
}

func (u unsent) bytes() int { return len(u.result.ID) + len(u.result.Text) }

// add publishes r, now or in a later message. The channel gets the answer.
func (b *bundler) add(r task.Result) <-chan error {
	u := unsent{r, make(chan error, 1)}
	b.mu.Lock()
	n := len(b.waiting)
	if n == b.maxWaiting {
		b.mu.Unlock()
		u.answer <- ErrBusy
		return u.answer
	}
	b.waiting = append(b.waiting, u)
	b.bytes += u.bytes()
	full := b.full()
	b.mu.Unlock()
	if n == 0 {
		runtime.Gosched() // lets handlers that end at this moment add theirs
	}
	if n == 0 || full {
		b.send()
	}
	return u.answer
}

func (b *bundler) full() bool { return len(b.waiting) >= b.maxResults || b.bytes >= maxBundleBytes }

// send publishes the waiting results, or sets a timer if it is too soon.
func (b *bundler) send() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.waiting) > 0 && b.inFlight < maxInFlight {
		now := time.Now()
		if wait := bundleInterval - now.Sub(b.last); wait > 0 && !b.full() {
			if !b.timed {
				b.timed = true
				time.AfterFunc(wait, func() {
					b.mu.Lock()
					b.timed = false
					b.mu.Unlock()
					b.send()
				})
			}
			return
		}
		b.last = now
		b.inFlight++
		bundle := b.next()
		confirmed := b.publish(encodeBundle(bundle))
		go func() {
			err := <-confirmed
			for _, u := range bundle {
				u.answer <- err
			}
			b.mu.Lock()
			b.inFlight--
			b.mu.Unlock()
			b.send()
		}()
	}
}

// next removes the results of the next message from waiting. They are of one
// queue, whose name is a header of the message.
func (b *bundler) next() []unsent {
	n, bytes := 0, 0
	for n < min(len(b.waiting), b.maxResults) {
		size := b.waiting[n].bytes()
		if n > 0 && (bytes+size > maxBundleBytes || b.waiting[n].result.Queue != b.waiting[0].result.Queue) {
			break
		}
		bytes += size
		n++
	}
	bundle := b.waiting[:n:n]
	if b.waiting = b.waiting[n:]; len(b.waiting) == 0 {
		b.waiting = nil
	}
	b.bytes -= bytes
	return bundle
}

// encodeBundle returns a message with the results. A single result has the form
// that other programs may publish, too.
func encodeBundle(bundle []unsent) amqp.Publishing {
	if len(bundle) == 1 {
		return encodeResult(bundle[0].result)
	}
	var body []byte
	digests := make([]byte, 0, len(bundle)*digestDigits)
	for _, u := range bundle {
		body = appendRecord(body, u.result)
		digests = appendDigest(digests, u.result.Of)
	}
	first := bundle[0].result
	headers := amqp.Table{digestHeader: string(digests)}
	setQueue(headers, first.Queue)
	setTraces(headers, bundle)
	m := message(first.ID, body, first.Done, headers)
	m.ContentType = bundleType
	return m
}

// appendRecord appends r as one of several results in the body of a message.
// First come both times in microseconds since 1970, 8 bytes each, big endian;
// an unknown time is the zero time. Then come the id and the text, each after
// its length in bytes as a varint.
func appendRecord(dst []byte, r task.Result) []byte {
	for _, t := range []time.Time{r.Accepted, r.Done} {
		dst = binary.BigEndian.AppendUint64(dst, uint64(t.UnixMicro()))
	}
	for _, s := range []string{r.ID, r.Text} {
		dst = append(binary.AppendUvarint(dst, uint64(len(s))), s...)
	}
	return dst
}

// The errors of messages with several results.
var (
	errNewer   = errors.New("a message of a newer version of revq, maybe with several results, cannot be read: upgrade revq-socket")
	errGarbled = errors.New("a message with several results is cut off or garbled")
	errTooMany = fmt.Errorf("a message has more than %d results", places)
)

// decodeBundle reads a body that appendRecord has written. It returns at least
// one result, or an error.
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

// cutRecord returns the first result in body and the rest of body.
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
