package api

import (
	"context"
	"fmt"
	"io"
	"reflect"
	"testing"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/command"
	"github.com/revq/revq/internal/front"
)

func run(c *Config, args ...string) error {
	cmd := &cli.Command{
		Flags: command.Flags(c.Settings()), Writer: io.Discard, ErrWriter: io.Discard,
		Action:         func(context.Context, *cli.Command) error { return nil },
		ExitErrHandler: func(context.Context, *cli.Command, error) {},
	}
	return cmd.Run(context.Background(), append([]string{"revq-api"}, args...))
}

func TestFlags(t *testing.T) {
	t.Setenv("REVQ_MAX_TEXT", "100")
	t.Setenv("REVQ_MAX_BATCH", "200")
	t.Setenv("REVQ_IDLE_TIMEOUT", "5s")
	c := DefaultConfig()
	err := run(&c, "--max-batch=300", "--max-body-bytes=1048576", "--max-in-flight", "7", "--max-connections=8",
		"--read-timeout=1s", "--write-timeout=2s", "--max-header=9000",
		"--allow-origin=https://app.example", "--allow-host=a", "--allow-host", "b", "--trusted-proxy=10.0.0.1", "--unlimited-address=10.0.0.0/8", "--address-connections=9", "--address-requests=10", "--max-requests=11")
	want := Config{
		front.Config{
			MaxHeader: 9000, Pages: front.Pages{AllowOrigins: []string{"https://app.example"}, AllowHosts: []string{"a", "b"}}, Tokens: c.Tokens,
			Limits: front.Limits{
				TrustedProxies: []string{"10.0.0.1"}, Unlimited: []string{"10.0.0.0/8"},
				AddressConnections: 9, AddressRequests: 10, MaxRequests: 11,
			},
		},
		100, 300, 1 << 20, 7, 8, time.Second, 2 * time.Second, 5 * time.Second,
	}
	if err != nil || !reflect.DeepEqual(c, want) {
		t.Errorf("%+v, %v; want %+v", c, err, want)
	}
}

func TestFlagsKeepDefaults(t *testing.T) {
	t.Parallel()
	c, want := DefaultConfig(), DefaultConfig()
	want.Tokens = c.Tokens
	if err := run(&c); err != nil || c.Tokens.Enabled() || fmt.Sprint(c) != fmt.Sprint(want) {
		t.Errorf("%+v, %v", c, err)
	}
}
