package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/command"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/setting"
	"github.com/revq/revq/internal/visible"
	"github.com/revq/revq/internal/wire"
)

func setup() *cli.Command {
	broker := rabbit.DefaultConfig("revq setup")
	return &cli.Command{
		Name:  "setup",
		Usage: "declare the exchange and the queues at the broker",
		Description: `The daemons declare the same by themselves, with the default sizes, if their
users have the permissions. Run this first for other sizes, or if the daemons'
users have narrow permissions. It needs a user who may configure, write and read
everything that is named revq or begins with revq. and a name.

An exchange or a queue that exists is not changed. If it differs from what the
flags ask for, revq prints how to keep or to change it, and ends with status 1.
With --queue it looks only at that queue.

In a cluster, give the URLs of all nodes: revq declares nothing while fewer of
them answer than --replicas asks for, and says if fewer keep the queues, and how
to add them.
With one URL it cannot see that.

EXAMPLES:
   revq setup
   revq setup --queue thumbnails --max-tasks 10000
   revq setup --max-tasks 100000 --results-max-age 7D`,
		Flags: command.Flags(slices.Concat(broker.Settings(), broker.Topology.Settings(), setting.In("sizes",
			broker.Topology.QueueSetting("declare the `QUEUE` of tasks with this name; --max-tasks and --delivery-limit are its sizes then")))),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := command.NoArguments(cmd); err != nil {
				return err
			}
			if err := errors.Join(broker.Check(), broker.Topology.Check()); err != nil {
				return command.UsageError(err)
			}
			stderr := cmd.Root().ErrWriter
			created, err := rabbit.Setup(ctx, broker)
			for _, o := range created {
				note(stderr, "created %s", o)
			}
			vhost, user := broker.Login()
			var differences rabbit.Differences
			switch {
			case errors.As(err, &differences):
				for _, d := range differences {
					explain(stderr, d, broker.Topology.Queue, vhost)
				}
				return fmt.Errorf("not changed, since they exist and differ from what the flags ask for: %s", names(differences))
			case errors.Is(err, rabbit.ErrForbidden):
				return fmt.Errorf("%w\nset up as another user, or give %s the permissions:\n  rabbitmqctl -p %s set_permissions %s '^revq' '^revq' '^revq'",
					err, user, shellQuote(vhost), shellQuote(user))
			case err != nil:
				return err
			case len(created) == 0:
				note(stderr, "everything exists already, as the flags ask for")
			default:
				note(stderr, "the broker has all that revq needs")
			}
			if len(broker.URLs) == 1 && cmd.IsSet("replicas") && broker.Topology.Replicas > 1 {
				note(stderr, "only one node was asked: give the URLs of all nodes to learn whether %d of them keep the queues", broker.Topology.Replicas)
			}
			if len(broker.URLs) > 1 {
				replicas, err := rabbit.LookForReplicas(ctx, broker)
				explainReplicas(stderr, replicas, broker.Topology.Replicas, vhost)
				if err != nil { // which is no reason to fail: the broker has what it needs
					note(stderr, "not all nodes could be asked whether they keep the queues: %v", err)
				}
			}
			return nil
		},
	}
}

// explainReplicas prints what to do if the queues have fewer replicas than asked
// for: they were declared with fewer, or before a node joined.
func explainReplicas(w io.Writer, r rabbit.Replicas, want int64, vhost string) {
	missing := min(int(want), len(r.With)+len(r.Without)) - len(r.With)
	if missing <= 0 {
		return
	}
	fmt.Fprintf(w, "revq: only %d of the nodes keep the queues, not %d: the loss of one of them may stop everything\n"+
		"  These do not: %s. On %d of them, whose name at RabbitMQ is NODE (rabbitmqctl cluster_status), run:\n",
		len(r.With), len(r.With)+missing, strings.Join(r.Without, ", "), missing)
	p := shellQuote(vhost)
	fmt.Fprintf(w, "    rabbitmq-queues grow NODE all --vhost-pattern %s --queue-pattern '^revq\\.'\n    rabbitmq-streams add_replica -p %s %s NODE\n"+
		"  (where rabbitmq-streams is not found, as on Debian 12 and 13: ln -s /usr/lib/rabbitmq/bin/rabbitmq-script-wrapper /usr/local/sbin/rabbitmq-streams)\n",
		shellQuote("^"+vhost+"$"), p, rabbit.ResultsQueue)
}

func names(differences rabbit.Differences) string {
	var names []string
	for _, d := range differences {
		names = append(names, d.Name)
	}
	return strings.Join(names, ", ")
}

// explain prints how an object differs from what the flags ask for, and the
// commands that keep or change it.
func explain(w io.Writer, d rabbit.Difference, queue, vhost string) {
	fmt.Fprintf(w, "revq: the %s %s exists, but differs:\n", d.Kind, d.Name)
	var keep []string
	if queue != wire.DefaultQueue {
		keep = append(keep, "--queue "+queue)
	}
	for _, a := range d.Arguments {
		fmt.Fprintf(w, "    %s is %s, the flags ask for %s\n", a.Name, visible.Line(orNone(a.Is)), orNone(a.Asked))
		keep = append(keep, fmt.Sprintf("--%s %s", a.Flag, shellQuote(visible.Line(a.Keep()))))
	}
	if d.Sizes() {
		fmt.Fprintf(w, "  To keep it as it is:\n    revq setup %s\n", strings.Join(keep, " "))
	}
	p := "rabbitmqctl -p " + shellQuote(vhost)
	remove := p + " delete_queue " + d.Name
	var first string
	var commands []string
	switch d.Name {
	case rabbit.TasksQueueOf(queue):
		first = "stop the API, wait until the queue is empty, delete it"
		commands = []string{p + " list_queues name messages", remove}
	case rabbit.DeadQueue:
		first = "requeue the dead letters (or purge them), delete it"
		commands = []string{"revq dead requeue --all", remove}
	case rabbit.ResultsQueue:
		first = "delete it, with all results in it"
		commands = []string{remove}
	case rabbit.Exchange, rabbit.MarksExchange, rabbit.WaitExchange, rabbit.DueExchange, rabbit.OrphanExchange:
		first = "make sure that nothing else uses it, delete it"
		commands = []string{p + " eval " + shellQuote(fmt.Sprintf(
			`rabbit_exchange:delete(rabbit_misc:r(<<"%s">>, exchange, <<"%s">>), false, <<"revq">>).`, vhost, d.Name))}
	default:
		first = "make sure that nothing else uses it, delete it"
		commands = []string{remove}
	}
	fmt.Fprintf(w, "  To change it: %s, and set up again:\n    %s\n", first, strings.Join(commands, "\n    "))
}

func orNone(value string) string {
	if value == "" {
		return "not set"
	}
	return value
}

// shellQuote returns s quoted so that a shell takes it for one word.
func shellQuote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-", r)
	}
	if s != "" && !slices.ContainsFunc([]rune(s), func(r rune) bool { return !plain(r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
