package feed

import "github.com/revq/revq/internal/setting"

// minBytes is enough for results as long as the longest text that the API takes
// by default, see LongestResult.
const minBytes = 512 << 10

// Settings declares the settings of c, which holds the defaults.
func (c *Config) Settings() []setting.Setting {
	return setting.In("limits",
		setting.Count("keep-bytes", "bytes", "`BYTES` of results kept in memory for slow listeners, for each format", &c.MaxBytes, minBytes, 0).
			With("Results longer than a sixth of it are left out, and listeners are told. A listener that needs older results is closed and may resume."),
	)
}
