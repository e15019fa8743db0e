package socket

import (
	"time"

	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/setting"
)

// Config limits what listeners may use. DefaultConfig gives a usable one.
type Config struct {
	front.Config // what both HTTP fronts have in common

	// MaxListeners is how many may listen at once; more get 503. Default
	// 100,000: about what the kernel's buffers and one process's descriptors
	// are good for.
	MaxListeners int

	// PingInterval is how often each listener is asked whether it is still
	// there. One that has not answered by the next time is closed. Default
	// 30 s, below the minute after which many proxies drop a quiet connection.
	PingInterval time.Duration

	// WriteTimeout is how long a listener may take nothing of what is sent to
	// it before it is closed. Default 30 s.
	WriteTimeout time.Duration

	// HandshakeTimeout bounds the request that begins listening. Default 10 s.
	HandshakeTimeout time.Duration

	// MaxHandshakes is how many connections to each site may be open that do not
	// listen, or not yet; more get 503. Default 16,384: what is being read of a
	// request costs up to Config.MaxHeader, 16 KiB, which a listener does not, so
	// that slow requests take 256 MiB at most.
	MaxHandshakes int

	// MaxMessage is the longest message, in bytes, that a listener may send;
	// it is ignored. Default 4 KiB: enough for those that send a greeting or
	// pings of their own.
	MaxMessage int

	// MaxResuming is how many listeners may catch up at once with what only
	// the broker still has; each costs a connection to it. More are asked to
	// try again. Default 16.
	MaxResuming int
}

// maxHeard is how many bytes a listener may send in one PingInterval.
const maxHeard = 64 << 10

// DefaultConfig returns the limits used unless others are given.
func DefaultConfig() Config {
	return Config{
		Config:           front.DefaultConfig(),
		MaxListeners:     100_000,
		PingInterval:     30 * time.Second,
		WriteTimeout:     30 * time.Second,
		HandshakeTimeout: 10 * time.Second,
		MaxHandshakes:    16 << 10,
		MaxMessage:       4 << 10,
		MaxResuming:      16,
	}
}

// Settings declares what an operator can set of c, which holds the defaults.
func (c *Config) Settings() []setting.Setting {
	limits := setting.In("limits",
		setting.Count("max-listeners", "listeners", "most `LISTENERS` at once", &c.MaxListeners, 1, 0).
			With("More are answered 503. The unit's `LimitNOFILE` (131072) and `MemoryMax` must allow for them."),
		setting.Count("max-resuming", "listeners", "most `LISTENERS` at once that catch up from the broker", &c.MaxResuming, 1, 0),
		setting.Count("max-handshakes", "connections", "most `CONNECTIONS` to each listening address that do not listen yet", &c.MaxHandshakes, 1, 1<<20).
			With("More are answered 503. Each takes up to `max-header` bytes of memory while its request comes."),
		setting.Time("ping-interval", "`TIME` between signs of life that a listener must give", &c.PingInterval, time.Second, 0),
		setting.Time("write-timeout", "`TIME` that a listener may take nothing before it is closed", &c.WriteTimeout, time.Second, 0),
		setting.Time("handshake-timeout", "`TIME` for the request to listen", &c.HandshakeTimeout, time.Second, 0),
	)
	return append(limits, c.Config.Settings()...)
}
