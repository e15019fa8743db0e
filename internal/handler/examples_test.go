package handler

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/revq/revq/internal/worker"
)

// example returns a program of README.md as a file.
func example(t *testing.T, name string) string {
	t.Helper()
	page, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := strings.Cut(string(page), "<!-- example: "+name+" -->\n```")
	_, after, _ = strings.Cut(after, "\n") // the language
	text, _, closed := strings.Cut(after, "```\n")
	if !found || !closed {
		t.Fatalf("README.md has no example %q", name)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExamples(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ mode, name, refused, says string }{
		{filterMode, "filter", "abc1", "digits are not allowed"},
		{persistentMode, "persistent", "ä", "only ASCII, please"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath("python3"); err != nil && tt.mode == persistentMode {
				t.Skip(err)
			}
			cfg := quick()
			cfg.Mode, cfg.Program = tt.mode, []string{example(t, tt.name)}
			r := newRig(t, cfg)
			r.expect("abc", worker.Done, "ABC")
			r.expect(tt.refused, worker.Never, tt.says)
			r.expect("def", worker.Done, "DEF")
			if tt.mode == filterMode {
				return // it refuses the samples with digits
			}
			if err := Check(t.Context(), cfg, textLog(r.log), func(string, error) {}); err != nil {
				t.Error(err)
			}
		})
	}
}
