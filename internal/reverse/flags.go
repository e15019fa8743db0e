package reverse

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v3"
)

// Flags returns the command line flags that set c.
func (c *Config) Flags() []cli.Flag {
	return []cli.Flag{
		&cli.DurationFlag{
			Name:        "pause",
			Usage:       "pause for each character of a text; 0s for none",
			Category:    "job",
			Sources:     cli.EnvVars("REVQ_PAUSE"),
			Value:       c.PausePerChar,
			Destination: &c.PausePerChar,
			Validator:   notNegative,
		},
		&cli.DurationFlag{
			Name:        "max-pause",
			Usage:       "longest pause for one text",
			Category:    "job",
			Sources:     cli.EnvVars("REVQ_MAX_PAUSE"),
			Value:       c.MaxPause,
			Destination: &c.MaxPause,
			Validator:   notNegative,
		},
	}
}

// Longest returns the longest time that handling one task can take.
func (c *Config) Longest() time.Duration {
	if c.PausePerChar == 0 {
		return 0
	}
	return c.MaxPause
}

func notNegative(d time.Duration) error {
	if d < 0 {
		return fmt.Errorf("%v is negative: give 0s or more", d)
	}
	return nil
}
