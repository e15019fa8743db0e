package load

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// An Alarm is a timer of a loop, precise to some 50 µs. The loop's own waits
// are only precise to a millisecond.
type Alarm struct {
	fd   int
	loop *Loop
	ring func() error
}

// NewAlarm returns an alarm that is not set yet. The loop calls ring when it
// goes off; an error ends Run.
func (l *Loop) NewAlarm(ring func() error) (*Alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("create a timer: %w", err)
	}
	a := &Alarm{fd: fd, loop: l, ring: ring}
	if err := l.add(fd, unix.EPOLLIN, a); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return a, nil
}

// Set makes the alarm go off once, after d. It replaces an earlier setting.
func (a *Alarm) Set(d time.Duration) error {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(int64(d), 1))}
	if err := unix.TimerfdSettime(a.fd, 0, &spec, nil); err != nil {
		return fmt.Errorf("set a timer: %w", err)
	}
	return nil
}

func (a *Alarm) ready(uint32) error {
	var buf [8]byte
	unix.Read(a.fd, buf[:])
	return a.ring()
}

// Close releases the alarm, which does not go off any more.
func (a *Alarm) Close() { a.loop.drop(a.fd) }
