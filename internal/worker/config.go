package worker

import (
	"fmt"
	"time"

	"github.com/revq/revq/internal/setting"
	"github.com/revq/revq/internal/task"
)

// Config sets how a worker takes tasks. DefaultConfig gives a usable one.
type Config struct {
	// Concurrency is how many tasks are in hand at once, and so how many the
	// broker sends ahead (the prefetch): none waits in a worker while another
	// one is free. Default 10.
	Concurrency int

	// MaxText is the longest text handled, in bytes; a task with a longer one
	// goes to the dead letters. The API has a limit of its own, but any AMQP
	// client may publish a task, and as the result its text takes up to eighteen
	// times its size in each socket server. Default 1 MiB: sixteen times what
	// the API takes by default, and little beside what each process may have.
	MaxText int

	// ConsumerTimeout is what the broker has as consumer_timeout: the time
	// after which it takes an unacknowledged task back and closes the channel
	// that held it. Default 30 min, as the broker's.
	ConsumerTimeout time.Duration

	// DeliveryLimit is that of the queue: how often a task may come back
	// before the broker makes it a dead letter. Handlers are told which
	// attempt is the last one.
	DeliveryLimit int64

	// Drain has tasks that are being handled when the worker is told to stop
	// finish within DrainTimeout. Default false: they go back at once, which
	// makes for quick restarts.
	Drain        bool
	DrainTimeout time.Duration
}

// maxConcurrency keeps a worker's unacknowledged tasks well below what one
// channel carries (65,535).
const maxConcurrency = 10_000

// DefaultConfig returns the configuration used unless something else is given.
func DefaultConfig() Config {
	return Config{Concurrency: 10, MaxText: 1 << 20, ConsumerTimeout: 30 * time.Minute, DeliveryLimit: 5}
}

// Settings declares what an operator can set of c, which holds the defaults.
func (c *Config) Settings() []setting.Setting {
	return []setting.Setting{
		setting.In("job", setting.Count("concurrency", "tasks", "`TASKS` at once, in each worker", &c.Concurrency, 1, maxConcurrency))[0],
		setting.In("job", setting.Count("max-text", "bytes", "longest text handled, in `BYTES`", &c.MaxText, 1, task.MaxText).
			With("A task with a longer one becomes a dead letter. It must not be less than --max-text of revq-api. Socket servers leave out results longer than a sixth of their --keep-bytes."))[0],
		setting.In("broker", setting.Time("consumer-timeout", "`TIME` after which the broker takes a task back, its consumer_timeout", &c.ConsumerTimeout, time.Second, 0).
			With("Pauses and the task time-out must stay below half of it."))[0],
		setting.In("job", setting.Switch("drain", "when told to stop, finish the tasks that are being handled, within the stop timeout", &c.Drain).
			With("Without it they go back to the queue at once."))[0],
	}
}

// Check returns an error if a task that takes longest to handle, which the flag
// bounds, could meet the broker's consumer timeout. Half of it is left for publishing the result to
// a broker that is slow or away, and because the broker looks only now and then.
func (c *Config) Check(longest time.Duration, flag string) error {
	if most := c.ConsumerTimeout / 2; longest > most {
		return fmt.Errorf("a task may take %v, too near to the broker's consumer timeout of %v: lower %s to %v or less, or raise consumer_timeout at the broker and --consumer-timeout here",
			longest, c.ConsumerTimeout, flag, most)
	}
	return nil
}
