package load

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/revq/revq/internal/wire"
)

// A Kind is the form in which texts are posted.
type Kind string

// The kinds that revq's API takes.
const (
	Form   Kind = "form"
	JSON   Kind = "json"
	Text   Kind = "text"
	NDJSON Kind = "ndjson" // many in one request
)

// Kinds are all kinds.
var Kinds = []Kind{Form, JSON, Text, NDJSON}

var mediaTypes = map[Kind]string{
	Form:   "application/x-www-form-urlencoded",
	JSON:   "application/json",
	Text:   "text/plain",
	NDJSON: "application/x-ndjson",
}

// AppendRequest appends to dst a complete HTTP request that posts texts; kinds
// other than NDJSON take one text. Texts consist of letters, digits and
// characters that no kind escapes.
func AppendRequest(dst []byte, target *url.URL, kind Kind, texts ...string) []byte {
	var body strings.Builder
	for _, text := range texts {
		switch kind {
		case Form:
			body.WriteString("text=" + text)
		case JSON:
			body.WriteString(`{"text":"` + text + `"}`)
		case NDJSON:
			body.WriteString(`{"text":"` + text + "\"}\n")
		default:
			body.WriteString(text)
		}
	}
	path := target.EscapedPath()
	if path == "" || path == "/" {
		path = wire.QueuePath
	}
	if target.RawQuery != "" {
		path += "?" + target.RawQuery
	}
	return fmt.Appendf(dst, "POST %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: revq-bench\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
		path, target.Host, mediaTypes[kind], body.Len(), body.String())
}

// marker is a byte that each text has once, so that results can be counted. No
// server has it in what it puts around messages.
const marker = '~'

var markerBytes = []byte{marker}

// Marked returns a text of n bytes: letters, and the marker at its end.
func Marked(n int) string {
	const letters = "abcdefghijklmnopqrstuvwxyz"
	return strings.Repeat(letters, n/len(letters)+1)[:max(n, 1)-1] + string(marker)
}

// CountStatuses adds one to counts for each text of a request, at the HTTP
// status that the answer gives for that text: the answer to a batch has a line
// for each. Status 0 stands for an answer that says nothing of a text.
func CountStatuses(counts map[int]int64, kind Kind, batch, status int, body []byte) {
	if kind != NDJSON {
		counts[status]++
		return
	}
	told := 0
	for line := range bytes.Lines(body) {
		if bytes.HasPrefix(line, acceptedLine) {
			counts[http.StatusAccepted]++
			told++
			continue
		}
		var answer struct {
			Status int `json:"status"`
		}
		if json.Unmarshal(line, &answer) == nil && answer.Status != 0 && answer.Status != http.StatusAccepted {
			counts[answer.Status]++
			told++
		}
	}
	if told < batch { // the batch was refused as a whole, or the answer is malformed
		if status == http.StatusAccepted {
			status = 0
		}
		counts[status] += int64(batch - told)
	}
}

// acceptedLine is how the line of an accepted text begins.
var acceptedLine = []byte(`{"status":202,`)
