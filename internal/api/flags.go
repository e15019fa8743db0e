package api

import (
	"time"

	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/setting"
	"github.com/revq/revq/internal/task"
)

// Config bounds what a Server takes on.
type Config struct {
	front.Config // what both HTTP fronts have in common

	// MaxText is the longest text, in bytes. Default 64 KiB: a text is kept in
	// memory by the broker and by every front until all listeners have it.
	MaxText int

	// MaxBatch is the largest NDJSON body, in bytes. Default 1 MiB: some
	// 10,000 texts of 100 bytes, which a broker confirms within a second.
	MaxBatch int

	// MaxBodies is how many bytes the request bodies that are being received or
	// handled may have together; a request beyond is answered 503, and bodies
	// that come slower than 64 KiB a second give way. Bodies of up to 16 KiB are
	// not counted, so that texts are taken while others upload. Default 64 MiB:
	// as many batches of the largest size as a broker confirms in a minute, and
	// about a quarter of what the unit may have with their tasks and answers.
	MaxBodies int64

	// MaxInFlight is the most tasks being published at once; a text beyond is
	// answered 429. Default 4096: several times what keeps a broker busy, so
	// that only one that cannot keep up is held back.
	MaxInFlight int

	// MaxConnections is the most connections on each listener; one beyond is
	// answered 503 and closed. Default 4096: each costs some 30 KiB, and up to
	// 16 KiB for a body that MaxBodies does not count.
	MaxConnections int

	// ReadTimeout is how long a whole request may take to arrive. Default 10 s:
	// ample for 1 MiB, and the end of a client that sends a byte at a time.
	ReadTimeout time.Duration

	// WriteTimeout is how long a client may take to receive an answer. Default
	// 10 s, as for requests.
	WriteTimeout time.Duration

	// IdleTimeout is how long a connection is kept without a request. Default
	// 60 s, so that clients that send every now and then keep theirs.
	IdleTimeout time.Duration
}

// DefaultConfig returns the limits that hold unless configured otherwise.
func DefaultConfig() Config {
	return Config{
		Config:         front.DefaultConfig(),
		MaxText:        task.DefaultMaxText,
		MaxBatch:       1 << 20,
		MaxBodies:      64 << 20,
		MaxInFlight:    4096,
		MaxConnections: 4096,
		ReadTimeout:    10 * time.Second,
		WriteTimeout:   10 * time.Second,
		IdleTimeout:    60 * time.Second,
	}
}

// Settings declares what an operator can set of c, which holds the defaults.
func (c *Config) Settings() []setting.Setting {
	number := func(name, unit, usage string, dest *int, most int64) setting.Setting {
		return setting.Count(name, unit, usage, dest, 1, most)
	}
	// Below 100 ms an ordinary delay of the network breaks requests off.
	duration := func(name, usage string, dest *time.Duration) setting.Setting {
		return setting.Time(name, usage, dest, 100*time.Millisecond, time.Hour)
	}
	limits := setting.In("limits",
		number("max-text", "bytes", "longest text taken, in `BYTES`", &c.MaxText, task.MaxText).
			With("Longer ones are answered 413. Workers have a limit of the same name, 1 MiB by default: raise it first."),
		number("max-batch", "bytes", "largest NDJSON body taken, in `BYTES`", &c.MaxBatch, 64<<20),
		setting.Count("max-body-bytes", "bytes", "most `BYTES` of all request bodies being received or handled, together", &c.MaxBodies, 1<<20, 0).
			With("More are answered 503. Bodies of up to 16 KiB are not counted, and there is always room for one of the largest size. When there is no room, a body that comes slower than 64 KiB a second is ended with 408. The unit's `MemoryMax` must allow for about four times as much."),
		number("max-in-flight", "tasks", "most `TASKS` being published at once", &c.MaxInFlight, 1<<20).
			With("More are answered 429."),
		number("max-connections", "connections", "most `CONNECTIONS` on each listening address", &c.MaxConnections, 1<<20).
			With("More are answered 503. The unit's `LimitNOFILE` (16384) and `MemoryMax` must allow for them."),
		duration("read-timeout", "`TIME` for a whole request to arrive, such as 10s", &c.ReadTimeout),
		duration("write-timeout", "`TIME` for an answer to be received, such as 10s", &c.WriteTimeout),
		duration("idle-timeout", "`TIME` to keep a connection without requests, such as 1m", &c.IdleTimeout),
	)
	return append(limits, c.Config.Settings()...)
}
