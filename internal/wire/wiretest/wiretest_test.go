package wiretest

import (
	"net/http"
	"testing"
)

// What the document does not have is noticed.
func TestCheckAnswer(t *testing.T) {
	d := Open(t)
	const problem = `{"type":"about:blank","title":"Not Found","status":404,"detail":"there is none"}`
	for _, tc := range []struct {
		method, path string
		status       int
		kind, body   string
		ok           bool
	}{
		{"GET", "/readyz", 200, "text/plain; charset=utf-8", "ready", true},
		{"GET", "/readyz", 200, "text/plain; charset=utf-8", "no", false},
		{"GET", "/readyz", 200, "text/plain", "ready", false},
		{"GET", "/readyz", 201, "text/plain; charset=utf-8", "ready", false},
		{"HEAD", "/readyz", 200, "text/plain; charset=utf-8", "", true},
		{"HEAD", "/readyz", 200, "text/plain; charset=utf-8", "ready", false},
		{"GET", "/results/{id}", 404, "application/problem+json", problem, true},
		{"GET", "/results/{id}", 404, "application/problem+json", `{"status":404}`, false},
		{"GET", "/results/{id}", 200, "application/json", `{"type":"result","offset":1,"id":"a","text":"x"}`, true},
		{"GET", "/results/{id}", 200, "application/json", `{"type":"result","offset":-1,"id":"a","text":"x"}`, false},
		{"POST", "/queue/{name}", 207, "application/x-ndjson", "{\"status\":202,\"id\":\"a\"}\n" + `{"type":"about:blank","title":"x","status":422,"detail":"x","line":2}`, true},
		{"POST", "/queue/{name}", 207, "application/x-ndjson", "{\"status\":202,\"id\":\"a\"}\n{\"status\":202}\n", false},
		{"GET", "/elsewhere", 404, "application/problem+json", problem, true},
		{"GET", "/elsewhere", 200, "text/plain", "hello", false},
	} {
		err := d.CheckAnswer(t, tc.method, tc.path, tc.status, http.Header{"Content-Type": {tc.kind}}, []byte(tc.body))
		if (err == nil) != tc.ok {
			t.Errorf("%s %s: %d %s %s: %v", tc.method, tc.path, tc.status, tc.kind, tc.body, err)
		}
	}
}
