// Package front is what the two HTTP fronts share, the one that takes texts and
// the one that listeners connect to: a guard in front of fasthttp that refuses
// requests which can be understood in two ways, a table of routes, health and
// readiness, errors as problem details, a limit on connections, and a loop that
// takes them and outlives a shortage.
//
// An App says what is different.
package front

import (
	"log/slog"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/setting"
)

// A Config is what an operator can set of both fronts. DefaultConfig gives a
// usable one.
type Config struct {
	// MaxHeader is the most bytes of a request line and headers, together; a
	// request with more is answered 431. Default 16 KiB: proxies that ask for a
	// login set cookies of several KiB. In front of texts, it is also each
	// connection's read buffer, large enough that a usual text comes in one read.
	MaxHeader int

	Pages Pages // that may use the front
}

// DefaultConfig returns the limits used unless others are given.
func DefaultConfig() Config { return Config{MaxHeader: 16 << 10} }

// Settings declares what an operator can set of c, which holds the defaults.
func (c *Config) Settings() []setting.Setting {
	limits := setting.In("limits",
		setting.Count("max-header", "bytes", "longest request line and headers, together, in `BYTES`", &c.MaxHeader, 1<<10, 1<<20).
			With("More are answered 431. Proxies that ask for a login set cookies of several KiB."),
	)
	return append(limits, c.Pages.Settings()...)
}

// An App is what one of the fronts serves, and how.
type App struct {
	Config

	// Routes are all paths but those of health and readiness.
	Routes []Route

	// Elsewhere says where to go instead of a path that does not exist.
	Elsewhere string

	// Ready returns nil while the front can do its job, otherwise why not. The
	// reason is shown to the client.
	Ready func() error

	// BodyLimit returns how many bytes of body a request may have; nil if none
	// needs one. TooLarge says what to do about a longer one.
	BodyLimit func(*fasthttp.RequestHeader) int
	TooLarge  string

	// MaxBodies is how many bytes all bodies may have together that are being
	// received or handled, without small ones; a request beyond is answered 503.
	// 0 is for a front that takes none. LargestBody is the most that BodyLimit
	// returns.
	MaxBodies, LargestBody int64

	// MaxConnections is the most connections at each listening address; one
	// beyond is answered 503 and closed.
	MaxConnections int

	// ReadTimeout is how long a request may take to arrive, WriteTimeout an
	// answer to be received, IdleTimeout is how long a connection is kept
	// without a request.
	ReadTimeout, WriteTimeout, IdleTimeout time.Duration

	// Frugal gives up the buffers of a connection that waits or was hijacked,
	// for a system call more a request.
	Frugal bool

	Log *slog.Logger
}

// A Route is a path and what may be done there.
type Route struct {
	Path string

	// Methods are those that Handle takes. OPTIONS is answered everywhere.
	Methods []string

	// Check returns what is wrong with a request by its headers alone, so that
	// its body need not be sent; nil if there is nothing to check.
	Check func(*fasthttp.RequestHeader) *Problem

	// Handle answers the request, or returns the problem with it.
	Handle func(*fasthttp.RequestCtx) *Problem

	// Options are headers of the answer to OPTIONS, names and values in turn.
	Options []string
}
