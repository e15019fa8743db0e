package stack

import (
	"bytes"
	"strings"
	"testing"
)

// However a process cuts its output into pieces, what is shown are its lines,
// each with its name, and the last one also without its end.
func TestOutput(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxLine+1)
	for _, tt := range []struct {
		pieces []string
		want   string
	}{
		{nil, ""},
		{[]string{"one\n"}, "api      | one\n"},
		{[]string{"one\ntwo\n"}, "api      | one\napi      | two\n"},
		{[]string{"o", "ne", "\n\ntw", "o\n"}, "api      | one\napi      | \napi      | two\n"},
		{[]string{"one\npanic: "}, "api      | one\napi      | panic: \n"},
		{[]string{long, "rest\n"}, "api      | " + long + "\napi      | rest\n"},
	} {
		var b bytes.Buffer
		p := (&output{w: &b}).prefixed("api")
		for _, piece := range tt.pieces {
			if n, err := p.Write([]byte(piece)); n != len(piece) || err != nil {
				t.Errorf("%.20q: wrote %d, %v", piece, n, err)
			}
		}
		p.end()
		if b.String() != tt.want {
			t.Errorf("%.40q: got %.80q, want %.80q", tt.pieces, b.String(), tt.want)
		}
	}
}
