package wire

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestCheckID(t *testing.T) {
	for _, tc := range []struct {
		name, id string
		want     error
	}{
		{"a UUID", "0190b9f4-0000-7000-8000-000000000001", nil},
		{"client's own", "order/42:a", nil},
		{"as long as allowed", strings.Repeat("x", MaxIDLength), nil},
		{"empty", "", ErrBadID},
		{"too long", strings.Repeat("x", MaxIDLength+1), ErrBadID},
		{"space", "a b", ErrBadID},
		{"line break", "a\nb", ErrBadID},
		{"not ASCII", "é", ErrBadID},
		{"DEL", "a\x7f", ErrBadID},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := CheckID(tc.id); !errors.Is(err, tc.want) {
				t.Errorf("CheckID(%q) = %v, want %v", tc.id, err, tc.want)
			}
		})
	}
}

func TestParseMark(t *testing.T) {
	for text, want := range map[string]Mark{
		"42":        {42, ""},
		"-1":        {-1, ""},
		"0/a":       {0, "a"},
		"7/order/1": {7, "order/1"},
	} {
		got, err := ParseMark(text)
		if err != nil || got != want {
			t.Errorf("ParseMark(%q) = %v, %v; want %v", text, got, err, want)
		}
		if got.String() != text {
			t.Errorf("%v is written %q", got, got.String())
		}
	}
	for _, text := range []string{"", "x", "-2", "1.5", "9223372036854775808", "1/a b", "/a"} {
		if m, err := ParseMark(text); err == nil {
			t.Errorf("ParseMark(%q) = %v, want an error", text, m)
		}
	}
}

func TestCheckQueue(t *testing.T) {
	for name, want := range map[string]error{
		"reverse_text":          nil,
		"a":                     nil,
		"a-1":                   nil,
		strings.Repeat("x", 63): nil,
		strings.Repeat("x", 64): ErrBadQueue,
		"":                      ErrBadQueue,
		"1a":                    ErrBadQueue,
		"-a":                    ErrBadQueue,
		"Thumbnails":            ErrBadQueue,
		"a/b":                   ErrBadQueue,
		"a.b":                   ErrBadQueue,
		"a b":                   ErrBadQueue,
		"é":                     ErrBadQueue,
		"a\n":                   ErrBadQueue,
	} {
		if err := CheckQueue(name); !errors.Is(err, want) {
			t.Errorf("CheckQueue(%q) = %v, want %v", name, err, want)
		}
	}
}

func TestParseDelay(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0":     0,
		"90":    90 * time.Second,
		"0.5":   500 * time.Millisecond,
		"90s":   90 * time.Second,
		"1h30m": 90 * time.Minute,
		"168h":  MaxDelay,
	} {
		if got, err := ParseDelay(text, MaxDelay); err != nil || got != want {
			t.Errorf("ParseDelay(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "x", "-1", "-1s", "169h", "1 h", "NaN", "inf", "1e9", "9223372036854775808", "1d"} {
		if got, err := ParseDelay(text, MaxDelay); err == nil {
			t.Errorf("ParseDelay(%q) = %v, want an error", text, got)
		}
	}
}
