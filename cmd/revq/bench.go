//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/bench"
	"github.com/revq/revq/internal/command"
)

func benchmark() *cli.Command {
	var (
		b      = &bench.Bench{Config: bench.DefaultConfig()}
		asJSON bool
	)
	// measure makes a command's action of what it measures.
	measure := func(do func(context.Context) error) cli.ActionFunc {
		return func(ctx context.Context, cmd *cli.Command) error {
			if err := command.NoArguments(cmd); err != nil {
				return err
			}
			return runBench(ctx, cmd, b, asJSON, do)
		}
	}
	return &cli.Command{
		Name:  "bench",
		Usage: "measure revq, and the broker alone for comparison",
		Description: `Loads a running revq, or with --up one that is started for it on this machine,
and prints tables of what was measured. Only what the broker has confirmed
counts. Texts that are queued for a measurement stay in the queue of a running
revq, and its workers handle them.

Targets must be on this machine, unless --target-is-mine says that they are
yours to load. Ctrl-C ends it, and prints what was measured so far.`,
		HideHelpCommand: true,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "up", Usage: "start a private broker and daemons, and load those", Destination: &b.Up},
			&cli.BoolFlag{Name: "json", Usage: "print a JSON object instead of tables", Destination: &asJSON},
			&cli.BoolFlag{Name: "target-is-mine", Usage: "load targets on other machines, too", Destination: &b.Foreign},
			within("duration", "`TIME` of each measurement", &b.Duration, 100*time.Millisecond, bench.MaxDuration),
			within("warmup", "`TIME` before each measurement that does not count", &b.Warmup, 0, bench.MaxDuration),
			amount("count", "end a measurement after `N` texts, whatever the time", &b.Count, 1, bench.MaxCount),
			&cli.StringFlag{
				Name:        "amqp-url",
				Usage:       "`URL` of the broker of a running revq, amqp://USER:PASSWORD@HOST:PORT/VHOST",
				Sources:     cli.EnvVars("REVQ_AMQP_URL"),
				Destination: &b.AMQP,
			},
		},
		Commands: []*cli.Command{
			{
				Name:  "ingest",
				Usage: "post texts and count those that are accepted",
				Description: `Connections that are kept alive post texts, each the next one as soon as it is
answered. If the broker's URL is known, publishing to it directly is measured
before, on a queue of its own.`,
				Flags: []cli.Flag{
					&cli.StringSliceFlag{Name: "target", Usage: "`URL` of the API; repeat it for several sites", Sources: cli.EnvVars("REVQ_API_URL"), Value: b.API, Destination: &b.API},
					amount("connections", fmt.Sprintf("`N` connections at once (default: %d, or %d for ndjson)", bench.SingleConnections, bench.BatchConnections), &b.Connections, 1, bench.MaxConnections),
					&cli.StringFlag{
						Name:  "kind",
						Usage: "how texts are posted: " + kinds(),
						Value: string(b.Kind),
						Validator: func(kind string) error {
							if !slices.Contains(bench.Kinds, bench.Kind(kind)) {
								return fmt.Errorf("%q is not known: give one of %s", kind, kinds())
							}
							b.Kind = bench.Kind(kind)
							return nil
						},
					},
					amount("batch", "`N` texts in a request, for ndjson", &b.Batch, 1, bench.MaxBatch),
					amount("text-bytes", "`BYTES` in a text", &b.TextBytes, 1, bench.MaxTextBytes),
				},
				Action: measure(b.Ingest),
			},
			{
				Name:  "raw",
				Usage: "measure what the broker does without revq",
				Description: `Publishes to a quorum queue and to a stream with plain amqp091-go, and consumes
from them: what revq's own figures are to be compared with. The queues are made
for it, and deleted afterwards.`,
				Flags: []cli.Flag{
					amount("unsettled", "`N` messages under way at once", &b.Unsettled, 1, bench.MaxUnsettled),
					amount("text-bytes", "`BYTES` in a message", &b.TextBytes, 1, bench.MaxTextBytes),
				},
				Action: measure(b.Raw),
			},
			{
				Name:  "fanout",
				Usage: "connect many listeners and measure how results reach them",
				Description: `Publishes results as workers do, without the workers: few first, to see how long
they take to all listeners; then as many as the slowest listener gets. It needs
the broker's URL, or --up.

The listeners can be those of another websocket server: give its URL, --first if
listeners have to send something first, and --publish-url if messages come by a
POST there. A message to be counted holds one ~.`,
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "target", Usage: "`URL` to listen at", Sources: cli.EnvVars("REVQ_SOCKET_URL"), Value: b.Socket, Destination: &b.Socket},
					amount("listeners", "`N` listeners", &b.Listeners, 1, bench.MaxListeners),
					amount("text-bytes", "`BYTES` in a message", &b.FanoutBytes, 1, bench.MaxTextBytes),
					amount("window", "`N` messages on their way at once", &b.Window, 1, bench.MaxWindow),
					&cli.FloatFlag{
						Name:        "rate",
						Usage:       "`N` messages a second while there are few",
						Value:       b.LightRate,
						Destination: &b.LightRate,
						Validator:   rate,
					},
					within("settle", "`TIME` until the server's memory is looked at, with all listeners connected", &b.Settle, 0, bench.MaxDuration),
					amount("rounds", "all listeners leave and come again `N` times, at the end", &b.Rounds, 1, bench.MaxRounds),
					&cli.StringFlag{Name: "first", Usage: "`TEXT` that each listener sends once it is connected", Destination: &b.First},
					&cli.StringFlag{Name: "publish-url", Usage: "`URL` to post messages to, of another server", Destination: &b.PublishURL},
					&cli.BoolFlag{Name: "listen-only", Usage: "publish nothing: messages come by themselves", Destination: &b.ListenOnly},
				},
				Action: measure(b.Fanout),
			},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if cmd.Args().Present() {
				return command.Usagef("there is nothing called %q to measure: see the commands", cmd.Args().First())
			}
			return cli.ShowSubcommandHelp(cmd)
		},
	}
}

// runBench measures and prints the report, also of what was measured before an error or Ctrl-C.
func runBench(ctx context.Context, cmd *cli.Command, b *bench.Bench, asJSON bool, do func(context.Context) error) (err error) {
	if !b.Up && b.AMQP == "" && (cmd.Name == "raw" || cmd.Name == "fanout" && b.PublishURL == "" && !b.ListenOnly) {
		return command.Usagef("no broker is given: set --amqp-url, or --up for a private one")
	}
	progress := newBenchProgress(cmd.Root().ErrWriter)
	b.Progress = progress.show
	defer func() { err = errors.Join(err, b.Close()) }()
	if err = b.Open(ctx); err == nil {
		err = do(ctx)
	}
	progress.end()
	switch {
	case errors.Is(err, bench.ErrForeign), errors.Is(err, bench.ErrBadTarget):
		return command.UsageError(err)
	case ctx.Err() != nil && b.Report.Empty():
		return fmt.Errorf("%w: nothing was measured", errInterrupted)
	case ctx.Err() != nil:
		err = errInterrupted
	}
	b.Report.Interrupted = err != nil
	if b.Report.Empty() {
		return err
	}
	if asJSON {
		out := json.NewEncoder(cmd.Root().Writer)
		out.SetIndent("", "  ")
		return errors.Join(err, out.Encode(&b.Report))
	}
	return errors.Join(err, b.Report.Write(cmd.Root().Writer))
}

func kinds() string {
	var all []string
	for _, k := range bench.Kinds {
		all = append(all, string(k))
	}
	return strings.Join(all, ", ")
}

// amount is a flag that takes least to most.
func amount[T int | int64](name, usage string, destination *T, least, most int64) cli.Flag {
	value := int64(*destination)
	return &cli.Int64Flag{
		Name:        name,
		Usage:       usage,
		Value:       value,
		HideDefault: value == 0,
		Validator: func(n int64) error {
			if n < least || n > most {
				return fmt.Errorf("%d is not possible: give %d to %d", n, least, most)
			}
			*destination = T(n)
			return nil
		},
	}
}

func rate(perSecond float64) error {
	if !(perSecond > 0 && perSecond <= bench.MaxRate) { // also what is not a number
		return fmt.Errorf("%v a second are not possible: give more than 0, and at most %d", perSecond, bench.MaxRate)
	}
	return nil
}

// within is a flag that takes a time from least to most.
func within(name, usage string, destination *time.Duration, least, most time.Duration) cli.Flag {
	return &cli.DurationFlag{
		Name:        name,
		Usage:       usage,
		Value:       *destination,
		Destination: destination,
		Validator: func(d time.Duration) error {
			if d < least || d > most {
				return fmt.Errorf("%v is not possible: give %v to %v", d, least, most)
			}
			return nil
		},
	}
}
