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
	// bundleInterval is the least time between two messages that are not full.
	// A lone result is sent at once; under load, what comes meanwhile shares
	// the next message. What a message costs, apart from the results in it, is
	// up to a millisecond of the broker's time, most of it for the readers of
	// the stream: this allows it a tenth of a processor for each worker.
	bundleInterval = 10 * time.Millisecond

	// maxUnderWay is how many messages with results may wait for confirmation,
	// so that also a broker that is far away gets some thousand results a second.
	maxUnderWay = 4

	// maxBundle is how many results share a message. A stream costs the broker
	// about as much for a message of fifty as for one of one, so that more
	// would gain nothing; and a reader that begins so many messages
	// before the end has at most so many times more results to read.
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

// A bundler publishes results, several in one message where they come fast.
type bundler struct {
	publish    func(amqp.Publishing) <-chan error
	most       int // results in a message
	maxWaiting int // results; what comes on top is answered with ErrBusy

	mu       sync.Mutex
	waiting  []unsent
	bytes    int       // of waiting
	underWay int       // messages sent and not confirmed
	last     time.Time // when the last one was sent
	timed    bool      // send will be called when it is time for the next one
}

// An unsent is a result that waits to be sent, and whoever waits for it.
type unsent struct {
	result task.Result
	answer chan error // has room for the one answer
}

func (u unsent) bytes() int { return len(u.result.ID) + len(u.result.Text) }

// add sends r, now or with a later message.
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
		runtime.Gosched() // handlers that end in this moment add theirs
	}
	if n == 0 || full {
		b.send()
	}
	return u.answer
}

func (b *bundler) full() bool { return len(b.waiting) >= b.most || b.bytes >= maxBundleBytes }

// send sends what waits, unless it is too soon.
func (b *bundler) send() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.waiting) > 0 && b.underWay < maxUnderWay {
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
		b.underWay++
		bundle := b.next()
		confirmed := b.publish(encodeBundle(bundle))
		go func() {
			err := <-confirmed
			for _, u := range bundle {
				u.answer <- err
			}
			b.mu.Lock()
			b.underWay--
			b.mu.Unlock()
			b.send()
		}()
	}
}

// next takes from waiting what the next message is to hold.
func (b *bundler) next() []unsent {
	n, bytes := 0, 0
	for n < min(len(b.waiting), b.most) {
		size := b.waiting[n].bytes()
		if n > 0 && bytes+size > maxBundleBytes {
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

// encodeBundle returns a message with results; one alone is as other programs
// may publish it, too.
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
	m := message(first.ID, body, first.Done, amqp.Table{digestHeader: string(digests)})
	m.ContentType = bundleType
	return m
}

// appendRecord appends r as one of several results in the body of a message:
// both times in microseconds since 1970 (8 bytes each, big endian; a time that
// is not known is the zero time), and id and text, each behind its length in
// bytes (varint).
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
