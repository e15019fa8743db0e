package journal

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Each record is one line that begins with its priority, also of loggers with
// attributes, and of messages with line breaks.
func TestHandler(t *testing.T) {
	var out strings.Builder
	text := func(w io.Writer, o *slog.HandlerOptions) slog.Handler { return slog.NewTextHandler(w, o) }
	log := slog.New(Handler(&out, slog.HandlerOptions{Level: slog.LevelDebug}, text))
	log.Debug("a")
	log.With("connection", "reader").Info("b")
	log.WithGroup("g").Warn("c", "k", "one\n<0>two")
	log.Error("d")
	want := "<7>level=DEBUG msg=a\n<6>level=INFO msg=b connection=reader\n<4>level=WARN msg=c g.k=\"one\\n<0>two\"\n<3>level=ERROR msg=d\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", &out, want)
	}
}

// A file is the journal if JOURNAL_STREAM names it, and an error has its
// priority there, in each line.
func TestError(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/stream")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		t.Fatal(err)
	}
	Error(f, "to a file")
	t.Setenv("JOURNAL_STREAM", "1:1")
	Error(f, "to another's journal")
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", stat.Dev, stat.Ino))
	Error(f, "to the journal\nin two lines")
	got, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if want := "to a file\nto another's journal\n<3>to the journal\n<3>in two lines\n"; string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
