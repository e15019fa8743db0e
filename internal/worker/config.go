package worker

import (
	"fmt"
	"time"

	"github.com/revq/revq/internal/setting"
	"github.com/revq/revq/internal/task"
)

// Config sets how a worker takes tasks. DefaultConfig gives a usable one.
type Config struct {
	// Concurrency is how many tasks the worker handles at once. It is also the
	// prefetch, so no task waits in a worker while another worker is free.
	// Default 10.
	Concurrency int

	// MaxText is the maximum length of a text in bytes; a task with a longer
	// one becomes a dead letter. The API has its own limit, but any AMQP
	// client may publish a task, and a result takes up to eighteen times its
	// size in each socket server. Default 1 MiB: sixteen times the default
	// limit of the API, and little compared with the memory of each process.
	MaxText int

	// ConsumerTimeout is the broker's consumer_timeout: the time after which
	// it takes back an unacknowledged task and closes the channel that held
	// it. Default 30 min, like the broker's.
	ConsumerTimeout time.Duration

	// Retries is how many failed attempts of a task are followed by another
	// one. Default 10: they take 17 minutes in all, see retryMin.
	Retries int64

	// DeliveryLimit is how often the broker may deliver a task because its
	// workers die or lose their connection. When a worker gets it once more, it
	// gives it up. The broker itself does so only after some more losses (see
	// rabbit.Topology), since listeners may not be told of that while it begins
	// again. Default task.DeliveryLimit.
	DeliveryLimit int64

	// Drain lets running tasks finish within DrainTimeout when the worker is
	// told to stop. Default false: they return to the queue at once, which
	// makes restarts quick.
	Drain        bool
	DrainTimeout time.Duration

	// Limit returns how long an attempt may take with a text, for those who
	// look into the worker. Default nil: it is not known.
	Limit func(text string) time.Duration
}

// maxConcurrency keeps the number of a worker's unacknowledged tasks well below
// the maximum of a channel, 65,535.
const maxConcurrency = 10_000

// DefaultConfig returns the default configuration.
func DefaultConfig() Config {
	return Config{Concurrency: 10, MaxText: 1 << 20, ConsumerTimeout: 30 * time.Minute, Retries: 10, DeliveryLimit: task.DeliveryLimit}
}

// Settings declares the settings of c, which holds the defaults.
func (c *Config) Settings() []setting.Setting {
	return []setting.Setting{
		setting.In("job", setting.Count("concurrency", "tasks", "`TASKS` at once, in each worker", &c.Concurrency, 1, maxConcurrency))[0],
		setting.In("job", setting.Count("max-text", "bytes", "longest text handled, in `BYTES`", &c.MaxText, 1, task.MaxText).
			With("A task with a longer one becomes a dead letter. It must not be less than --max-text of revq-api. Socket servers leave out results longer than a sixth of their --keep-bytes."))[0],
		setting.In("broker", setting.Time("consumer-timeout", "`TIME` after which the broker takes a task back, its consumer_timeout", &c.ConsumerTimeout, time.Second, 0).
			With("Pauses and the task time-out must stay below half of it. A worker whose broker has a shorter one learns it from the broker's error, says so, and keeps to that until it is restarted."))[0],
		setting.In("job", setting.Count("retries", "retries", "maximum number of `RETRIES` of a task whose attempts fail", &c.Retries, 0, 1000).
			With("The waits before them are 1 s, 2 s, 4 s, up to 10 min: 17 minutes in all with ten. Then the task is a dead letter, and listeners are told."))[0],
		setting.In("job", setting.Count("delivery-limit", "deliveries", "maximum number of `DELIVERIES` of a task whose workers die or lose their connection", &c.DeliveryLimit, 1, task.MaxDeliveryLimit).
			With("Then the task is a dead letter, and listeners are told. Give `revq setup` the same for the queue."))[0],
		setting.In("job", setting.Switch("drain", "when told to stop, finish the tasks that are being handled, within the stop timeout", &c.Drain).
			With("Without it they go back to the queue at once."))[0],
	}
}

// Check returns an error if a task that takes the longest time to handle, which
// flag bounds, could reach the broker's consumer timeout. Half of that timeout
// is left for publishing the result to a slow or unavailable broker, and
// because the broker checks only from time to time.
func (c *Config) Check(longest time.Duration, flag string) error {
	if limit := c.ConsumerTimeout / 2; longest > limit {
		return fmt.Errorf("a task may take %v, too close to the broker's consumer timeout of %v: lower %s to %v or less, or raise consumer_timeout at the broker and --consumer-timeout here",
			longest, c.ConsumerTimeout, flag, limit)
	}
	return nil
}
