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
