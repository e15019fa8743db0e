package feed

import "github.com/revq/revq/internal/setting"

// Settings declares what an operator can set of c, which holds the defaults.
func (c *Config) Settings() []setting.Setting {
	return setting.In("limits",
		setting.Count("keep-bytes", "bytes", "`BYTES` of results kept in memory for slow listeners, for each format", &c.MaxBytes, segmentBytes, 0).
			With("A listener that needs older results is closed and may resume."),
	)
}
