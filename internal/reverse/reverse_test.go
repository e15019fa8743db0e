package reverse

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/rivo/uniseg"

	"github.com/revq/revq/internal/task"
)

func TestReverse(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"plain", "abcdef", "fedcba"},
		{"one character", "a", "a"},
		{"nothing", "", ""},
		{"two bytes a letter", "привет", "тевирп"},
		{"combining accent", "e\u0301a", "ae\u0301"},
		{"flags", "🇫🇷🇩🇪", "🇩🇪🇫🇷"},
		{"family", "a👨‍👩‍👧b", "b👨‍👩‍👧a"},
		{"skin tone", "👍🏽!", "!👍🏽"},
		{"Hangul from letters", "\u1112\u1161\u11ab가", "가\u1112\u1161\u11ab"},
		{"vowel sign", "कते", "तेक"},
		{"line break of two", "a\r\nb", "b\r\na"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := Reverse(tc.text); got != tc.want {
				t.Errorf("Reverse(%q) = %q, want %q", tc.text, got, tc.want)
			}
		})
	}
}

func TestHandlePausesInProportion(t *testing.T) {
	cfg := Config{PausePerChar: 100 * time.Millisecond, MaxPause: time.Minute}
	for _, tc := range []struct {
		name, text string
		cfg        Config
		want       time.Duration
	}{
		{"six characters", "abcdef", cfg, 600 * time.Millisecond},
		{"a family is one", "👨‍👩‍👧", cfg, 100 * time.Millisecond},
		{"at most the maximum", strings.Repeat("a", 601), cfg, time.Minute},
		{"no overflow", "abc", Config{math.MaxInt64 / 2, math.MaxInt64 / 2}, math.MaxInt64 / 2},
		{"no pause", "abcdef", Config{0, time.Minute}, 0},
		{"no maximum", "abcdef", Config{time.Second, 0}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				text, err := New(tc.cfg).Handle(t.Context(), task.Task{Text: tc.text})
				if err != nil || text != Reverse(tc.text) {
					t.Errorf("Handle = %q, %v", text, err)
				}
				if took := time.Since(began); took != tc.want {
					t.Errorf("paused %v, want %v", took, tc.want)
				}
			})
		})
	}
}

func TestStopCutsThePauseShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stopping := errors.New("stopping")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(stopping) })
		began := time.Now()
		_, err := New(DefaultConfig()).Handle(ctx, task.Task{Text: strings.Repeat("a", 100)})
		if !errors.Is(err, stopping) {
			t.Errorf("Handle = %v, want %v", err, stopping)
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("returned after %v, want 1s", took)
		}
	})
}

func FuzzReverse(f *testing.F) {
	for _, seed := range []string{"", "abcdef", "e\u0301", "🇫🇷🇩🇪", "👨‍👩‍👧", "\r\n", "\n\r", "a\u200db", "\u0600a", "\xff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		reversed := Reverse(text)
		if len(reversed) != len(text) {
			t.Fatalf("%d bytes became %d", len(text), len(reversed))
		}
		if utf8.ValidString(text) && !utf8.ValidString(reversed) {
			t.Fatalf("%q became invalid UTF-8: %q", text, reversed)
		}
		want := clusters(text)
		slices.Reverse(want)
		if strings.Join(want, "") != reversed {
			t.Fatalf("the clusters of %q are not in the opposite order: %q", text, reversed)
		}
		if plain(text) && Reverse(reversed) != text {
			t.Fatalf("%q reversed twice is %q", text, Reverse(reversed))
		}
	})
}

func clusters(text string) []string {
	var all []string
	for g := uniseg.NewGraphemes(text); g.Next(); {
		all = append(all, g.Str())
	}
	return all
}

// plain reports whether no two characters of text can join.
func plain(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r >= utf8.RuneSelf || r == '\r' })
}

func BenchmarkReverse(b *testing.B) {
	for name, text := range map[string]string{
		"plain": strings.Repeat("abcdef ", 10),
		"emoji": strings.Repeat("👨‍👩‍👧", 10),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				Reverse(text)
			}
		})
	}
}
