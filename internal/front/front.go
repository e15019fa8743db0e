// Package front is what the two HTTP fronts, for posting and for listening,
// share: a guard before fasthttp that refuses ambiguous requests, a table of
// routes, health and readiness, errors as problem details, a limit on
// connections, and a listening socket that survives a shortage of descriptors.
//
// An App describes what differs.
package front

import (
	"log/slog"
	"slices"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/setting"
	"github.com/revq/revq/internal/token"
)

// A Config holds the settings of both fronts. DefaultConfig returns the
// defaults.
type Config struct {
	// MaxHeader is the maximum length of a request line and headers, together,
	// in bytes; a request with more is answered 431. Default 16 KiB: proxies
	// that ask for a login set cookies of several KiB. It is also the size of a
	// connection's read buffer, so large that a usual text arrives in one read.
	MaxHeader int

	Limits // of each address, and of all together

	Pages Pages // that may use the front

	Tokens *token.File // of those who may use it; nil for everyone
}

// DefaultConfig returns the default limits.
func DefaultConfig() Config {
	return Config{MaxHeader: 16 << 10, Limits: defaultLimits(), Tokens: token.NewFile()}
}

// Settings declares the settings of c, which holds the defaults.
func (c *Config) Settings() []setting.Setting {
	limits := setting.In("limits",
		setting.Count("max-header", "bytes", "maximum length of request line and headers, together, in `BYTES`", &c.MaxHeader, 1<<10, 1<<20).
			With("More are answered 431. Proxies that ask for a login set cookies of several KiB."),
	)
	return slices.Concat(limits, c.Limits.Settings(), c.Pages.Settings(), c.Tokens.Settings())
}

// An App describes one of the fronts.
type App struct {
	Config

	// Routes are all paths except those of health and readiness.
	Routes []Route

	// Elsewhere is the advice in the answer to an unknown path.
	Elsewhere string

	// Ready returns nil while the front can do its work, otherwise the reason
	// why not, which the client sees.
	Ready func() error

	// BodyLimit returns the maximum length of a request's body in bytes; nil if
	// no request needs a body. TooLarge is the advice in the answer to a longer
	// one.
	BodyLimit func(*fasthttp.RequestHeader) int
	TooLarge  string

	// MaxBodies is the maximum total size, in bytes, of all bodies that are
	// being received or handled, without small ones; a request beyond it is
	// answered 503. 0 is for a front without bodies. LargestBody is the maximum
	// that BodyLimit returns.
	MaxBodies, LargestBody int64

	// MaxConnections is the maximum number of connections at each listening
	// address. One beyond it takes the place of one that has waited for more
	// than 100 ms for its client to send a request; if there is none, it is
	// answered 503 and closed.
	MaxConnections int

	// AddressListeners is how many listeners a client address may have, see
	// Client.Listen.
	AddressListeners int

	// ReadTimeout is how long a request may take to arrive, WriteTimeout how
	// long an answer may take to be received, and IdleTimeout how long a
	// connection is kept without a request.
	ReadTimeout, WriteTimeout, IdleTimeout time.Duration

	// Frugal frees the buffers of a connection that waits or was hijacked. It
	// costs one more system call for each request.
	Frugal bool

	Log *slog.Logger
}

// A Route is a path and the requests that it takes.
type Route struct {
	// Path is the path, or ends with a slash: then it stands for all paths that
	// begin with it and are longer, and NameIn returns the rest. / is only
	// itself.
	Path string

	// Methods are those that Handle takes. OPTIONS is answered everywhere.
	Methods []string

	// Scope is what a token must permit; 0 if everyone may use the route.
	// Queues, if it is not nil, returns the queues that a request names. Handle
	// must restrict what a request may do that names none, see PermitOf. Tickets
	// says that a ticket does as well as a token.
	Scope   token.Scope
	Queues  func(*fasthttp.RequestHeader) []string
	Tickets bool

	// Check returns the problem that a request's headers show, so that its body
	// need not be sent. Check is nil if there is nothing to check.
	Check func(*fasthttp.RequestHeader) *Problem

	// Handle answers the request, or returns the problem with it.
	Handle func(*fasthttp.RequestCtx) *Problem

	// Options are headers of the answer to OPTIONS, names and values in turn.
	Options []string
}
