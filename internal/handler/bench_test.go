package handler

import (
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/revq/revq/internal/reverse"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/worker"
)

func benchmarkHandler(b *testing.B, h worker.Handler) {
	b.Helper()
	t := task.Task{ID: task.NewID(), Text: strings.Repeat("0123456789", 10)}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.Handle(b.Context(), t); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkForkExec is what the system alone takes for a process that copies
// its input to its output.
func BenchmarkForkExec(b *testing.B) {
	text := strings.Repeat("0123456789", 10)
	for b.Loop() {
		cmd := exec.Command("/bin/cat")
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.Output(); err != nil || len(out) != len(text) {
			b.Fatal(err)
		}
	}
}

// BenchmarkFilter is the same as a handler.
func BenchmarkFilter(b *testing.B) {
	cfg := DefaultConfig()
	cfg.Program = []string{"/bin/cat"}
	benchmarkHandler(b, New(cfg, slog.New(slog.DiscardHandler)))
}

// BenchmarkPersistent asks a process that answers at once.
func BenchmarkPersistent(b *testing.B) {
	cfg := DefaultConfig()
	cfg.Mode, cfg.Program = persistentMode, benchProgram(b)
	h := New(cfg, slog.New(slog.DiscardHandler))
	defer h.Close()
	benchmarkHandler(b, h)
}

// BenchmarkBuiltIn is the handler in the worker's own process, without a pause.
func BenchmarkBuiltIn(b *testing.B) { benchmarkHandler(b, reverse.New(reverse.Config{})) }

func benchProgram(b *testing.B) []string {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	return []string{self, "program", "", b.TempDir()}
}
