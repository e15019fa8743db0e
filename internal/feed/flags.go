package feed

import (
	"fmt"

	"github.com/urfave/cli/v3"
)

// Flags returns the command line flags that set c.
func (c *Config) Flags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{
			Name:        "keep-bytes",
			Usage:       "`BYTES` of results kept in memory for slow listeners, for each format",
			Category:    "limits",
			Sources:     cli.EnvVars("REVQ_KEEP_BYTES"),
			Value:       c.MaxBytes,
			Destination: &c.MaxBytes,
			Validator: func(n int) error {
				if n < segmentBytes {
					return fmt.Errorf("%d bytes are too few: give %d or more", n, segmentBytes)
				}
				return nil
			},
		},
	}
}
