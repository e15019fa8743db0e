package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/admin"
	"github.com/revq/revq/internal/command"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/status"
	"github.com/revq/revq/internal/visible"
	"github.com/revq/revq/internal/wire"
)

const (
	// watchEvery is the pause between two looks of --watch.
	watchEvery = 2 * time.Second

	// brokerPatience bounds the look at the broker with --amqp-url.
	brokerPatience = 2500 * time.Millisecond

	// maxDead is how many dead letters are looked through for a task.
	maxDead = 10_000
)

// A statusView is what revq status looks at, and how it prints that.
type statusView struct {
	asJSON, watch bool
	sockets       []string
	url           string
	broker        rabbit.Config
}

func statusCommand() *cli.Command {
	v := statusView{broker: rabbit.DefaultConfig("revq status")}
	return &cli.Command{
		Name:      "status",
		Usage:     "say whether revq does well on this host and why not, or where a task is",
		ArgsUsage: "[ID]",
		Description: `The first line is the verdict, the last one the next step. The exit status is 0 if
all is well, 1 if not, and 2 if that cannot be told. It reads the admin sockets
in /run/revq and those of revq up. With --amqp-url it also compares the objects
at the broker with those that revq setup would declare, as a user who may.

With the ID of a task it says where the task is: queued, running, waiting for a
retry, done, failed, dead or unknown, with status 0 unless it is unknown. For
dead letters it needs --amqp-url.

EXAMPLES:
   revq status
   revq status --watch
   revq status 0198b2c4-5d6e-7f80-91a2-b3c4d5e6f708
   revq status --json --admin /run/revq/worker.admin`,
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "print JSON", Destination: &v.asJSON},
			&cli.BoolFlag{Name: "watch", Usage: "look again every 2 s, until Ctrl-C", Destination: &v.watch},
			&cli.StringSliceFlag{Name: "admin", Usage: "look at the admin socket `PATH` instead (repeatable)", Destination: &v.sockets},
			&cli.StringFlag{Name: "amqp-url", Usage: "look at the broker with this `URL`, too", Destination: &v.url},
		}, command.Flags(v.broker.Topology.Settings())...),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if cmd.Args().Len() > 1 {
				return command.Usagef("revq status takes one ID, not %d", cmd.Args().Len())
			}
			if v.url != "" {
				v.broker.URLs = []string{v.url}
				if err := checkBroker(&v.broker); err != nil {
					return err
				}
			}
			look := v.host
			if id := cmd.Args().First(); id != "" {
				if err := wire.CheckID(id); err != nil {
					return command.UsageError(err)
				}
				look = func(ctx context.Context, out io.Writer) (status.Level, error) { return v.task(ctx, out, id) }
			}
			for {
				level, err := look(ctx, cmd.Root().Writer)
				if err != nil {
					return err
				}
				if !v.watch {
					return command.Exit(int(level))
				}
				select {
				case <-time.After(watchEvery):
				case <-ctx.Done():
					return command.Exit(int(level))
				}
			}
		},
	}
}

// facts looks at the host and, with --amqp-url, at the broker.
func (v *statusView) facts(ctx context.Context) (status.Facts, []string) {
	sockets := v.sockets
	if len(sockets) == 0 {
		sockets, _ = admin.Find(admin.DefaultSockets()) // the patterns are right
	}
	objects := make(chan []string, 1)
	go func() { objects <- v.objects(ctx) }()
	f := status.Look(ctx, sockets, len(v.sockets) == 0)
	f.Objects = <-objects
	return f, sockets
}

// objects returns what is wrong with the objects at the broker, in sentences.
func (v *statusView) objects(ctx context.Context) (wrong []string) {
	if v.url == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, brokerPatience)
	defer cancel()
	missing, differences, err := rabbit.Compare(ctx, v.broker)
	if err != nil {
		return []string{fmt.Sprintf("the objects at the broker could not be compared: %v", err)}
	}
	if len(missing) > 0 {
		wrong = append(wrong, "missing at the broker: "+strings.Join(missing, ", "))
	}
	for _, d := range differences {
		for _, a := range d.Arguments {
			wrong = append(wrong, fmt.Sprintf("the %s %s has %s %s, not %s", d.Kind, d.Name, a.Name, orNone(a.Is), orNone(a.Asked)))
		}
	}
	return wrong
}

// host prints how revq does.
func (v *statusView) host(ctx context.Context, out io.Writer) (status.Level, error) {
	f, _ := v.facts(ctx)
	verdict := status.Judge(f)
	if v.asJSON {
		return verdict.Level, json.NewEncoder(out).Encode(struct {
			status.Verdict
			Daemons []status.Daemon `json:"daemons"`
			Units   []status.Unit   `json:"units,omitempty"`
		}{verdict, f.Daemons, f.Units})
	}
	v.clear(out)
	for i, cause := range verdict.Causes {
		if i == 0 {
			cause = verdict.Level.String() + ": " + cause
		}
		fmt.Fprintln(out, visible.Line(cause))
	}
	fmt.Fprintln(out)
	if err := printFigures(out, f); err != nil {
		return verdict.Level, err
	}
	_, err := fmt.Fprintf(out, "\nnext: %s\n", visible.Line(verdict.Next))
	return verdict.Level, err
}

// printFigures prints a line for each daemon and each queue.
func printFigures(out io.Writer, f status.Facts) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	queues := make(map[string]admin.Queue)
	later := -1 // tasks that wait for their delay or a retry; unknown
	for _, d := range f.Daemons {
		if d.Error != "" {
			continue
		}
		fmt.Fprintf(table, "%s\t%d\t%s\t%s\t%s\n", d.Status.Daemon, d.Status.Pid, d.Status.State, visible.Line(d.Status.Load), d.Socket)
		for _, q := range d.Status.Queues {
			queues[q.Name] = q
		}
	}
	for _, name := range slices.Sorted(maps.Keys(queues)) {
		switch q := queues[name]; {
		case q.Waiting:
			later = max(later, 0) + q.Tasks
		case q.Of == "":
			fmt.Fprintf(table, "%s\t\t\t%d dead letters\n", name, q.Tasks)
		default:
			fmt.Fprintf(table, "%s\t\t\t%d waiting; %d consumers\n", name, q.Tasks, q.Consumers)
		}
	}
	if later >= 0 {
		fmt.Fprintf(table, "revq.wait.*\t\t\t%d waiting for their delay or a retry\n", later)
	}
	return table.Flush()
}

// task prints where a task is. The level is Unknown if that is not known.
func (v *statusView) task(ctx context.Context, out io.Writer, id string) (status.Level, error) {
	f, sockets := v.facts(ctx)
	f.Objects = nil
	place := status.Find(id, f, status.Ask(ctx, sockets, id), v.deadLetter(ctx, id))
	level := status.Well
	if place.State == status.Missing {
		level = status.Unknown
	}
	if v.asJSON {
		return level, json.NewEncoder(out).Encode(place)
	}
	v.clear(out)
	_, err := fmt.Fprintf(out, "%s\n\nnext: %s\n", visible.Line(place.Text), visible.Line(place.Next))
	return level, err
}

var errLooked = errors.New("the task was found, or is not among the first dead letters")

// deadLetter returns the dead letter with an id, if it is one of the first
// maxDead and the broker answers soon.
func (v *statusView) deadLetter(ctx context.Context, id string) (found *status.DeadLetter) {
	if v.url == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, brokerPatience)
	defer cancel()
	seen := 0
	err := rabbit.DeadLetters(ctx, v.broker, func(l rabbit.DeadLetter) (rabbit.Fate, error) {
		if seen++; l.Task.ID == id {
			found = &status.DeadLetter{At: l.Died, Why: l.Error}
			if l.Error == "" {
				found.Why = l.Reason
			}
		}
		if found != nil || seen == maxDead {
			return rabbit.Keep, errLooked
		}
		return rabbit.Keep, nil
	})
	if err != nil && !errors.Is(err, errLooked) {
		return nil // what the daemons know has to do
	}
	return found
}

// clear clears a terminal between two looks.
func (v *statusView) clear(out io.Writer) {
	if v.watch && isTerminal(out) {
		fmt.Fprint(out, "\x1b[H\x1b[2J")
	}
}
