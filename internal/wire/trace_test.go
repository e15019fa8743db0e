package wire

import (
	"regexp"
	"testing"
)

const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func TestParseTraceparent(t *testing.T) {
	for value, want := range map[string]string{
		traceparent: traceparent,
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff":       "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff",
		"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01":       traceparent,
		"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-later": traceparent,
		"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.later": "",
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-later": "",
		"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01":       "",
		"00-00000000000000000000000000000000-b7ad6b7169203331-01":       "",
		"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01":       "",
		"00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01":       "",
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0":        "",
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331":          "",
		"00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01":       "",
		" " + traceparent: "",
		"":                "",
	} {
		if got := ParseTraceparent(value); got != want {
			t.Errorf("ParseTraceparent(%q) = %q, want %q", value, got, want)
		}
	}
}

// What is taken is a traceparent of version 00, and stays the same when it is
// read again.
func FuzzTraceparent(f *testing.F) {
	for _, value := range []string{"", traceparent, "cc" + traceparent[2:] + "-x", "00-00000000000000000000000000000000-b7ad6b7169203331-01"} {
		f.Add(value)
	}
	form := regexp.MustCompile(`\A00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\z`)
	f.Fuzz(func(t *testing.T, value string) {
		got := ParseTraceparent(value)
		if got != "" && (!form.MatchString(got) || ParseTraceparent(got) != got) {
			t.Errorf("ParseTraceparent(%q) = %q", value, got)
		}
	})
}
