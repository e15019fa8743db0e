package load

import (
	"bufio"
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/url"
	"testing"
)

// net/http parses the requests.
func TestAppendRequest(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		kind  Kind
		url   string
		texts []string
		path  string
		media string
		body  string
	}{
		{Form, "http://localhost:8081", []string{"abc~"}, "/queue_reverse_text", "application/x-www-form-urlencoded", "text=abc~"},
		{JSON, "http://localhost:8081/", []string{"abc~"}, "/queue_reverse_text", "application/json", `{"text":"abc~"}`},
		{Text, "http://localhost:8081/other?a=b", []string{"abc~"}, "/other?a=b", "text/plain", "abc~"},
		{NDJSON, "http://localhost:8081", []string{"a~", "b~"}, "/queue_reverse_text", "application/x-ndjson", "{\"text\":\"a~\"}\n{\"text\":\"b~\"}\n"},
	} {
		u, err := url.Parse(tt.url)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(AppendRequest(nil, u, tt.kind, tt.texts...))))
		if err != nil {
			t.Errorf("%s: %v", tt.kind, err)
			continue
		}
		body, err := io.ReadAll(req.Body)
		if err != nil || string(body) != tt.body || req.Method != http.MethodPost || req.RequestURI != tt.path ||
			req.Host != "localhost:8081" || req.Header.Get("Content-Type") != tt.media {
			t.Errorf("%s: %s %s, %v, %q, %v", tt.kind, req.Method, req.RequestURI, req.Header, body, err)
		}
	}
}

func TestCountStatuses(t *testing.T) {
	t.Parallel()
	const batch = `{"status":202,"id":"a"}` + "\n" + `{"type":"about:blank","status":429,"detail":"later"}` + "\n" + `{"status":202,"id":"b"}` + "\n"
	for _, tt := range []struct {
		name   string
		kind   Kind
		batch  int
		status int
		body   string
		want   map[int]int64
	}{
		{"one", Form, 1, 202, "Got it", map[int]int64{202: 1}},
		{"one refused", JSON, 1, 503, "", map[int]int64{503: 1}},
		{"a batch with different answers", NDJSON, 3, 207, batch, map[int]int64{202: 2, 429: 1}},
		{"a batch refused as a whole", NDJSON, 3, 413, `{"status":413`, map[int]int64{413: 3}},
		{"accepted, without a line for each text", NDJSON, 3, 202, "ok\n", map[int]int64{0: 3}}, // does not count as success
		{"a line that only looks like success", NDJSON, 1, 202, `{"id":"a","status":202}` + "\n", map[int]int64{0: 1}},
	} {
		got := make(map[int]int64)
		CountStatuses(got, tt.kind, tt.batch, tt.status, []byte(tt.body))
		if !maps.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestMarked(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 2, 27, 100} {
		if text := Marked(n); len(text) != n || text[n-1] != marker || bytes.Count([]byte(text), []byte{marker}) != 1 {
			t.Errorf("Marked(%d) = %q", n, text)
		}
	}
}
