package front

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/setting"
	"github.com/revq/revq/internal/wire"
)

// Pages says which web pages may use a front, and under which names browsers
// may reach it. A browser sends what any page tells it to, also from inside a
// private network, so pages are refused unless they are known. Programs are not
// concerned.
type Pages struct {
	// AllowOrigins are the web origins (scheme://host[:port]) whose pages may
	// use the front, besides those of its own host. "*" allows all pages.
	// Default none.
	AllowOrigins []string

	// AllowHosts are names of this front besides localhost, literal addresses,
	// the machine's own names and the hosts of AllowOrigins. Default none. A
	// page whose name its owner points to this machine (DNS rebinding) would
	// otherwise count as the front's own.
	AllowHosts []string
}

// Settings declares what an operator can set of p.
func (p *Pages) Settings() []setting.Setting {
	origins := setting.Strings("allow-origin", "web `ORIGIN` whose pages may use this server, besides this host's own, as https://example.org; * for all (repeatable)",
		&p.AllowOrigins, each(normalOrigin)).
		With("Pages of other origins are answered 403. Pages of the same host may use it from any port.")
	hosts := setting.Strings("allow-host", "`HOST` name under which browsers may use this server, as queue.example.org (repeatable)",
		&p.AllowHosts, each(normalHost)).
		With("Known without it are localhost, literal addresses, the machine's names and the hosts of allowed origins. " +
			"Other names are answered 421 when a browser asks. A public name that a proxy passes on needs it.")
	origins.Pattern, hosts.Pattern = originPattern, hostPattern
	return setting.In("web pages", origins, hosts)
}

// What can be an origin or a host at all.
const (
	originPattern = `[*]|[A-Za-z][A-Za-z0-9+.-]*://[^/?#@[:space:]]+/?`
	hostPattern   = `[A-Za-z0-9._-]+/?|[[]?[0-9A-Fa-f:.]+[]]?`
)

// each returns a check that all values can be normalised.
func each(normal func(string) (string, error)) func([]string) error {
	return func(values []string) error {
		for _, v := range values {
			if _, err := normal(v); err != nil {
				return err
			}
		}
		return nil
	}
}

// anyOrigin allows all origins.
const anyOrigin = "*"

// normalOrigin returns an origin as browsers send it, or what is wrong with it.
func normalOrigin(text string) (string, error) {
	const hint = "give scheme://host or scheme://host:port, as https://example.org"
	wrong := func(why string) (string, error) {
		return "", fmt.Errorf("%q is not an origin: %s: %s", text, why, hint)
	}
	if text == anyOrigin {
		return text, nil
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme == "" || u.Host == "" || u.Opaque != "":
		return "", fmt.Errorf("%q is not an origin: %s", text, hint)
	case u.Scheme == "ws" || u.Scheme == "wss":
		return wrong("it is the address of a websocket, and not of the page that opens it")
	case u.User != nil:
		return wrong("it has a user")
	case u.RawQuery != "" || u.ForceQuery:
		return wrong("it has a query")
	case strings.Contains(text, "#"):
		return wrong("it has a fragment")
	case u.Path != "" && u.Path != "/":
		return wrong("it has a path")
	case strings.HasSuffix(u.Host, ":"):
		return wrong("its port is missing")
	}
	if port := u.Port(); port != "" {
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return wrong("there is no such port")
		}
	}
	host, err := normalName(u.Hostname())
	if err != nil {
		return wrong(err.Error())
	}
	if port := u.Port(); port != "" && port != defaultPorts[u.Scheme] {
		return u.Scheme + "://" + net.JoinHostPort(host, port), nil
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return u.Scheme + "://" + host, nil
}

// defaultPorts are those that browsers leave out.
var defaultPorts = map[string]string{"http": "80", "https": "443"}

// normalHost returns a host name or literal address as Gate compares it, or
// what is wrong with it.
func normalHost(text string) (string, error) {
	name := strings.TrimSuffix(text, "/")
	if inner, ok := strings.CutPrefix(name, "["); ok {
		name = strings.TrimSuffix(inner, "]")
	}
	host, err := normalName(name)
	if err != nil {
		return "", fmt.Errorf("%q is not a host: %w: give a name without scheme and port, as queue.example.org", text, err)
	}
	return strings.TrimSuffix(host, "."), nil
}

// normalName returns a host name in lower case, or a literal address in the
// shape that browsers use.
func normalName(name string) (string, error) {
	if address, err := netip.ParseAddr(name); err == nil && address.Zone() == "" {
		return address.String(), nil
	}
	for _, r := range name {
		switch {
		case r >= 0x80:
			return "", errors.New("browsers send such a name in ASCII, as xn--…")
		case r == '*':
			return "", errors.New("* is no part of a name")
		case 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-._", r):
		default:
			return "", fmt.Errorf("%q is no part of a name", r)
		}
	}
	if strings.Trim(name, ".") == "" {
		return "", errors.New("there is no name")
	}
	return strings.ToLower(name), nil
}

// A Gate decides about the requests that browsers send.
type Gate struct {
	origins []string // allowed ones
	hosts   []string // known ones, besides localhost and literal addresses
}

// NewGate returns a gate for p on this machine.
func NewGate(p Pages) *Gate { return newGate(p, machineNames()) }

func newGate(p Pages, machine []string) *Gate {
	g := &Gate{hosts: machine}
	// The checks of the settings have refused what cannot be normalised.
	for _, text := range p.AllowOrigins {
		origin, err := normalOrigin(text)
		if err != nil {
			continue
		}
		g.origins = append(g.origins, origin)
		if host, ok := originHost(origin); ok {
			g.hosts = append(g.hosts, host)
		}
	}
	for _, text := range p.AllowHosts {
		if host, err := normalHost(text); err == nil {
			g.hosts = append(g.hosts, host)
		}
	}
	return g
}

// machineNames returns the names of this machine: its host name, with and
// without the domain and as multicast DNS has it, and what /etc/hosts has
// beside it. DNS is not asked: it may be slow, and others may write there.
func machineNames() []string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return nil // then --allow-host is the only way, and the 421 says so
	}
	hosts, _ := os.ReadFile("/etc/hosts") // not there: no more names
	return namesOf(name, string(hosts))
}

// namesOf returns the names of a machine called name, with its /etc/hosts.
func namesOf(name, hosts string) []string {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	label, _, _ := strings.Cut(name, ".")
	names := []string{name, label, label + ".local"}
	for line := range strings.Lines(hosts) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(strings.ToLower(line))
		if len(fields) > 1 && (slices.Contains(fields[1:], name) || slices.Contains(fields[1:], label)) {
			names = append(names, fields[1:]...)
		}
	}
	return names
}

// A request is what a Gate decides by.
type request struct {
	method string
	origin string // header Origin
	site   string // header Sec-Fetch-Site
	mode   string // header Sec-Fetch-Mode
	host   string // header Host
	guess  bool   // it looks like a browser's for other reasons
}

// A verdict is what a Gate decides.
type verdict struct {
	status   int  // 403: no page of that origin may do this; 421: this server has no such name; 0: it passes
	readable bool // the page may read the answer
}

var (
	passes  = verdict{}
	foreign = verdict{status: fasthttp.StatusForbidden}
)

// decide is all that decides about browsers, in both fronts.
func (g *Gate) decide(r request) verdict {
	if r.origin == "" && r.site == "" && !r.guess {
		return passes
	}
	host, ok := hostName(r.host)
	var v verdict
	if !ok || !g.knows(host) {
		v.status = fasthttp.StatusMisdirectedRequest
	}
	if r.origin != "" {
		if slices.Contains(g.origins, anyOrigin) || slices.Contains(g.origins, r.origin) {
			v.readable = true
			return v
		}
		// The port does not matter: whoever serves pages on this host runs
		// programs there. So a page from the socket server's site can post to
		// the API's.
		if from, isURL := originHost(r.origin); !isURL || !ok || from != host {
			return foreign
		}
		v.readable = v.status == 0
		return v
	}
	// Browsers send no Origin with a GET within the same origin, nor with what
	// a page cannot read. Sec-Fetch-Site tells the two apart. A link to this
	// server may be anywhere.
	elsewhere := r.site == "cross-site" || r.site == "same-site"
	link := r.mode == "navigate" && isSafe(r.method)
	if elsewhere && !link && !slices.Contains(g.origins, anyOrigin) {
		return foreign
	}
	return v
}

// isSafe reports whether a request with method changes nothing.
func isSafe(method string) bool { return method == fasthttp.MethodGet || method == fasthttp.MethodHead }

// knows reports whether this server may have the name host.
func (g *Gate) knows(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true // browsers never ask DNS for these
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return true // nobody can point a literal address elsewhere
	}
	return slices.Contains(g.hosts, host) || slices.Contains(g.origins, anyOrigin)
}

// hostName returns the host in a Host header, without port, brackets and the
// dot at its end, in lower case. It reports false if there is none.
func hostName(header string) (string, bool) {
	host := header
	if strings.HasPrefix(host, "[") {
		end := strings.IndexByte(host, ']')
		if end < 0 || end+1 < len(host) && !isPort(host[end+1:]) {
			return "", false
		}
		address, err := netip.ParseAddr(host[1:end])
		return address.String(), err == nil && address.Is6()
	}
	if colon := strings.IndexByte(host, ':'); colon >= 0 {
		if !isPort(host[colon:]) {
			return "", false
		}
		host = host[:colon]
	}
	host, err := normalName(strings.TrimSuffix(host, "."))
	return host, err == nil
}

// Host returns the host by which a request reached this server, without the
// port, or "" if the request has none that can be a host's.
func Host(ctx *fasthttp.RequestCtx) string {
	host, ok := hostName(string(ctx.Request.Header.Host()))
	if !ok {
		return ""
	}
	return host
}

// isPort reports whether text is a colon and a port, which may be empty.
func isPort(text string) bool {
	return text[0] == ':' && strings.Trim(text[1:], "0123456789") == ""
}

// originHost returns the host of an origin as hostName does.
func originHost(origin string) (string, bool) {
	_, host, ok := strings.Cut(origin, "://")
	if !ok {
		return "", false // null
	}
	return hostName(host)
}

// requestOf returns what of ctx's headers a Gate decides by. A program's
// request costs two look-ups, unless it is a GET.
func requestOf(ctx *fasthttp.RequestCtx) request {
	h := &ctx.Request.Header
	origin, site := h.Peek("Origin"), h.Peek("Sec-Fetch-Site")
	if len(origin) > 0 || len(site) > 0 {
		return request{
			method: string(h.Method()), origin: string(origin), site: string(site),
			mode: string(h.Peek("Sec-Fetch-Mode")), host: string(h.Host()),
		}
	}
	// Browsers send an Origin with everything but GET and HEAD.
	if isSafe(string(h.Method())) && !isHealth(string(ctx.Path())) && looksLikeBrowser(h) {
		return request{method: string(h.Method()), host: string(h.Host()), guess: true}
	}
	return request{}
}

// isHealth reports whether path is one of those that monitoring services ask
// for, some of which call themselves browsers. The answers are no secrets.
func isHealth(path string) bool { return path == wire.HealthPath || path == wire.ReadyPath }

// looksLikeBrowser reports whether a GET without Origin and Sec-Fetch-Site may
// be a browser's. They leave both out of a GET within the same origin where the
// server has neither TLS nor the name localhost, which is what a page does
// whose name was pointed to this machine. It may then set these two headers,
// but not leave them out. It cannot set Sec-Fetch-Mode: that one without
// Sec-Fetch-Site is Node.js.
func looksLikeBrowser(h *fasthttp.RequestHeader) bool {
	if len(h.Peek("Sec-Fetch-Mode")) > 0 {
		return false
	}
	if bytes.HasPrefix(h.UserAgent(), []byte("Mozilla/")) {
		return true
	}
	for name := range h.All() {
		if string(name) == "Accept-Language" { // also without a value
			return true
		}
	}
	return false
}

const (
	// exposedHeaders are those that pages may read besides the usual ones.
	exposedHeaders = wire.TaskIDHeader + ", Retry-After"
	// sentHeaders are those that pages may set besides the usual ones.
	sentHeaders = "Authorization, Content-Type, " + wire.KeyHeader + ", " + wire.DelayHeader + ", " + wire.ExpiresHeader + ", " + wire.TraceparentHeader + ", Accept, " + wire.LastEventIDHeader
	// preflightAge is how many seconds a browser may remember what pages may
	// do. Ten minutes: a page that sends now and then asks once, and a setting
	// that changes holds soon.
	preflightAge = "600"
)

// Admit returns what is wrong with a request that a page should not have sent.
// If nothing is, it lets the page read the answer.
func (g *Gate) Admit(ctx *fasthttp.RequestCtx) *Problem {
	r := requestOf(ctx)
	v := g.decide(r)
	if v.readable {
		expose(&ctx.Response.Header, r.origin)
	}
	switch v.status {
	case fasthttp.StatusForbidden:
		return NewProblem(v.status, foreignDetail(r))
	case fasthttp.StatusMisdirectedRequest:
		return NewProblem(v.status, misnamedDetail(r))
	}
	return nil
}

// Expose lets the page that sent a request read the answer, if it may. Admit
// has done so unless the response was reset, or the request is malformed.
func (g *Gate) Expose(ctx *fasthttp.RequestCtx) {
	if r := requestOf(ctx); g.decide(r).readable {
		expose(&ctx.Response.Header, r.origin)
	}
}

// Wrap returns a handler of net/http that passes on to next what Admit admits,
// for what is served beside the fronts.
func (g *Gate) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var ctx fasthttp.RequestCtx
		h := &ctx.Request.Header
		h.SetMethod(r.Method)
		h.SetHost(r.Host)
		ctx.Request.SetRequestURI(r.URL.EscapedPath())
		for name, values := range r.Header {
			for _, value := range values {
				h.Add(name, value)
			}
		}
		p := g.Admit(&ctx)
		for _, name := range corsHeaders {
			if value := ctx.Response.Header.Peek(name); len(value) > 0 {
				w.Header().Set(name, string(value))
			}
		}
		if p == nil {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", wire.ProblemType)
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(p.Status)
		_, _ = w.Write(p.JSON()) // a client that is gone needs no answer
	})
}

// corsHeaders are those with which Admit lets the page read the answer.
var corsHeaders = []string{"Access-Control-Allow-Origin", "Access-Control-Expose-Headers", "Vary"}

func expose(h *fasthttp.ResponseHeader, origin string) {
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Access-Control-Expose-Headers", exposedHeaders)
	h.Set("Vary", "Origin")
}

// CORSLines returns the header lines with which Admit lets the page read the
// answer, for answers that do not go through fasthttp.
func CORSLines(ctx *fasthttp.RequestCtx) string {
	var lines strings.Builder
	for _, name := range corsHeaders {
		if value := ctx.Response.Header.Peek(name); len(value) > 0 {
			fmt.Fprintf(&lines, "%s: %s\r\n", name, value)
		}
	}
	return lines.String()
}

// AnswerPreflight adds to the answer to OPTIONS what a browser asks before it
// sends a page's request: whether it may have one of methods, and our headers.
// Admit must have passed the request.
func AnswerPreflight(ctx *fasthttp.RequestCtx, methods []string) {
	if len(ctx.Request.Header.Peek("Access-Control-Request-Method")) == 0 {
		return
	}
	h := &ctx.Response.Header
	h.Set("Access-Control-Allow-Methods", strings.Join(methods, ", "))
	h.Set("Access-Control-Allow-Headers", sentHeaders)
	h.Set("Access-Control-Max-Age", preflightAge)
}

const passHost = "have the proxy pass on the Host header (nginx: proxy_set_header Host $host)"

// foreignDetail says what to do about a 403.
func foreignDetail(r request) string {
	switch r.origin {
	case "":
		return fmt.Sprintf("a page of another site may not use this server (Sec-Fetch-Site: %s): "+
			"set --allow-origin to the page's origin, and send the request with CORS", r.site)
	case "null":
		return "a page without an origin of its own (Origin: null), such as a file or a sandboxed frame, may not use this server: " +
			"serve the page from a web server, and set --allow-origin to its origin"
	}
	return fmt.Sprintf("pages of %s may not use this server, which they reached as %q: set --allow-origin %[1]s (or REVQ_ALLOW_ORIGIN) if they should. "+
		"If they are this server's own, a proxy in front of it hides its name: "+passHost, r.origin, r.host)
}

// misnamedDetail says what to do about a 421.
func misnamedDetail(r request) string {
	host, ok := hostName(r.host)
	if !ok {
		return "the Host header is missing or names no host: a browser's request needs one"
	}
	return fmt.Sprintf("browsers may not use this server under the name %s: set --allow-host %[1]s (or REVQ_ALLOW_HOST) if it is one of its names. "+
		"If a proxy in front of it made up the name, "+passHost, host)
}
