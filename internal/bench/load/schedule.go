package load

import "time"

// A Schedule says when texts are due that are posted at a constant rate,
// whether or not they can be sent then. Latencies are counted from that time.
// Counting from the time of sending would be coordinated omission: a server
// that stalls also stops the client, which then sends less and measures few of
// the long latencies.
type Schedule struct {
	began time.Time
	every time.Duration
	next  int64 // number of the next text
}

// NewSchedule returns a schedule whose first text is due at began, and rate
// texts in each second after that.
func NewSchedule(began time.Time, rate float64) *Schedule {
	return &Schedule{began: began, every: time.Duration(float64(time.Second) / rate)}
}

// Due returns when text n, counted from 0, is due.
func (s *Schedule) Due(n int64) time.Time { return s.began.Add(time.Duration(n) * s.every) }

// Next returns when the next text is due.
func (s *Schedule) Next() time.Time { return s.Due(s.next) }

// Take returns when the next text was due, if that is not after now, and moves to
// the one after it.
func (s *Schedule) Take(now time.Time) (due time.Time, ok bool) {
	due = s.Due(s.next)
	if due.After(now) {
		return due, false
	}
	s.next++
	return due, true
}
