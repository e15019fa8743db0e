// Package await waits in tests: for what gives no signal, by looking again and
// again, and for values of a channel. Each wait has a deadline.
package await

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"
)

const (
	// Patience is the time limit for what must happen, on a machine that is busy
	// with other tests. What must happen quickly is measured.
	Patience = 30 * time.Second

	// Every is the time from one look to the next one.
	Every = 5 * time.Millisecond
)

// Nil waits until check returns nil, and returns how long that took. If that
// takes too long, the test ends with what and the last error.
func Nil(t testing.TB, what string, check func() error) time.Duration {
	t.Helper()
	return NilWithin(t, Patience, what, check)
}

// NilWithin is Nil with a limit of its own, for what takes long.
func NilWithin(t testing.TB, limit time.Duration, what string, check func() error) time.Duration {
	t.Helper()
	began := time.Now()
	ticker := time.NewTicker(Every)
	defer ticker.Stop()
	for err := check(); err != nil; err = check() {
		if time.Since(began) > limit {
			t.Fatalf("not within %v: %s: %v", limit, what, err)
		}
		<-ticker.C
	}
	return time.Since(began)
}

var errNotYet = errors.New("it is not so")

// True is Nil for what is either so or not.
func True(t testing.TB, what string, ok func() bool) time.Duration {
	t.Helper()
	return Nil(t, what, func() error {
		if ok() {
			return nil
		}
		return errNotYet
	})
}

// Value waits for a value of a channel.
func Value[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(Patience):
		t.Fatalf("no %s within %v; the goroutines:\n%s", what, Patience, Stacks())
		panic("not reached")
	}
}

// Context returns a context that ends with the test, or after Patience.
func Context(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	t.Cleanup(cancel)
	return ctx
}

// Stacks returns the stacks of all goroutines.
func Stacks() string {
	buf := make([]byte, 4<<20)
	return string(buf[:runtime.Stack(buf, true)])
}
