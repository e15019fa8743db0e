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
	"github.com/revq/revq/internal/bench/load"
	"github.com/revq/revq/internal/command"
)

const (
	maxWorkers     = 64
	maxConcurrency = 10_000    // the worker's own limit
	maxQueued      = 1_000_000 // the queue has room for as many again

	// allDuration is the duration of a measurement with --all, so that all of
	// them end within five minutes.
	allDuration = 5 * time.Second
)

// A benchRun is `revq bench` with what its flags set.
type benchRun struct {
	*bench.Bench
	asJSON bool
}

func benchmark() *cli.Command {
	b := &benchRun{Bench: &bench.Bench{Config: bench.DefaultConfig()}}
	all := false
	return &cli.Command{
		Name:  "bench",
		Usage: "measure revq, and the broker alone for comparison",
		Description: `Puts load on a running revq, or with --up on one that it starts on this machine,
and prints tables of what was measured. Only what the broker has confirmed
counts. Texts that are queued for a measurement stay in the queue of a running
revq, and its workers handle them.

Targets must be on this machine, unless --target-is-mine says that they are
yours to load. Ctrl-C ends the measurement, and what was measured until then is
printed.

EXAMPLES:
   revq bench --up --all
   revq bench ingest --duration 30s
   revq bench --up --json worker > worker.json`,
		HideHelpCommand: true,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "up", Usage: "start a private broker and daemons, and measure those", Destination: &b.Up},
			&cli.BoolFlag{Name: "json", Usage: "print a JSON object instead of tables", Destination: &b.asJSON},
			&cli.BoolFlag{Name: "target-is-mine", Usage: "allow targets on other machines", Destination: &b.Foreign},
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
		Commands: []*cli.Command{b.ingest(), b.raw(), b.pipeline(), b.worker(), b.start(), b.grow(), b.fanout()},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if cmd.Args().Present() {
				return command.Usagef("there is nothing called %q to measure: see the commands", cmd.Args().First())
			}
			if all {
				if !cmd.IsSet("duration") {
					b.Duration = allDuration
				}
				return b.run(ctx, cmd, b.All)
			}
			return cli.ShowSubcommandHelp(cmd)
		},
	}
}

func (b *benchRun) ingest() *cli.Command {
	return &cli.Command{
		Name:  "ingest",
		Usage: "post texts and count those that are accepted",
		Description: `Posts texts over kept-alive connections. Each connection posts its next text as
soon as it is answered. If the broker's URL is known, revq first measures
publishing to a queue of its own, without the API.

EXAMPLES:
   revq bench ingest
   revq bench --up ingest --kind ndjson --batch 1000
   revq bench ingest --target http://localhost:8081 --target http://localhost:8082`,
		Flags: []cli.Flag{
			b.targets(),
			amount("connections", fmt.Sprintf("`N` connections at once (default: %d, or %d for ndjson)", bench.SingleConnections, bench.BatchConnections), &b.Connections, 1, bench.MaxConnections),
			&cli.StringFlag{
				Name:  "kind",
				Usage: "how texts are posted: " + kinds(),
				Value: string(b.Kind),
				Validator: func(kind string) error {
					if !slices.Contains(load.Kinds, load.Kind(kind)) {
						return fmt.Errorf("%q is not known: give one of %s", kind, kinds())
					}
					b.Kind = load.Kind(kind)
					return nil
				},
			},
			amount("batch", "`N` texts in a request, for ndjson", &b.Batch, 1, bench.MaxBatch),
			b.textBytes("`BYTES` in a text"),
		},
		Action: b.action(b.Ingest),
	}
}

func (b *benchRun) raw() *cli.Command {
	return &cli.Command{
		Name:  "raw",
		Usage: "measure what the broker does without revq",
		Description: `Publishes to a quorum queue and to a stream, and consumes from them, with
amqp091-go alone. revq's own figures are compared with these. The two queues are
created for the measurement and deleted after it.

EXAMPLES:
   revq bench --up raw
   revq bench --amqp-url amqp://guest:guest@localhost raw --text-bytes 1000`,
		Flags: []cli.Flag{
			amount("in-flight", "`N` messages in flight (published, not confirmed) at once", &b.RawInFlight, 1, bench.MaxRawInFlight),
			b.textBytes("`BYTES` in a message"),
		},
		Action: b.action(b.Raw),
	}
}

func (b *benchRun) pipeline() *cli.Command {
	asMany := false
	return &cli.Command{
		Name:  "pipeline",
		Usage: "time texts from the POST to a listener's frame",
		Description: `Posts texts that are due at a constant rate. Latencies are counted from when a
text is due, whether or not the system keeps up. With --max, as many texts are
posted as the system accepts. With --up, the workers do not pause.

EXAMPLES:
   revq bench pipeline --rate 1000 --duration 30s
   revq bench --up pipeline --max --workers 4`,
		Flags: []cli.Flag{
			b.targets(),
			&cli.StringFlag{Name: "socket-url", Usage: "`URL` to listen at", Sources: cli.EnvVars("REVQ_SOCKET_URL"), Value: b.Socket, Destination: &b.Socket},
			&cli.FloatFlag{Name: "rate", Usage: "`N` texts a second", Value: b.Rate, Destination: &b.Rate, Validator: rate},
			&cli.BoolFlag{Name: "max", Usage: "post as many as possible", Destination: &asMany},
			amount("in-flight", "at most `N` texts between their POST and their frame, for --max", &b.InFlight, 1, bench.MaxInFlight),
			amount("connections", "`N` connections that post", &b.Posters, 1, bench.MaxConnections),
			amount("text-bytes", "`BYTES` in a text", &b.PipelineBytes, bench.MinPipelineBytes+1, bench.MaxTextBytes),
			b.workers("run `N` workers, with --up"),
			b.concurrency("`N` tasks at once in each worker, with --up"),
		},
		Action: b.action(func(ctx context.Context) error {
			if asMany {
				b.Rate = 0
			}
			return b.Pipeline(ctx)
		}),
	}
}

func (b *benchRun) worker() *cli.Command {
	return &cli.Command{
		Name:  "worker",
		Usage: "measure how fast workers empty a queue (with --up)",
		Description: `Queues tasks while no worker runs. Then it starts workers that do not pause, and
counts results at a listener.

EXAMPLES:
   revq bench --up worker
   revq bench --up worker --exec ./classify.py --persistent --concurrency 16
   revq bench --up worker --workers 4 --tasks 500000`,
		Flags: []cli.Flag{
			b.tasks("queue `N` tasks"),
			b.workers("run `N` workers"),
			b.concurrency("`N` tasks at once in each worker"),
			b.textBytes("`BYTES` in a text"),
			&cli.StringFlag{Name: "exec", Usage: "have `PROGRAM` handle the tasks, not the built-in handler", Destination: &b.Exec},
			&cli.BoolFlag{Name: "persistent", Usage: "PROGRAM is no filter, but speaks the handlers' protocol", Destination: &b.Persistent},
		},
		Action: b.action(b.Worker),
	}
}

func (b *benchRun) start() *cli.Command {
	return &cli.Command{
		Name:  "start",
		Usage: "time the start of each daemon (with --up)",
		Description: `Starts each daemon several times, from its fork until it is ready, while the
broker is up.

EXAMPLES:
   revq bench --up start`,
		Action: b.action(b.Start),
	}
}

func (b *benchRun) grow() *cli.Command {
	return &cli.Command{
		Name:      "grow",
		Usage:     "measure how costs grow (with --up)",
		ArgsUsage: "[OVER ...]",
		Description: "Repeats a measurement with more and more of something: " + strings.Join(bench.Growths, ", ") + `.
Without arguments, it does so for all of these. A queue of a million tasks takes
minutes.

EXAMPLES:
   revq bench --up grow connections sizes
   revq bench --up grow --max-depth 10000 depth`,
		Flags: []cli.Flag{
			amount("max-depth", "have at most `N` tasks in the queue", &b.MaxDepth, 0, maxQueued),
			b.tasks("queue `N` tasks for workers"),
			b.concurrency("`N` tasks at once in each worker"),
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			over := cmd.Args().Slice()
			if err := bench.CheckGrowths(over); err != nil {
				return command.UsageError(err)
			}
			if len(over) == 0 {
				over = bench.Growths
			}
			return b.run(ctx, cmd, func(ctx context.Context) error { return b.Grow(ctx, over) })
		},
	}
}

func (b *benchRun) fanout() *cli.Command {
	return &cli.Command{
		Name:  "fanout",
		Usage: "connect many listeners and measure how results reach them",
		Description: `Publishes results as workers do, without the workers: first a few, to measure how
long they take to reach all listeners; then as many as the slowest listener
receives. It needs the broker's URL, or --up.

The listeners can be those of another websocket server: give its URL, --first if
listeners have to send something first, and --publish-url if messages are posted
to a URL. Only messages that hold one ~ are counted.

EXAMPLES:
   revq bench --up fanout --listeners 10000
   revq bench fanout --target ws://localhost:9000/ws --publish-url http://localhost:9000/pub`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "target", Usage: "`URL` to listen at", Sources: cli.EnvVars("REVQ_SOCKET_URL"), Value: b.Socket, Destination: &b.Socket},
			amount("listeners", "`N` listeners", &b.Listeners, 1, bench.MaxListeners),
			amount("text-bytes", "`BYTES` in a message", &b.FanoutBytes, 1, bench.MaxTextBytes),
			amount("window", "at most `N` messages that not all listeners have", &b.Window, 1, bench.MaxWindow),
			&cli.FloatFlag{
				Name:        "rate",
				Usage:       "`N` messages a second while there are few",
				Value:       b.LightRate,
				Destination: &b.LightRate,
				Validator:   rate,
			},
			within("settle", "`TIME` until the server's memory is measured, with all listeners connected", &b.Settle, 0, bench.MaxDuration),
			amount("rounds", "let all listeners leave and reconnect `N` times, at the end", &b.Rounds, 1, bench.MaxRounds),
			&cli.StringFlag{Name: "first", Usage: "`TEXT` that each listener sends once it is connected", Destination: &b.First},
			&cli.StringFlag{Name: "publish-url", Usage: "`URL` to post messages to, of another server", Destination: &b.PublishURL},
			&cli.BoolFlag{Name: "listen-only", Usage: "publish nothing: somebody else publishes the messages", Destination: &b.ListenOnly},
		},
		Action: b.action(b.Fanout),
	}
}

// The flags that several commands have.

func (b *benchRun) targets() cli.Flag {
	return &cli.StringSliceFlag{Name: "target", Usage: "`URL` of the API; repeat it for several sites", Sources: cli.EnvVars("REVQ_API_URL"), Value: b.API, Destination: &b.API}
}

func (b *benchRun) textBytes(usage string) cli.Flag {
	return amount("text-bytes", usage, &b.TextBytes, 1, bench.MaxTextBytes)
}

func (b *benchRun) tasks(usage string) cli.Flag {
	return amount("tasks", usage, &b.Tasks, 1000, maxQueued)
}

func (b *benchRun) workers(usage string) cli.Flag {
	return amount("workers", usage, &b.Workers, 1, maxWorkers)
}

func (b *benchRun) concurrency(usage string) cli.Flag {
	return amount("concurrency", usage, &b.Concurrency, 1, maxConcurrency)
}

// action returns the action of a command that measures something and takes no
// arguments.
func (b *benchRun) action(do func(context.Context) error) cli.ActionFunc {
	return func(ctx context.Context, cmd *cli.Command) error {
		if err := command.NoArguments(cmd); err != nil {
			return err
		}
		return b.run(ctx, cmd, do)
	}
}

// run measures and prints the report. After an error or Ctrl-C, the report has
// what was measured until then.
func (b *benchRun) run(ctx context.Context, cmd *cli.Command, do func(context.Context) error) (err error) {
	if !b.Up && slices.Contains([]string{"bench", "worker", "start", "grow"}, cmd.Name) {
		return command.Usagef("this needs a broker and daemons of its own: give --up")
	}
	if !b.Up && b.AMQP == "" && (cmd.Name == "raw" || cmd.Name == "fanout" && b.PublishURL == "" && !b.ListenOnly) {
		return command.Usagef("no broker is given: set --amqp-url, or --up for a private one")
	}
	progress := newProgress(cmd.Root().ErrWriter)
	b.Progress = func(what string, done float64) { progress.show("%3.0f%% %s", 100*done, what) }
	defer func() { err = errors.Join(err, b.Close()) }()
	if err = b.Open(ctx); err == nil {
		err = do(ctx)
	}
	progress.clear()
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
	if b.asJSON {
		out := json.NewEncoder(cmd.Root().Writer)
		out.SetIndent("", "  ")
		return errors.Join(err, out.Encode(&b.Report))
	}
	return errors.Join(err, b.Report.Write(cmd.Root().Writer))
}

func kinds() string {
	var all []string
	for _, k := range load.Kinds {
		all = append(all, string(k))
	}
	return strings.Join(all, ", ")
}

// amount returns a flag for a number from minimum to maximum.
func amount[T int | int64](name, usage string, destination *T, minimum, maximum int64) cli.Flag {
	value := int64(*destination)
	check := command.Within(minimum, maximum)
	return &cli.Int64Flag{
		Name:        name,
		Usage:       usage,
		Value:       value,
		HideDefault: value == 0,
		Validator: func(n int64) error {
			if err := check(n); err != nil {
				return err
			}
			*destination = T(n)
			return nil
		},
	}
}

// within returns a flag for a time from minimum to maximum.
func within(name, usage string, destination *time.Duration, minimum, maximum time.Duration) cli.Flag {
	return &cli.DurationFlag{
		Name:        name,
		Usage:       usage,
		Value:       *destination,
		Destination: destination,
		Validator:   command.Within(minimum, maximum),
	}
}

// rate checks a number of texts or messages in a second.
func rate(perSecond float64) error {
	if !(perSecond > 0 && perSecond <= bench.MaxRate) { // false for NaN, too
		return fmt.Errorf("must be more than 0 and at most %d a second, not %v", bench.MaxRate, perSecond)
	}
	return nil
}
