package client

import (
	"errors"
	"testing"
)

// Texts are posted, and results listened to, below any prefix of a proxy, by
// one rule.
func TestParseURL(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ raw, want string }{
		{"http://h:1", "http://h:1/path"},
		{"http://h:1/", "http://h:1/path"},
		{"http://h:1/path", "http://h:1/path"},
		{"http://h:1/path/", "http://h:1/path"},
		{"http://h:1/prefix", "http://h:1/prefix/path"},
		{"http://h:1/prefix/", "http://h:1/prefix/path"},
		{"http://h:1/prefix/path", "http://h:1/prefix/path"},
		{"http://h:1/a%2fb/", "http://h:1/a%2fb/path"},
		{"http://h:1/?x=1", "http://h:1/path?x=1"},
		{"http://[::1]:1", "http://[::1]:1/path"},
		{"https://h", ""},
		{"h:1", ""},
		{"", ""},
	} {
		u, err := parseURL(tt.raw, "/path", "http")
		if tt.want == "" {
			if !errors.Is(err, ErrBadURL) {
				t.Errorf("%q: %v, %v, want ErrBadURL", tt.raw, u, err)
			}
			continue
		}
		if err != nil || u.String() != tt.want {
			t.Errorf("%q: %v, %v, want %s", tt.raw, u, err, tt.want)
		}
	}
}
