package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/admin"
	"github.com/revq/revq/internal/command"
	"github.com/revq/revq/internal/status"
	"github.com/revq/revq/internal/visible"
)

const (
	// statusPatience is how long a daemon may take to say its status. It waits
	// for the broker for up to a second itself.
	statusPatience = 2500 * time.Millisecond

	// startPatience is how long a daemon may take to connect to the broker, and
	// startEvery how often it is asked meanwhile.
	startPatience = 1500 * time.Millisecond
	startEvery    = 100 * time.Millisecond

	// watchEvery is the pause between two looks of --watch.
	watchEvery = 2 * time.Second
)

func statusCommand() *cli.Command {
	var asJSON, watch bool
	var sockets []string
	return &cli.Command{
		Name:  "status",
		Usage: "say whether revq does well on this host, and why not",
		Description: `The first line is the verdict, the last one the next step. The exit status is 0 if
all is well, 1 if not, and 2 if that cannot be told. It reads the admin sockets
in /run/revq and those of revq up.

EXAMPLES:
   revq status
   revq status --watch
   revq status --json --admin /run/revq/worker.admin`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "print JSON", Destination: &asJSON},
			&cli.BoolFlag{Name: "watch", Usage: "look again every 2 s, until Ctrl-C", Destination: &watch},
			&cli.StringSliceFlag{Name: "admin", Usage: "look at the admin socket `PATH` instead (repeatable)", Destination: &sockets},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := command.NoArguments(cmd); err != nil {
				return err
			}
			for {
				daemons := readDaemons(ctx, sockets)
				verdict := status.Judge(daemons)
				if err := printStatus(cmd.Root().Writer, verdict, daemons, asJSON, watch); err != nil {
					return err
				}
				if !watch {
					return command.Exit(int(verdict.Level))
				}
				if !sleep(ctx, watchEvery) {
					return command.Exit(int(verdict.Level))
				}
			}
		},
	}
}

// readDaemons asks the daemons at the sockets, or at all sockets that are where
// units and revq up have them, for their status, all at once.
func readDaemons(ctx context.Context, sockets []string) []status.Daemon {
	if len(sockets) == 0 {
		sockets, _ = admin.Find(admin.DefaultSockets()) // the patterns are right
	}
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	daemons := make([]status.Daemon, len(sockets))
	var asking sync.WaitGroup
	for i, socket := range sockets {
		asking.Go(func() {
			daemons[i].Socket = socket
			var err error
			daemons[i].Status, err = admin.Read(ctx, socket)
			for err == nil && starts(daemons[i].Status) && sleep(ctx, startEvery) {
				daemons[i].Status, err = admin.Read(ctx, socket)
			}
			switch {
			case errors.Is(err, context.DeadlineExceeded):
				daemons[i].Error = fmt.Sprintf("nothing came within %v", statusPatience)
			case err != nil:
				daemons[i].Error = err.Error()
			}
		})
	}
	asking.Wait()
	return daemons
}

// starts reports whether a daemon has begun so recently that it is no news that it
// has no broker yet: looking at a site may have started it.
func starts(s admin.Status) bool {
	return s.State == admin.Waiting && time.Since(s.Started) < startPatience
}

// sleep reports whether ctx lasts for d.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func printStatus(out io.Writer, v status.Verdict, daemons []status.Daemon, asJSON, watch bool) error {
	if asJSON {
		return json.NewEncoder(out).Encode(struct {
			status.Verdict
			Daemons []status.Daemon `json:"daemons"`
		}{v, daemons})
	}
	if watch && isTerminal(out) {
		fmt.Fprint(out, "\x1b[H\x1b[2J") // clear the screen
	}
	for i, cause := range v.Causes {
		if i == 0 {
			cause = v.Level.String() + ": " + cause
		}
		fmt.Fprintln(out, visible.Line(cause))
	}
	fmt.Fprintln(out)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	queues := make(map[string]admin.Queue)
	for _, d := range daemons {
		if d.Error != "" {
			continue
		}
		fmt.Fprintf(table, "%s\t%d\t%s\t%s\t%s\n", d.Status.Daemon, d.Status.Pid, d.Status.State, visible.Line(d.Status.Load), d.Socket)
		for _, q := range d.Status.Queues {
			queues[q.Name] = q
		}
	}
	for _, name := range slices.Sorted(maps.Keys(queues)) {
		fmt.Fprintf(table, "%s\t\t\t%d waiting; %d consumers\n", name, queues[name].Tasks, queues[name].Consumers)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "\nnext: %s\n", v.Next)
	return err
}
