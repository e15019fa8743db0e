package handler

import (
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/revq/revq/internal/worker"
)

func TestDecide(t *testing.T) {
	t.Parallel()
	const maxOutput = 10
	type test struct {
		name string
		e    ending
		want worker.Outcome
		says string
	}
	tests := []test{
		{"done", ending{output: "fedcba"}, worker.Done, ""},
		{"as long as it may be", ending{output: strings.Repeat("x", maxOutput)}, worker.Done, ""},
		{"missing", ending{start: &exec.Error{Name: "x", Err: exec.ErrNotFound}}, worker.Misconfigured, "not found"},
		{"not executable", ending{start: &fs.PathError{Op: "fork/exec", Path: "x", Err: syscall.EACCES}}, worker.Misconfigured, "permission denied"},
		{"no program", ending{start: syscall.ENOEXEC}, worker.Misconfigured, "exec format"},
		{"no result", ending{}, worker.Failed, "empty"},
		{"too long", ending{output: strings.Repeat("x", maxOutput+1)}, worker.Failed, "too long"},
		{"not UTF-8", ending{output: "\xff"}, worker.Failed, "UTF-8"},
		{"killed for its output", ending{cut: tooLarge, signal: syscall.SIGKILL}, worker.Failed, "--max-output"},
		{"killed after its time", ending{cut: tooLong, signal: syscall.SIGKILL}, worker.Failed, "5s"},
		{"ended in time after all", ending{cut: tooLong, output: "late"}, worker.Failed, "5s"},
		{"stopped", ending{cut: stopped, signal: syscall.SIGKILL}, worker.Stopped, "cut short"},
		{"stopped, ended with a status", ending{cut: stopped, status: 65}, worker.Stopped, "cut short"},
		{"killed by someone", ending{signal: syscall.SIGKILL}, worker.Failed, "signal 9"},
		{"crashed", ending{signal: syscall.SIGSEGV, output: "half"}, worker.Failed, "signal 11"},
	}
	for _, shortage := range shortages {
		tests = append(tests, test{shortage.Error(), ending{start: fmt.Errorf("fork/exec: %w", shortage)}, worker.Later, shortage.Error()})
	}
	statuses := map[int]worker.Outcome{
		75: worker.Later, 111: worker.Later, 65: worker.Never, 100: worker.Never, 126: worker.Misconfigured, 127: worker.Misconfigured,
	}
	for status := 1; status < 256; status++ {
		want, special := statuses[status]
		if !special {
			want = worker.Failed
		}
		tests = append(tests, test{fmt.Sprintf("status %d", status), ending{status: status, output: "half"}, want, fmt.Sprintf("exit status %d", status)})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := decide(tt.e, limits{timeout: 5 * time.Second, maxOutput: maxOutput})
			if tt.want == worker.Done {
				if got != nil {
					t.Fatalf("decide() = %v, want a result", got)
				}
				return
			}
			if got == nil || got.Outcome != tt.want || !strings.Contains(got.Error(), tt.says) {
				t.Errorf("decide() = %+v, want the outcome %d and %q", got, tt.want, tt.says)
			}
			if tt.e.start != nil && !errors.Is(got, tt.e.start) {
				t.Errorf("the error does not wrap %v", tt.e.start)
			}
		})
	}
}
