package front

import (
	"strings"
	"testing"

	"github.com/valyala/fasthttp"
)

func handled(*fasthttp.RequestCtx) *Problem { return nil }

// A server with a route that nobody handles cannot be made.
func TestRoutesAreComplete(t *testing.T) {
	t.Parallel()
	for name, route := range map[string]Route{
		"without a handler": {Path: "/x", Methods: []string{"GET"}},
		"without methods":   {Path: "/x", Handle: handled},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("there is a server with a route %s", name)
				}
			}()
			newRoutes(&App{Routes: []Route{route}})
		}()
	}
}

func TestPrefixRoutes(t *testing.T) {
	t.Parallel()
	get, post := []string{"GET"}, []string{"POST"}
	r := newRoutes(&App{Routes: []Route{
		{Path: "/queue_reverse_text", Methods: post, Handle: handled},
		{Path: "/queue/", Methods: post, Handle: handled},
		{Path: "/results/", Methods: get, Handle: handled},
	}})
	for _, tc := range []struct {
		line, path, rest string // of the route found; path "" for none
		status           int
	}{
		{"POST /queue/a", "/queue/", "a", 0},
		{"POST /queue/a?b=c/d", "/queue/", "a", 0},
		{"POST /queue/a/b%2fc//", "/queue/", "a/b%2fc//", 0},
		{"POST http://h/queue/a", "/queue/", "a", 0},
		{"OPTIONS /queue/a", "/queue/", "a", 0},
		{"GET /results/a", "/results/", "a", 0},
		{"GET /queue/a", "", "", 405},
		{"BREW /queue/a", "", "", 501},
		{"POST /queue/", "", "", 404},
		{"POST /queue", "", "", 404},
		{"POST /queues/a", "", "", 404},
		{"POST //queue/a", "", "", 404},
		{"POST /queue_reverse_text/a", "", "", 404},
		{"POST /queue_reverse_text", "/queue_reverse_text", "", 0},
		{"GET /healthz", "/healthz", "", 0},
	} {
		t.Run(tc.line, func(t *testing.T) {
			t.Parallel()
			method, target, _ := strings.Cut(tc.line, " ")
			var h fasthttp.RequestHeader
			h.SetMethod(method)
			h.SetRequestURI(target)
			to, p := r.find(&h)
			switch {
			case tc.path == "":
				if p == nil || p.Status != tc.status {
					t.Fatalf("found %+v, %+v, want status %d", to, p, tc.status)
				}
			case p != nil || to.Path != tc.path || string(NameIn(&h, tc.path)) != tc.rest:
				t.Errorf("found %+v, %+v, rest %q", to, p, NameIn(&h, tc.path))
			}
		})
	}
}
