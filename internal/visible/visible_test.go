package visible

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

func TestText(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ text, shown, line, lines string }{
		{"", "", "", ""},
		{"abc", "abc", "abc", "abc"},
		{` a  b `, ` a  b `, ` a  b `, ` a  b `},
		{`say "hi" \n`, `say "hi" \n`, `say "hi" \n`, `say "hi" \n`},
		{`"a"`, `"\"a\""`, `"a"`, `"a"`},
		{"grün 語 🙂", "grün 語 🙂", "grün 語 🙂", "grün 語 🙂"},
		{"a\ufffdb", "a\ufffdb", "a\ufffdb", "a\ufffdb"},
		{"a\nb", `"a\nb"`, `a\nb`, "a\nb"},
		{"a\tb", `"a\tb"`, `a\tb`, "a\tb"},
		{"a\r", `"a\r"`, `a\r`, `a\r`},
		{"\x1b]0;title\a", `"\x1b]0;title\a"`, `\x1b]0;title\a`, `\x1b]0;title\a`},
		{"\x7f", `"\x7f"`, `\x7f`, `\x7f`},
		{"\u009b2J", `"\u009b2J"`, `\u009b2J`, `\u009b2J`}, // a C1 control: CSI
		{"\x9b2J", `"\x9b2J"`, `\x9b2J`, `\x9b2J`},         // the same, not UTF-8
		{"a\u202eb", `"a\u202eb"`, `a\u202eb`, `a\u202eb`}, // right-to-left override
		{"a\u2066b", `"a\u2066b"`, `a\u2066b`, `a\u2066b`}, // left-to-right isolate
		{"a\u200bb", `"a\u200bb"`, `a\u200bb`, `a\u200bb`}, // a space of no width
		{"a\u2028b", `"a\u2028b"`, `a\u2028b`, `a\u2028b`}, // a line separator
		{"\U000e0041", `"\U000e0041"`, `\U000e0041`, `\U000e0041`},
	} {
		if got := Text(tt.text); got != tt.shown {
			t.Errorf("Text(%q) = %s, want %s", tt.text, got, tt.shown)
		}
		if got := Line(tt.text); got != tt.line {
			t.Errorf("Line(%q) = %s, want %s", tt.text, got, tt.line)
		}
		if got := Lines(tt.text); got != tt.lines {
			t.Errorf("Lines(%q) = %q, want %q", tt.text, got, tt.lines)
		}
	}
}

// Whatever a text is, what is shown is one visible line, from which the text
// can be read.
func FuzzText(f *testing.F) {
	for _, s := range []string{"abc", "\x1b[2J", `"`, "\xff\u202e\U000e0041"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		shown := Text(s)
		back := shown
		if strings.HasPrefix(shown, `"`) {
			var err error
			if back, err = strconv.Unquote(shown); err != nil {
				t.Fatal(err)
			}
		}
		if back != s {
			t.Errorf("Text(%q) = %s", s, shown)
		}
		object, _ := json.Marshal(map[string]string{"text": s})
		var before, after any
		escaped := JSON(object)
		if err := json.Unmarshal(object, &before); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(escaped, &after); err != nil || !reflect.DeepEqual(before, after) {
			t.Errorf("JSON(%s) = %s, %v", object, escaped, err)
		}
		for _, shown := range []string{shown, Line(s), string(escaped), Line(Lines(s))} {
			if !isVisible(shown) {
				t.Errorf("%q is shown of %q", shown, s)
			}
		}
	})
}

func TestJSON(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ value, want string }{
		{`{"a": 1}`, `{"a":1}`},
		{"{\n\"a\":\t1}\n", `{"a":1}`},
		{"[\"\u009b\u202e\x7f\U000e0041 ü\"]", `["\u009b\u202e\u007f\udb40\udc41 ü"]`},
		{"[\"\xff\"]", "[\"\ufffd\"]"},
		{"\x1b[2J", `\x1b[2J`},
	} {
		if got := string(JSON([]byte(tt.value))); got != tt.want {
			t.Errorf("JSON(%q) = %s, want %s", tt.value, got, tt.want)
		}
	}
	var out bytes.Buffer
	slog.New(slog.NewJSONHandler(JSONWriter(&out), nil)).Info("x", "error", "\u009b2J")
	if got := out.String(); !strings.HasSuffix(got, `"msg":"x","error":"\u009b2J"}`+"\n") {
		t.Errorf("logged %q", got)
	}
}
