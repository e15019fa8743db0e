package main

import (
	"context"
	"io"
	"regexp"
	"testing"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/command"
	"github.com/revq/revq/internal/program"
	"github.com/revq/revq/internal/setting"
)

// FuzzSettings gives every setting any value: none is taken that is out of its
// bounds, or that the NixOS module, which checks the pattern, would refuse.
func FuzzSettings(f *testing.F) {
	for _, value := range []string{
		"", "0", "1", "-1", "99999999999999999999", "1.5", "1h30m", "500ms", "-5s", "a", "info", "INFO", "24h", "7D", "reverse_text", "10.0.0.0/24", "::1", "fe80::1%eth0",
		"10.0.0.0/33", "https://example.org", "HTTP://Example.org:80/", "*", "queue.example.org", "a,b", "\x00", "\xff", "/run/x", "unix:/run/x", "amqp://a:b@c/d", "systemd", "127.0.0.1:80",
	} {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value string) {
		for _, set := range program.Sets() {
			for _, s := range set.Settings {
				cmd := &cli.Command{
					Flags: command.Flags([]setting.Setting{s}), Writer: io.Discard, ErrWriter: io.Discard,
					Action:         func(context.Context, *cli.Command) error { return nil },
					ExitErrHandler: func(context.Context, *cli.Command, error) {},
				}
				if cmd.Run(t.Context(), []string{"test", "--" + s.Name + "=" + value}) != nil {
					continue
				}
				var taken []string
				var amount int64
				switch dest := s.Dest.(type) {
				case *int:
					amount = int64(*dest)
				case *int64:
					amount = *dest
				case interface{ Nanoseconds() int64 }:
					amount = dest.Nanoseconds()
				case *string:
					taken = []string{*dest}
				case *[]string:
					taken = *dest
				}
				if s.Kind == setting.Int || s.Kind == setting.Duration {
					if amount < s.Min || s.Max != 0 && amount > s.Max {
						t.Errorf("%s --%s=%q is %d, which is out of its bounds", set.Program, s.Name, value, amount)
					}
				}
				if s.Pattern == "" {
					continue
				}
				for _, text := range taken {
					if !regexp.MustCompile(`\A(?:` + s.Pattern + `)\z`).MatchString(text) {
						t.Errorf("%s --%s takes %q, which does not match %s", set.Program, s.Name, text, s.Pattern)
					}
				}
			}
		}
	})
}
