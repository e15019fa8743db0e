package bench

import (
	"errors"
	"strings"
	"testing"
)

func TestParseTarget(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		url     string
		foreign bool
		want    string // address
		err     error
	}{
		{"http://127.0.0.1:8081", false, "127.0.0.1:8081", nil},
		{"http://127.3.2.1/path", false, "127.3.2.1:80", nil},
		{"http://[::1]:99", false, "[::1]:99", nil},
		{"http://192.0.2.1", false, "", ErrForeign},
		{"http://192.0.2.1", true, "192.0.2.1:80", nil},
		{"http://0.0.0.0:8081", false, "", ErrForeign}, // all addresses of this host
		{"https://127.0.0.1", false, "", ErrBadTarget},
		{"127.0.0.1:8081", false, "", ErrBadTarget},
		{"", false, "", ErrBadTarget},
		{"http://me:geheim@127.0.0.1:0", false, "", ErrBadTarget},
		{"http://me:geheim@192.0.2.1", false, "", ErrForeign},
	} {
		target, err := ParseTarget(t.Context(), tt.url, tt.foreign, "http")
		if !errors.Is(err, tt.err) || err == nil && target.Addr.String() != tt.want {
			t.Errorf("ParseTarget(%q, %v) = %+v, %v; want %s, %v", tt.url, tt.foreign, target, err, tt.want, tt.err)
		}
		if err != nil && strings.Contains(err.Error(), "geheim") {
			t.Errorf("the password is shown: %v", err)
		}
	}
}
