package page

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestCheckAPI(t *testing.T) {
	for text, ok := range map[string]bool{
		"none": true, "/": true, ":8081": true, "http://queue.example.org": true, "https://queue.example.org:8443/revq": true, "http://[::1]:8081": true,
		"": false, ":": false, ":0": false, ":65536": false, ":x": false, "queue.example.org": false, "ftp://queue.example.org": false,
		"javascript:alert(1)": false, "https://": false, "https://:80": false, "https://u:p@queue.example.org": false, "https://queue.example.org?a": false,
		"https://queue.example.org#a": false, "https://queue.example.org;script-src *": false, "https://a,b": false, "//queue.example.org": false,
	} {
		if err := checkAPI(text); (err == nil) != ok {
			t.Errorf("checkAPI(%q) = %v", text, err)
		}
		pattern := (&Config{}).Settings()[1].Pattern
		if ok && !regexp.MustCompile("^(?:"+strings.ReplaceAll(pattern, "[:space:]", "\\s")+")$").MatchString(text) {
			t.Errorf("the pattern does not match %q", text)
		}
	}
}

// The page connects to its own server and to the API, and may do nothing else.
func TestPolicy(t *testing.T) {
	for _, tc := range []struct{ api, host, want string }{
		{"none", "localhost", "'self'"},
		{"/", "localhost", "'self'"},
		{":8081", "localhost", "'self' http://localhost:8081 https://localhost:8081"},
		{":8081", "192.0.2.1", "'self' http://192.0.2.1:8081 https://192.0.2.1:8081"},
		{":8081", "2001:db8::1", "'self' http://*:8081 https://*:8081"},
		{":8081", "", "'self'"},
		{"https://queue.example.org:8443/revq", "localhost", "'self' https://queue.example.org:8443"},
	} {
		policy := New(Config{API: tc.api}, time.Second).Policy(tc.host)
		if _, got, _ := strings.Cut(policy, "connect-src "); got != tc.want {
			t.Errorf("%s at %s: connect-src %s, want %s", tc.api, tc.host, got, tc.want)
		}
		if !strings.HasPrefix(policy, "default-src 'none'; ") || strings.Contains(policy, "unsafe") {
			t.Errorf("the policy is %s", policy)
		}
	}
}

// A value with quotes stays a value, and the page has one script, one style
// sheet, and nothing from outside.
func TestPage(t *testing.T) {
	body := string(New(Config{API: `https://queue.example.org/"><script>`}, 1500*time.Millisecond).Body)
	if !strings.Contains(body, `content="https://queue.example.org/&#34;&gt;&lt;script&gt;"`) || !strings.Contains(body, `name="revq-ping" content="1.5"`) {
		t.Error("the page lacks its settings")
	}
	for what, want := range map[string]int{"<script>": 1, "<style>": 1, "<script ": 0, "<style ": 0, "http://": 0, "innerHTML": 0, "localStorage": 0, "sessionStorage": 0, " style=": 0, " onclick=\"": 0} {
		if got := strings.Count(file, what); got != want {
			t.Errorf("the page has %d times %s, want %d", got, what, want)
		}
	}
}
