package feed

import (
	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/command"
)

// Flags returns the command line flags that set c.
func (c *Config) Flags() []cli.Flag {
	return []cli.Flag{
		command.Number("keep-bytes", "`BYTES` of results kept in memory for slow listeners, for each format", "limits", &c.MaxBytes, segmentBytes, 0),
	}
}
