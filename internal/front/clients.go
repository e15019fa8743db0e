package front

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/time/rate"

	"github.com/revq/revq/internal/setting"
)

// Limits bound what a client address may use. An IPv6 client is its /64, since
// whoever has one address there usually has all.
type Limits struct {
	// TrustedProxies are the addresses or prefixes of proxies whose header
	// X-Forwarded-For says where a client is. Default none.
	TrustedProxies []string

	// Unlimited are addresses or prefixes without limits of their own. Default
	// this machine: its programs can hurt a server in other ways, and a proxy
	// on it that is not trusted stands for many clients.
	Unlimited []string

	// AddressConnections is the maximum number of connections of an address, at
	// all listening sockets together; one more is answered 429. Default 1024: a
	// quarter of what a site of the API takes, and more than a client that
	// keeps its connections needs.
	AddressConnections int

	// AddressRequests is how many requests an address may send in a second, 0
	// for any number. As many may come at once after a second without; more are
	// answered 429. Default 1000: who has more texts posts many in a request.
	AddressRequests int

	// MaxRequests is the same for all addresses together. Default 0: what the
	// broker has not confirmed is bounded (MaxInFlight of the API), and a
	// bound on all would let those with many addresses shut out the others.
	MaxRequests int
}

func defaultLimits() Limits {
	return Limits{Unlimited: []string{"127.0.0.0/8", "::1"}, AddressConnections: 1 << 10, AddressRequests: 1000}
}

// prefixPattern is what can be an address or a prefix at all.
const prefixPattern = `[0-9A-Fa-f:.]+(/[0-9]{1,3})?`

// Settings declares what an operator can set of l.
func (l *Limits) Settings() []setting.Setting {
	proxies := setting.Strings("trusted-proxy", "`ADDRESS` or prefix of proxies whose X-Forwarded-For says where a client is, as 10.0.0.5 or 10.0.0.0/24 (repeatable)",
		&l.TrustedProxies, checkPrefixes).
		With("Without it, all clients of a proxy share the limits of one address. The proxy must set the header, not pass on the client's. The PROXY protocol is not supported.")
	unlimited := setting.Strings("unlimited-address", "`ADDRESS` or prefix of clients without limits of their own (repeatable)", &l.Unlimited, checkPrefixes).
		With("A list replaces the default, which is this machine. 0.0.0.0/0 and ::/0 switch the limits of all addresses off.")
	proxies.Pattern, unlimited.Pattern = prefixPattern, prefixPattern
	return setting.In("limits", proxies, unlimited,
		setting.Count("address-connections", "connections", "maximum number of `CONNECTIONS` of a client address to all sites of a process", &l.AddressConnections, 1, 1<<20).
			With("More are answered 429. An IPv6 address counts as its /64. Connections of trusted proxies and of listeners do not count."),
		setting.Count("address-requests", "requests", "maximum number of `REQUESTS` of a client address in a second; 0 for any number", &l.AddressRequests, 0, 1<<20).
			With("More are answered 429. Many texts in one request (NDJSON) count as one."),
		setting.Count("max-requests", "requests", "maximum number of `REQUESTS` of all clients together in a second; 0 for any number", &l.MaxRequests, 0, 1<<20).
			With("More are answered 429."),
	)
}

func checkPrefixes(values []string) error {
	for _, v := range values {
		if _, err := parsePrefix(v); err != nil {
			return err
		}
	}
	return nil
}

// parsePrefix parses an address or a prefix.
func parsePrefix(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() {
		return p, fmt.Errorf("%q is neither an address nor a prefix: give one as 10.0.0.5, 10.0.0.0/24 or 2001:db8::/32", text)
	}
	return p.Masked(), nil
}

// prefixes are addresses, usually a handful.
type prefixes []netip.Prefix

func parsePrefixes(texts []string) (all prefixes) {
	for _, text := range texts {
		if p, err := parsePrefix(text); err == nil { // the settings' check has refused others
			all = append(all, p)
		}
	}
	return all
}

func (p prefixes) contain(a netip.Addr) bool {
	return slices.ContainsFunc(p, func(one netip.Prefix) bool { return one.Contains(a) })
}

// maxClients is how many addresses are remembered without a connection or a
// listener, some 200 bytes each. Whoever uses more addresses than that is not
// limited by address anyway.
const maxClients = 1 << 16

// A Client is what is known of an address. A nil one has no limits.
type Client struct {
	of       *clients
	at       netip.Addr
	requests *rate.Limiter // nil for no limit

	connections, listeners int // of.mu guards them
}

// clients are the addresses that use a front.
type clients struct {
	limits       Limits
	maxListeners int // of an address
	log          *slog.Logger
	trusted      prefixes
	unlimited    prefixes
	all          *rate.Limiter // nil for no limit
	warned       atomic.Int64  // when a refusal was last logged, in Unix seconds
	unforwarded  sync.Once

	mu    sync.Mutex
	known map[netip.Addr]*Client
}

func newClients(app *App) *clients {
	return &clients{
		limits: app.Limits, maxListeners: app.AddressListeners, log: app.Log,
		trusted: parsePrefixes(app.TrustedProxies), unlimited: parsePrefixes(app.Unlimited),
		all: perSecond(app.MaxRequests), known: make(map[netip.Addr]*Client),
	}
}

// perSecond returns a limiter of n requests a second, which takes as many at
// once; nil for 0.
func perSecond(n int) *rate.Limiter {
	if n == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(n), n)
}

// scopeOf returns what counts as one client: the address itself, or the /64 of
// an IPv6 one.
func scopeOf(a netip.Addr) netip.Addr {
	if a = a.Unmap().WithZone(""); a.Is6() {
		return netip.PrefixFrom(a, 64).Masked().Addr()
	}
	return a
}

// addressOf returns the address of a connection's other end, if it has one.
func addressOf(c net.Conn) netip.Addr {
	if tcp, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

// forwardedFor returns where a client is whose request came from peer with
// these lines of X-Forwarded-For. Each proxy appends where it got the request
// from. So it is the last address that no trusted proxy has; what is before it
// may be the client's invention.
func (cs *clients) forwardedFor(peer netip.Addr, lines [][]byte) netip.Addr {
	at := peer
	for _, line := range slices.Backward(lines) {
		for rest := line; cs.trusted.contain(at); {
			comma := bytes.LastIndexByte(rest, ',')
			next, ok := parseForwarded(string(bytes.Trim(rest[comma+1:], " \t")))
			if !ok {
				return at
			}
			if at = next; comma < 0 {
				break
			}
			rest = rest[:comma]
		}
	}
	return at
}

// parseForwarded parses an address of X-Forwarded-For. Some proxies add a port,
// and then brackets to an IPv6 address.
func parseForwarded(text string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(text)
	if err != nil {
		var both netip.AddrPort
		if both, err = netip.ParseAddrPort(text); err == nil {
			a = both.Addr()
		}
	}
	return a.Unmap().WithZone(""), err == nil
}

// at returns the client at an address, nil if it has no limits.
func (cs *clients) at(a netip.Addr) *Client {
	if a = a.Unmap(); !a.IsValid() || cs.unlimited.contain(a) {
		return nil
	}
	a = scopeOf(a)
	cs.mu.Lock()
	defer cs.mu.Unlock()
	return cs.find(a)
}

// find returns the client at a, which is a scope. The caller holds mu.
func (cs *clients) find(a netip.Addr) *Client {
	c := cs.known[a]
	if c == nil {
		if len(cs.known) >= maxClients {
			cs.forget()
		}
		c = &Client{of: cs, at: a, requests: perSecond(cs.limits.AddressRequests)}
		cs.known[a] = c
	}
	return c
}

// forget makes room for another client: of a few, those that might as well be
// new, or else one that has nothing open. If all have something open, their
// connections and listeners bound the table.
func (cs *clients) forget() {
	const look = 16
	now, left := time.Now(), look
	var idle *Client
	for _, c := range cs.known {
		if c.connections+c.listeners == 0 {
			idle = c
			if c.rested(now) {
				delete(cs.known, c.at)
			}
		}
		if left--; left == 0 {
			break
		}
	}
	if idle != nil {
		delete(cs.known, idle.at)
	}
}

// rested reports whether a new client could send no more requests than c.
func (c *Client) rested(now time.Time) bool {
	return c.requests == nil || c.requests.TokensAt(now) >= float64(c.requests.Burst())
}

// add adds n, 1 or -1, to one of c's counts. It returns false, and does not add
// 1, if that would be more than limit.
func (c *Client) add(count *int, n, limit int) bool {
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	if n > 0 && *count+n > limit {
		return false
	}
	*count += n
	if n < 0 && c.connections+c.listeners == 0 && c.of.known[c.at] == c && c.rested(time.Now()) {
		delete(c.of.known, c.at)
	} else if n > 0 {
		if _, other := c.of.known[c.at]; !other { // it was forgotten just now
			c.of.known[c.at] = c
		}
	}
	return true
}

// connect counts a connection, or returns why the client may not have it.
func (c *Client) connect() *Problem {
	if c == nil || c.add(&c.connections, 1, c.of.limits.AddressConnections) {
		return nil
	}
	return c.refuse("address-connections", fmt.Sprintf("there are %d connections from %s already: close some, or keep them for more than one request", c.of.limits.AddressConnections, c.name()))
}

func (c *Client) disconnect() {
	if c != nil {
		c.add(&c.connections, -1, 0)
	}
}

// Listen counts a listener, or returns why the client may not have it. Unless
// it returns a problem, the caller must call Leave when the listener is gone.
func (c *Client) Listen() *Problem {
	if c == nil || c.add(&c.listeners, 1, c.of.maxListeners) {
		return nil
	}
	return c.refuse("address-listeners", fmt.Sprintf("%d listeners are connected from %s already, which is the maximum for one address", c.of.maxListeners, c.name()))
}

// Leave uncounts a listener.
func (c *Client) Leave() {
	if c != nil {
		c.add(&c.listeners, -1, 0)
	}
}

// allow counts a request, or returns why the client may not send it.
func (cs *clients) allow(c *Client, now time.Time) *Problem {
	if c != nil && c.requests != nil && !c.requests.AllowN(now, 1) {
		return c.refuse("address-requests", fmt.Sprintf("there were more than %d requests in a second from %s: retry in a second, and send many texts in one request", cs.limits.AddressRequests, c.name()))
	}
	if cs.all != nil && !cs.all.AllowN(now, 1) {
		cs.warn("max-requests", "all")
		return NewProblem(fasthttp.StatusTooManyRequests, fmt.Sprintf("there were more than %d requests in a second: retry in a second", cs.limits.MaxRequests))
	}
	return nil
}

func (c *Client) name() string {
	if c.at.Is6() {
		return c.at.String() + "/64"
	}
	return c.at.String()
}

func (c *Client) refuse(name, detail string) *Problem {
	c.of.warn(name, c.name())
	return NewProblem(fasthttp.StatusTooManyRequests, detail)
}

// warn logs that clients are refused, at most every warnPause.
func (cs *clients) warn(name, address string) {
	now, last := time.Now().Unix(), cs.warned.Load()
	if now-last >= int64(warnPause/time.Second) && cs.warned.CompareAndSwap(last, now) {
		cs.log.Warn("a client is refused; if it is a proxy, set --trusted-proxy", "address", address, "setting", "--"+name)
	}
}

// Client returns who sent a request; nil has no limits.
func (s *Server) Client(ctx *fasthttp.RequestCtx) *Client {
	c, ok := ctx.Conn().(*conn)
	switch {
	case !ok:
		return nil
	case !c.proxied:
		return c.client
	}
	lines := HeaderLines(&ctx.Request.Header, "X-Forwarded-For")
	if len(lines) == 0 && !isHealth(string(ctx.Path())) {
		s.clients.unforwarded.Do(func() {
			s.app.Log.Warn("a trusted proxy sends no X-Forwarded-For, so its clients share the limits of its own address, if that has any", "address", addressOf(c).String())
		})
	}
	return s.clients.at(s.clients.forwardedFor(addressOf(c), lines))
}
