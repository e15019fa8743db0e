package front

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/token"
	"github.com/revq/revq/internal/wire"
)

// knownMethods are the methods that RFC 9110 and RFC 5789 define. Others are
// answered 501, not 405.
var knownMethods = []string{"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}

// routes are the routes of a server by their paths.
type routes struct {
	byPath    map[string]*route
	prefixes  []*route // whose paths end with a slash
	elsewhere string
}

type route struct {
	Route
	methods []string // with OPTIONS, in order
}

// newRoutes panics if a route has no handler or no methods: then the program
// does not start.
func newRoutes(app *App) routes {
	r := routes{byPath: make(map[string]*route), elsewhere: "there is nothing here: " + app.Elsewhere}
	for _, of := range append(slices.Clone(app.Routes), healthRoutes(app.Ready)...) {
		if of.Handle == nil || len(of.Methods) == 0 {
			panic("front: the route " + of.Path + " needs a handler and methods")
		}
		methods := append(slices.Clone(of.Methods), fasthttp.MethodOptions)
		slices.Sort(methods)
		to := &route{of, methods}
		if strings.HasSuffix(of.Path, "/") && of.Path != "/" {
			r.prefixes = append(r.prefixes, to)
		} else {
			r.byPath[of.Path] = to
		}
	}
	return r
}

func healthRoutes(ready func() error) []Route {
	methods := []string{fasthttp.MethodGet, fasthttp.MethodHead}
	return []Route{
		{Path: wire.HealthPath, Methods: methods, Handle: func(ctx *fasthttp.RequestCtx) *Problem {
			Text(ctx, fasthttp.StatusOK, "ok")
			return nil
		}},
		{Path: wire.ReadyPath, Methods: methods, Handle: func(ctx *fasthttp.RequestCtx) *Problem {
			if err := ready(); err != nil {
				return NewProblem(fasthttp.StatusServiceUnavailable, err.Error())
			}
			Text(ctx, fasthttp.StatusOK, "ready")
			return nil
		}},
	}
}

// find returns the route of a request, or why there is none.
func (r *routes) find(h *fasthttp.RequestHeader) (*route, *Problem) {
	method := h.Method()
	known := slices.Contains(knownMethods, string(method))
	if !known {
		return nil, NewProblem(fasthttp.StatusNotImplemented, "there is no such method: use "+strings.Join(knownMethods[:3], ", "))
	}
	to := r.at(rawPath(h.RequestURI()))
	if to == nil {
		return nil, NewProblem(fasthttp.StatusNotFound, r.elsewhere)
	}
	if !slices.Contains(to.methods, string(method)) {
		return nil, NewProblem(fasthttp.StatusMethodNotAllowed, "use "+strings.Join(to.methods, " or ")).
			With("Allow", strings.Join(to.methods, ", "))
	}
	return to, nil
}

// check returns what the sender of a request for to may do, or the problem that
// the request's headers show.
func (to *route) check(h *fasthttp.RequestHeader, tokens *token.File) (*token.Permit, *Problem) {
	if string(h.Method()) == fasthttp.MethodOptions {
		return nil, nil // browsers ask without a token
	}
	permit, p := authorize(tokens, to, h, time.Now())
	if p == nil && to.Check != nil {
		p = to.Check(h)
	}
	return permit, p
}

// at returns the route of a path, or nil.
func (r *routes) at(path []byte) *route {
	if to := r.byPath[string(path)]; to != nil {
		return to
	}
	for _, to := range r.prefixes {
		if len(path) > len(to.Path) && string(path[:len(to.Path)]) == to.Path {
			return to
		}
	}
	return nil
}

// NameIn returns what follows prefix in the path of a request, as it was sent:
// not percent-decoded, and valid until the request is answered. It is nil if
// the path begins otherwise.
func NameIn(h *fasthttp.RequestHeader, prefix string) []byte {
	path := rawPath(h.RequestURI())
	if len(path) < len(prefix) || string(path[:len(prefix)]) != prefix {
		return nil
	}
	return path[len(prefix):]
}

// answerOptions answers OPTIONS with what the path takes.
func (to *route) answerOptions(ctx *fasthttp.RequestCtx) {
	ctx.SetStatusCode(fasthttp.StatusNoContent)
	ctx.Response.Header.Set("Allow", strings.Join(to.methods, ", "))
	AnswerPreflight(ctx, to.methods)
	for i := 0; i+1 < len(to.Options); i += 2 {
		ctx.Response.Header.Set(to.Options[i], to.Options[i+1])
	}
}

// rawPath returns the path of a request target as it was sent. The rules of
// proxies use this path. If this server decoded or cleaned it, other paths
// would get past those rules.
func rawPath(target []byte) []byte {
	if len(target) > 0 && target[0] != '/' {
		if _, rest, ok := bytes.Cut(target, []byte("://")); ok {
			target = rest[max(bytes.IndexByte(rest, '/'), 0):]
		}
	}
	path, _, _ := bytes.Cut(target, []byte("?"))
	return path
}

// HeaderLines returns the values of a request's header lines with this name.
// Unlike fasthttp's own functions, it ignores the trailer, which whoever sends
// the body can add.
func HeaderLines(h *fasthttp.RequestHeader, name string) (values [][]byte) {
	for line := range bytes.SplitSeq(h.RawHeaders(), []byte("\r\n")) {
		if key, value, ok := bytes.Cut(line, []byte(":")); ok && len(key) == len(name) && hasFold(key, name) {
			values = append(values, bytes.Trim(value, " \t"))
		}
	}
	return values
}
