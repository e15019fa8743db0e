package socket

import (
	"slices"
	"time"

	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/page"
	"github.com/revq/revq/internal/setting"
)

// Config limits what listeners may use. DefaultConfig gives a usable one.
type Config struct {
	front.Config // shared by both HTTP fronts

	Page page.Config // the live page

	// MaxListeners is how many clients may listen at once; more are answered
	// 503. Default 100,000: about as many as the kernel's buffers and one
	// process's descriptors allow.
	MaxListeners int

	// AddressListeners is how many of them may be at one client address; more
	// are answered 429. Default 1000: as many browsers as an office has behind
	// one address, and a hundredth of all.
	AddressListeners int

	// PingInterval is how often the server pings each listener. It closes one
	// that has not answered by the next ping. Default 30 s, below the minute
	// after which many proxies drop a quiet connection.
	PingInterval time.Duration

	// WriteTimeout is how long a listener may receive nothing of what is sent
	// to it before the server closes it. Default 30 s.
	WriteTimeout time.Duration

	// HandshakeTimeout is how long the request to listen may take to arrive.
	// Default 10 s.
	HandshakeTimeout time.Duration

	// MaxHandshakes is how many connections to each site may be open that do
	// not listen (yet); more are answered 503. Default 16,384: each takes up to
	// Config.MaxHeader, 16 KiB, while its request is read, so that slow
	// requests take at most 256 MiB. A listener does not take this.
	MaxHandshakes int

	// MaxMessage is the maximum length of a message, in bytes, that a listener
	// may send. The server ignores the message. Default 4 KiB: enough for
	// clients that send a greeting or pings of their own.
	MaxMessage int

	// MaxResuming is how many listeners may resume from the broker at once;
	// each costs a connection to it. More are told to try again. Default 16.
	MaxResuming int
}

// maxHeard is how many bytes a listener may send in one PingInterval.
const maxHeard = 64 << 10

// maxFlood is how many bytes it may send while a farewell is on its way. A few
// milliseconds pass meanwhile, unless it does not read.
const maxFlood = 4 << 20

// DefaultConfig returns the default limits.
func DefaultConfig() Config {
	return Config{
		Config:           front.DefaultConfig(),
		Page:             page.DefaultConfig(),
		MaxListeners:     100_000,
		AddressListeners: 1000,
		PingInterval:     30 * time.Second,
		WriteTimeout:     30 * time.Second,
		HandshakeTimeout: 10 * time.Second,
		MaxHandshakes:    16 << 10,
		MaxMessage:       4 << 10,
		MaxResuming:      16,
	}
}

// Settings declares the settings of c, which holds the defaults.
func (c *Config) Settings() []setting.Setting {
	limits := setting.In("limits",
		setting.Count("max-listeners", "listeners", "maximum number of `LISTENERS` at once", &c.MaxListeners, 1, 0).
			With("More are answered 503. The unit's `LimitNOFILE` (131072) and `MemoryMax` must allow for them."),
		setting.Count("address-listeners", "listeners", "maximum number of `LISTENERS` of a client address at once", &c.AddressListeners, 1, 0).
			With("More are answered 429, and requests that wait for one result count, too. An IPv6 address counts as its /64."),
		setting.Count("max-resuming", "listeners", "maximum number of `LISTENERS` that resume from the broker at once", &c.MaxResuming, 1, 0),
		setting.Count("max-handshakes", "connections", "maximum number of `CONNECTIONS` to each listening address that do not listen yet", &c.MaxHandshakes, 1, 1<<20).
			With("More are answered 503. Each takes up to `max-header` bytes of memory while its request arrives."),
		setting.Time("ping-interval", "`TIME` between two pings of a listener, within which it must answer", &c.PingInterval, time.Second, 0),
		setting.Time("write-timeout", "`TIME` in which a listener may receive nothing before it is closed", &c.WriteTimeout, time.Second, 0),
		setting.Time("handshake-timeout", "`TIME` for the request to listen to arrive", &c.HandshakeTimeout, time.Second, 0),
	)
	return slices.Concat(limits, c.Config.Settings(), c.Page.Settings())
}
