package reverse

import (
	"time"

	"github.com/revq/revq/internal/setting"
)

// Settings declares the settings of c, which holds the defaults.
func (c *Config) Settings() []setting.Setting {
	return setting.In("job",
		setting.Time("pause", "`TIME` to pause for each character of a text; 0s for none", &c.PausePerChar, 0, 0),
		setting.Time("max-pause", "longest `TIME` to pause for one text", &c.MaxPause, 0, 0),
	)
}

// Longest returns the longest time that handling one task can take.
func (c *Config) Longest() time.Duration {
	if c.PausePerChar == 0 {
		return 0
	}
	return c.MaxPause
}
