package rabbittest

import (
	"bytes"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience bounds the waits below. It is for what must happen and has no
// deadline of its own, on a busy machine.
const patience = 30 * time.Second

// Eventually waits until check returns nil, for what the broker signals to
// nobody.
func Eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not %s within %v: %v", what, patience, err)
		}
	}
}

// Receive waits for a value.
func Receive[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s within %v; the goroutines:\n%s", what, patience, Stacks())
		panic("not reached")
	}
}

// Stacks returns the stacks of all goroutines.
func Stacks() string {
	buf := make([]byte, 4<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

// An Output keeps a log.
type Output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Log returns a logger and what it writes, which is shown if the test fails.
func Log(t testing.TB) (*slog.Logger, *Output) {
	out := new(Output)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("the log:\n" + out.String())
		}
	})
	return slog.New(slog.NewTextHandler(out, nil)), out
}

func (o *Output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// Says waits until the log has text.
func (o *Output) Says(t testing.TB, text string) {
	t.Helper()
	Eventually(t, "logged", func() error {
		if !strings.Contains(o.String(), text) {
			return fmt.Errorf("no %q", text)
		}
		return nil
	})
}
