package handler

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/revq/revq/internal/worker"
)

// A persistent program in a unit of its own speaks with the worker itself, and
// ends with the connection, whatever it is doing.
func TestAttend(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, kind, last string // the last text
		outcome          worker.Outcome
		says             string
		ends             string // what Attend returns; empty for nil
	}{
		{"ends with its input", "", "abc", worker.Done, "ABC", ""},
		{"ends in a task", "", "!exit", worker.Failed, "ended", "exit status 7"},
		{"hangs", "", "!hang", worker.Failed, "time-out of 1s", "still ran 2s after"},
		{"ignores its end", "ignores its end", "abc", worker.Done, "ABC", "still ran 2s after"},
		{"crashes at start", "crashes at start", "abc", worker.Misconfigured, "hello", "exit status 3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg, served := quick(), quick()
			path := filepath.Join(t.TempDir(), "socket")
			cfg.Mode = socketPrefix + path
			if tt.outcome == worker.Failed {
				cfg.Timeout = time.Second // the other ones answer, however long a busy machine takes
			}
			r := newRig(t, cfg)
			served.Program = program(t, tt.kind)
			served.Program[3] = r.dir
			ended := make(chan error, 1)
			serveSocket(t, path, func(conn net.Conn) {
				file, err := conn.(*net.UnixConn).File()
				if err != nil {
					t.Error(err)
					return
				}
				defer file.Close()
				conn.Close() // the program's end is the only one
				ended <- Attend(t.Context(), served, file, file, os.Stderr)
				unix.Shutdown(int(file.Fd()), unix.SHUT_RDWR) // as the end of revq handle does
			})
			r.expect(tt.last, tt.outcome, tt.says)
			r.h.Close()
			select {
			case err := <-ended:
				if (err == nil) != (tt.ends == "") || err != nil && !strings.Contains(err.Error(), tt.ends) {
					t.Errorf("Attend returned %v, want %q", err, tt.ends)
				}
			case <-time.After(patience):
				t.Fatal("the program still runs")
			}
		})
	}
}
