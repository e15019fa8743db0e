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

// The programs in the directory examples, as in their own comments.
func TestExamplePrograms(t *testing.T) {
	t.Parallel()
	const gif = "R0lGODlhAgACAPAAAP8AAAAAACH5BAAAAAAALAAAAAACAAIAAAIChFEAOw==" // red
	for _, tt := range []struct{ name, mode, needs, text, has, refused, says string }{
		{"thumbnail", filterMode, "convert", gif, "/9j/4AAQSkZJRg", "aGVsbG8gd29ybGQ=", "this is no PNG, JPEG or GIF"},
		{"summarise.py", persistentMode, "python3", "Cats sleep. Some cats like fish, and cats hunt fish. It rained. Fish swim.", "cats like fish", " ", "nothing to summarise"},
		{"chart.js", persistentMode, "node", "3 1 4 1 5 9", `points="0.0,75.0 60.0,100.0 `, "3 pies", "give two numbers"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath(tt.needs); err != nil {
				if os.Getenv("CI") != "" {
					t.Fatal(err)
				}
				t.Skip(err)
			}
			program, err := filepath.Abs("examples/" + tt.name)
			if err != nil {
				t.Fatal(err)
			}
			cfg := quick()
			cfg.Mode, cfg.Program = tt.mode, []string{program}
			r := newRig(t, cfg)
			if got, err := r.handle(tt.text); err != nil || !strings.Contains(got, tt.has) {
				t.Errorf("%q, %v, want %q in it", got, err, tt.has)
			}
			r.expect(tt.refused, worker.Never, tt.says)
			if got, err := r.handle(tt.text); err != nil || !strings.Contains(got, tt.has) {
				t.Errorf("after a refusal: %q, %v, want %q in it", got, err, tt.has)
			}
			if tt.mode == persistentMode {
				if err := Check(t.Context(), cfg, textLog(r.log), func(string, error) {}); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
