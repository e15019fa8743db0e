package task

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/revq/revq/internal/wire"
)

func TestCheckText(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       error
	}{
		{"plain", "abcdef", nil},
		{"as long as allowed", strings.Repeat("a", 16), nil},
		{"blank is a text", " ", nil},
		{"NUL is a character", "a\x00b", nil},
		{"empty", "", ErrNoText},
		{"one too long", strings.Repeat("a", 17), ErrTooLong},
		{"length counts bytes", strings.Repeat("é", 9), ErrTooLong},
		{"cut in a character", "abc\xc3", ErrNotUTF8},
		{"surrogate", "\xed\xa0\x80", ErrNotUTF8},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := CheckText(tc.text, 16); !errors.Is(err, tc.want) {
				t.Errorf("CheckText(%q) = %v, want %v", tc.text, err, tc.want)
			}
		})
	}
}

func TestNewIDSortsByTime(t *testing.T) {
	ids := make([]string, 1000)
	for i := range ids {
		ids[i] = NewID()
	}
	if err := wire.CheckID(ids[0]); err != nil {
		t.Errorf("the id %q: %v", ids[0], err)
	}
	if !slices.IsSorted(ids) {
		t.Error("ids made one after another are not in order")
	}
	if len(slices.Compact(ids)) != len(ids) {
		t.Error("an id was made twice")
	}
}

// Other programs may compute it, too.
func TestDigestOf(t *testing.T) {
	// printf abcdef | sha256sum | cut -c1-16
	if got := DigestOf("abcdef"); got != 0xbef57ec7f53a6d40 {
		t.Errorf("DigestOf(abcdef) = %x", got)
	}
	text := strings.Repeat("x", 1000)
	if n := testing.AllocsPerRun(100, func() { DigestOf(text) }); n > 0 {
		t.Errorf("DigestOf allocates %v times", n)
	}
}
