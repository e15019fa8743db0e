package worker

import (
	"strings"
	"testing"
	"time"
)

func TestConfigCheck(t *testing.T) {
	for _, tc := range []struct {
		name             string
		timeout, longest time.Duration
		ok               bool
	}{
		{"the defaults", DefaultConfig().ConsumerTimeout, time.Minute, true},
		{"no pause", time.Second, 0, true},
		{"half of the timeout", time.Minute, 30 * time.Second, true},
		{"just over half", time.Minute, 30*time.Second + 1, false},
		{"more than the timeout", time.Minute, time.Hour, false},
		{"no timeout known", 0, time.Second, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := Config{ConsumerTimeout: tc.timeout}
			err := cfg.Check(tc.longest, "--max-pause")
			if (err == nil) != tc.ok {
				t.Fatalf("Check(%v) = %v", tc.longest, err)
			}
			if err == nil {
				return
			}
			for _, want := range []string{tc.longest.String(), tc.timeout.String(), "--max-pause", (tc.timeout / 2).String(), "--consumer-timeout"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("Check(%v) = %q, want it to name %s", tc.longest, err, want)
				}
			}
		})
	}
}
