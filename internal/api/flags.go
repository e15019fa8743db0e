package api

import (
	"time"

	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/setting"
	"github.com/revq/revq/internal/task"
)

// Config limits a Server.
type Config struct {
	front.Config // shared by both HTTP fronts

	// MaxText is the maximum length of a text, in bytes. Default 64 KiB: the
	// broker and each front keep a text in memory until all listeners have it.
	MaxText int

	// MaxBatch is the maximum length of an NDJSON body, in bytes. Default
	// 1 MiB: about 10,000 texts of 100 bytes, which a broker confirms within a
	// second.
	MaxBatch int

	// MaxBodies is the maximum total size, in bytes, of all request bodies that
	// are being received or handled. A request beyond it is answered 503, unless
	// room can be made by ending a body that comes slower than 64 KiB a second.
	// Bodies of up to 16 KiB are not counted, so that single texts are accepted
	// while others upload. Default 64 MiB: as many batches of the maximum size
	// as a broker confirms in a minute. With their tasks and answers, that is
	// about a quarter of the unit's memory limit.
	MaxBodies int64

	// MaxInFlight is the maximum number of tasks in flight; a text beyond it is
	// answered 429. Default 4096: several times as many as keep a broker busy,
	// so that texts are refused only if the broker cannot keep up.
	MaxInFlight int

	// MaxConnections is the maximum number of connections on each listening
	// socket; one beyond it is answered 503 and closed. Default 4096: each takes
	// about 30 KiB, and up to 16 KiB for a body that MaxBodies does not count.
	MaxConnections int

	// ReadTimeout is how long a whole request may take to arrive. Default 10 s:
	// ample for 1 MiB, and a limit for a client that sends a byte at a time.
	ReadTimeout time.Duration

	// WriteTimeout is how long a client may take to receive an answer. Default
	// 10 s, as for requests.
	WriteTimeout time.Duration

	// IdleTimeout is how long a connection is kept without a request. Default
	// 60 s, so that clients that send now and then keep their connections.
	IdleTimeout time.Duration
}

// DefaultConfig returns the default limits.
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

// Settings declares the settings of c, which holds the defaults.
func (c *Config) Settings() []setting.Setting {
	number := func(name, unit, usage string, dest *int, maximum int64) setting.Setting {
		return setting.Count(name, unit, usage, dest, 1, maximum)
	}
	// Below 100 ms, ordinary network delays would interrupt requests.
	duration := func(name, usage string, dest *time.Duration) setting.Setting {
		return setting.Time(name, usage, dest, 100*time.Millisecond, time.Hour)
	}
	limits := setting.In("limits",
		number("max-text", "bytes", "maximum length of a text, in `BYTES`", &c.MaxText, task.MaxText).
			With("Longer ones are answered 413. Workers have a limit of the same name, 1 MiB by default: raise it first."),
		number("max-batch", "bytes", "maximum length of an NDJSON body, in `BYTES`", &c.MaxBatch, 64<<20),
		setting.Count("max-body-bytes", "bytes", "maximum `BYTES` of all request bodies that are being received or handled, together", &c.MaxBodies, 1<<20, 0).
			With("Requests beyond it are answered 503. Each counts as the memory that it takes, the next power of two. Bodies of up to 16 KiB are not counted, and there is always room for one of the maximum size. When there is no room, a body that comes slower than 64 KiB a second is ended with 408. The unit's `MemoryMax` must allow for about four times as much."),
		number("max-in-flight", "tasks", "maximum number of `TASKS` in flight to the broker", &c.MaxInFlight, 1<<20).
			With("More are answered 429."),
		number("max-connections", "connections", "maximum number of `CONNECTIONS` to each listening address", &c.MaxConnections, 1<<20).
			With("More are answered 503. The unit's `LimitNOFILE` (16384) and `MemoryMax` must allow for them."),
		duration("read-timeout", "`TIME` for a whole request to arrive, such as 10s", &c.ReadTimeout),
		duration("write-timeout", "`TIME` for an answer to be received, such as 10s", &c.WriteTimeout),
		duration("idle-timeout", "`TIME` to keep a connection without requests, such as 1m", &c.IdleTimeout),
	)
	return append(limits, c.Config.Settings()...)
}
