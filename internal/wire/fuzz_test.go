package wire

import (
	"regexp"
	"testing"
)

// The names that are taken are those that the documentation promises.
func FuzzQueue(f *testing.F) {
	for _, name := range []string{"", "a", "reverse_text", "a-1_b", "1a", "Ab", "a.b", "a\n", "\u00e9", "a\xff"} {
		f.Add(name)
	}
	promised := regexp.MustCompile(`\A[a-z][a-z0-9_-]{0,62}\z`)
	f.Fuzz(func(t *testing.T, name string) {
		if err := CheckQueue(name); (err == nil) != promised.MatchString(name) {
			t.Errorf("CheckQueue(%q) = %v", name, err)
		}
	})
}

// A time that is taken is within its bounds, and is the same when it is read
// again as it is printed.
func FuzzDelay(f *testing.F) {
	for _, text := range []string{"", "0", "90", "0.5", "90s", "1h30m", "168h", "169h", "-1s", "1e3", "9999999999999999999", "1s ", "NaN", "s", "1ss", ".", "1d"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := ParseDelay(text, MaxDelay)
		if d < 0 || d > MaxDelay || err != nil && (d != 0 || len(err.Error()) > 1000) {
			t.Fatalf("ParseDelay(%q) = %v, %v", text, d, err)
		}
		if err != nil {
			return
		}
		if again, err := ParseDelay(d.String(), MaxDelay); err != nil || again != d {
			t.Errorf("%q is %v, but that is %v, %v", text, d, again, err)
		}
	})
}

// A mark that is taken is the same when it is read again as it is written, and
// a listener can have been there.
func FuzzMark(f *testing.F) {
	for _, text := range []string{"", "-1", "-2", "0", "7/id", "7/", "7/a b", "7/\xff", "+7", "007", "9223372036854775807/x", "9223372036854775808", "7/a/b", "/a", "1e3"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		m, err := ParseMark(text)
		if err != nil {
			if m != (Mark{}) || len(err.Error()) > 1000 {
				t.Errorf("ParseMark(%q) = %v, %v", text, m, err)
			}
			return
		}
		if m.Offset < -1 || m.ID != "" && CheckID(m.ID) != nil {
			t.Errorf("%q is %+v", text, m)
		}
		if again, err := ParseMark(m.String()); err != nil || again != m {
			t.Errorf("%q is %v, but that is %v, %v", text, m, again, err)
		}
	})
}
