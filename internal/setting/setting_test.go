package setting

import (
	"testing"
	"time"
)

func TestSentence(t *testing.T) {
	t.Parallel()
	n, d, text := 5, time.Second, "a"
	for _, tt := range []struct {
		s                Setting
		sentence, bounds string
	}{
		{Count("n", "bytes", "longest text, in `BYTES`", &n, 1, 10), "Longest text, in bytes.", "1 to 10"},
		{Count("n", "bytes", "maximum `BYTES`", &n, 1, 0).With("More are refused."), "Maximum bytes. More are refused.", "1 or more"},
		{Time("d", "`TIME` to wait", &d, time.Second, 90*time.Second), "Time to wait.", "1s to 1m30s"},
		{OneOf("c", "one", &text, "a", "b", "c"), "One.", "a, b or c"},
		{String("s", "serve `HOST:PORT`", &text, nil), "Serve HOST:PORT.", ""},
		{String("s", "`URL` of a node", &text, nil), "URL of a node.", ""},
	} {
		if got := tt.s.Sentence(); got != tt.sentence {
			t.Errorf("Sentence() = %q, want %q", got, tt.sentence)
		}
		if got := tt.s.Bounds(); got != tt.bounds {
			t.Errorf("Bounds() = %q, want %q", got, tt.bounds)
		}
	}
	if got := Variable("max-text"); got != "REVQ_MAX_TEXT" {
		t.Errorf("Variable() = %q", got)
	}
}
