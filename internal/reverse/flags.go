package reverse

import (
	"time"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/command"
)

// Flags returns the command line flags that set c.
func (c *Config) Flags() []cli.Flag {
	return []cli.Flag{
		command.Duration("pause", "`TIME` to pause for each character of a text; 0s for none", "job", &c.PausePerChar, 0, 0),
		command.Duration("max-pause", "longest `TIME` to pause for one text", "job", &c.MaxPause, 0, 0),
	}
}

// Longest returns the longest time that handling one task can take.
func (c *Config) Longest() time.Duration {
	if c.PausePerChar == 0 {
		return 0
	}
	return c.MaxPause
}
