package front_test

import (
	"bufio"
	"fmt"
	"io"
	"testing"
)

// A request that ends before it is complete is none: its client is told, and of
// its text nothing is queued (RFC 9112, section 8).
func TestIncompleteRequests(t *testing.T) {
	t.Parallel()
	for _, s := range sites(t) {
		for _, tc := range []struct{ name, only, raw string }{
			{"in the request line", "", "GET /healthz HT"},
			{"in the headers", "", get + "X: "},
			{"before the empty line", "", get},
			{"in the body", "api", queue + "Content-Length: 4\r\n\r\nabc"},
			{"before the last chunk", "api", queue + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"},
			{"in the last chunk", "api", queue + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0"},
			{"in the trailer", "api", queue + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"},
		} {
			if tc.only != "" && tc.only != s.front {
				continue
			}
			t.Run(fmt.Sprintf("%s, %s", s, tc.name), func(t *testing.T) {
				c := s.dial(t)
				if _, err := io.WriteString(c, tc.raw); err != nil {
					t.Fatal(err)
				}
				if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
					t.Fatal(err)
				}
				r := bufio.NewReader(c)
				read(t, r).check(t, 400, "ended before the request was complete")
				if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
					t.Errorf("after the answer: %q, %v; want the end", rest, err)
				}
				if texts := s.broker.texts(); texts != nil {
					t.Errorf("%q was queued", texts)
				}
			})
		}
	}
}
