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
		all    bool // bench --all
		most   bool // pipeline --max
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
			&cli.BoolFlag{Name: "all", Usage: "measure everything, with --up, in less than five minutes", Local: true, Destination: &all},
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
				Name:  "pipeline",
				Usage: "time texts from the POST to a listener's frame",
				Description: `Texts are due at a constant rate, and latencies are counted from then, whether or
not the system keeps up. With --max, as many are posted as the system takes. With
--up, the workers do not pause.`,
				Flags: []cli.Flag{
					&cli.StringSliceFlag{Name: "target", Usage: "`URL` of the API; repeat it for several sites", Sources: cli.EnvVars("REVQ_API_URL"), Value: b.API, Destination: &b.API},
					&cli.StringFlag{Name: "socket-url", Usage: "`URL` to listen at", Sources: cli.EnvVars("REVQ_SOCKET_URL"), Value: b.Socket, Destination: &b.Socket},
					&cli.FloatFlag{Name: "rate", Usage: "`N` texts a second", Value: b.Rate, Destination: &b.Rate, Validator: rate},
					&cli.BoolFlag{Name: "max", Usage: "post as many as possible", Destination: &most},
					amount("in-flight", "`N` texts on their way at once, for --max", &b.InFlight, 1, bench.MaxInFlight),
					amount("connections", "`N` connections that post", &b.Posters, 1, bench.MaxConnections),
					amount("text-bytes", "`BYTES` in a text", &b.PipelineBytes, bench.MinPipelineBytes+1, bench.MaxTextBytes),
					amount("workers", "run `N` workers, with --up", &b.Workers, 1, maxWorkers),
					amount("concurrency", "`N` tasks in hand at once, of each worker, with --up", &b.Concurrency, 1, maxConcurrency),
				},
				Action: measure(func(ctx context.Context) error {
					if most {
						b.Rate = 0
					}
					return b.Pipeline(ctx)
				}),
			},
			{
				Name:  "worker",
				Usage: "see how fast workers empty a queue (with --up)",
				Description: `Tasks are queued while no worker runs. Then workers that do not pause are started,
and results are counted at a listener.`,
				Flags: []cli.Flag{
					amount("tasks", "queue `N` tasks", &b.Tasks, 1000, maxQueued),
					amount("workers", "run `N` workers", &b.Workers, 1, maxWorkers),
					amount("concurrency", "`N` tasks in hand at once, of each worker", &b.Concurrency, 1, maxConcurrency),
					amount("text-bytes", "`BYTES` in a text", &b.TextBytes, 1, bench.MaxTextBytes),
				},
				Action: measure(b.Worker),
			},
			{
				Name:   "start",
				Usage:  "time the start of each daemon (with --up)",
				Action: measure(b.Start),
			},
			{
				Name:      "grow",
				Usage:     "see how costs grow (with --up)",
				ArgsUsage: "[OVER ...]",
				Description: "Measures over and over with more of something: " + strings.Join(bench.Growths, ", ") + `;
all of them unless some are given. A queue of a million tasks takes a while.`,
				Flags: []cli.Flag{
					amount("max-depth", "have `N` tasks in the queue at most", &b.MaxDepth, 0, maxQueued),
					amount("tasks", "queue `N` tasks for workers", &b.Tasks, 1000, maxQueued),
					amount("concurrency", "`N` tasks in hand at once, of each worker", &b.Concurrency, 1, maxConcurrency),
				},
				Action: func(ctx context.Context, cmd *cli.Command) error {
					over := cmd.Args().Slice()
					if err := bench.CheckGrowths(over); err != nil {
						return command.UsageError(err)
					}
					if len(over) == 0 {
						over = bench.Growths
					}
					return runBench(ctx, cmd, b, asJSON, func(ctx context.Context) error { return b.Grow(ctx, over) })
				},
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
			if all {
				if !cmd.IsSet("duration") {
					b.Duration = allDuration
				}
				return runBench(ctx, cmd, b, asJSON, b.All)
			}
			return cli.ShowSubcommandHelp(cmd)
		},
	}
}

// runBench measures and prints the report, also of what was measured before an error or Ctrl-C.
func runBench(ctx context.Context, cmd *cli.Command, b *bench.Bench, asJSON bool, do func(context.Context) error) (err error) {
	if !b.Up && slices.Contains([]string{"bench", "worker", "start", "grow"}, cmd.Name) {
		return command.Usagef("this needs a broker and daemons of its own: give --up")
	}
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

const (
	maxWorkers     = 64
	maxConcurrency = 10_000    // what a worker takes
	maxQueued      = 1_000_000 // the queue has room for as many again

	// allDuration is how long a measurement takes with --all, so that all end in five minutes.
	allDuration = 5 * time.Second
)

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
