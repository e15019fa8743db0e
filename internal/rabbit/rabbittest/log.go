package rabbittest

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/revq/revq/internal/await"
)

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
	await.Nil(t, "logged", func() error {
		if !strings.Contains(o.String(), text) {
			return fmt.Errorf("no %q", text)
		}
		return nil
	})
}
