package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/command"
	"github.com/revq/revq/internal/rabbit"
)

func dead() *cli.Command {
	return &cli.Command{
		Name:  "dead",
		Usage: "see and mend tasks that were given up",
		Description: `A task whose attempts failed too often, or that is no proper task, goes to the
queue revq.dead. Once the cause is mended, requeue gives it back to the workers.`,
		Commands: []*cli.Command{deadList(), deadShow(), deadRequeue(), deadPurge()},
		Action: func(_ context.Context, cmd *cli.Command) error {
			if cmd.Args().Present() {
				return command.Usagef("there is no command %q of dead: use ls, show, requeue or purge", cmd.Args().First())
			}
			return cli.ShowSubcommandHelp(cmd)
		},
	}
}

// errEnoughLetters ends the listing.
var errEnoughLetters = errors.New("as many dead letters as wanted")

func deadList() *cli.Command {
	broker := rabbit.DefaultConfig("revq dead")
	var (
		asJSON bool
		limit  int
	)
	return &cli.Command{
		Name:  "ls",
		Usage: "list them, the oldest first",
		Flags: append(broker.Flags(),
			jsonFlag(&asJSON),
			&cli.IntFlag{Name: "limit", Usage: "at most `N`", Value: 1000, Destination: &limit},
		),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := cmp.Or(command.NoArguments(cmd), checkBroker(&broker)); err != nil {
				return err
			}
			out := newLetterWriter(cmd.Root().Writer, asJSON)
			n := 0
			err := rabbit.DeadLetters(ctx, broker, func(l rabbit.DeadLetter) (rabbit.Fate, error) {
				if n == limit {
					return rabbit.Keep, errEnoughLetters
				}
				n++
				return rabbit.Keep, out.write(l)
			})
			if err == nil && n == 0 {
				fmt.Fprintln(cmd.Root().ErrWriter, "revq: there are no dead letters")
			}
			if errors.Is(err, errEnoughLetters) {
				fmt.Fprintf(cmd.Root().ErrWriter, "revq: there are more than %d; see --limit\n", limit)
				err = nil
			}
			return errors.Join(err, out.flush())
		},
	}
}

func deadShow() *cli.Command {
	broker := rabbit.DefaultConfig("revq dead")
	var asJSON bool
	return &cli.Command{
		Name:      "show",
		Usage:     "show all of one, with its text",
		ArgsUsage: "ID ...",
		Flags:     append(broker.Flags(), jsonFlag(&asJSON)),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			stdout := cmd.Root().Writer
			return eachNamed(ctx, cmd, &broker, false, "shown", func(l rabbit.DeadLetter) (rabbit.Fate, error) {
				if asJSON {
					return rabbit.Keep, newLetterWriter(stdout, true).write(l)
				}
				_, err := fmt.Fprintf(stdout, "id:       %s\nreason:   %s\ndied:     %s, in %s, %d times\naccepted: %s\ntext:     %q\n",
					l.Task.ID, reason(l), when(l.Died), l.Queue, l.Count, when(l.Task.Accepted), l.Task.Text)
				return rabbit.Keep, err
			})
		},
	}
}

func deadRequeue() *cli.Command {
	broker := rabbit.DefaultConfig("revq dead")
	var all bool
	return &cli.Command{
		Name:      "requeue",
		Usage:     "give them back to the workers, under the same ids",
		ArgsUsage: "ID ...",
		Flags:     append(broker.Flags(), allFlag(&all)),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return eachNamed(ctx, cmd, &broker, all, "requeued", func(rabbit.DeadLetter) (rabbit.Fate, error) {
				return rabbit.Requeue, nil
			})
		},
	}
}

func deadPurge() *cli.Command {
	broker := rabbit.DefaultConfig("revq dead")
	var all, yes bool
	return &cli.Command{
		Name:      "purge",
		Usage:     "remove them for good",
		ArgsUsage: "ID ...",
		Flags: append(broker.Flags(),
			allFlag(&all),
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask", Destination: &yes},
		),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if !yes {
				if err := confirm(cmd, all); err != nil {
					return err
				}
			}
			return eachNamed(ctx, cmd, &broker, all, "purged", func(rabbit.DeadLetter) (rabbit.Fate, error) {
				return rabbit.Purge, nil
			})
		},
	}
}

// confirm asks before dead letters are purged.
func confirm(cmd *cli.Command, all bool) error {
	if !isTerminal(cmd.Root().Reader) {
		return command.Usagef("what is purged is gone for good: confirm with --yes")
	}
	what := "all dead letters"
	if !all {
		what = strings.Join(cmd.Args().Slice(), ", ")
	}
	fmt.Fprintf(cmd.Root().ErrWriter, "purge %s for good? [y/N] ", what)
	answer, err := bufio.NewReader(cmd.Root().Reader).ReadString('\n')
	if err != nil && err != io.EOF {
		return err
	}
	if !slices.Contains([]string{"y", "yes"}, strings.ToLower(strings.TrimSpace(answer))) {
		return errors.New("nothing was purged")
	}
	return nil
}

// eachNamed calls do with the dead letters that the arguments name, or with
// all, and reports what was done to how many.
func eachNamed(ctx context.Context, cmd *cli.Command, broker *rabbit.Config, all bool, done string, do func(rabbit.DeadLetter) (rabbit.Fate, error)) error {
	missing := make(map[string]bool)
	for _, id := range cmd.Args().Slice() {
		missing[id] = true
	}
	if all == (len(missing) > 0) {
		return command.Usagef("name the ids, or give --all where there is such a flag, but not both: `revq dead ls` lists them")
	}
	if err := checkBroker(broker); err != nil {
		return err
	}
	named := len(missing)
	n := 0
	err := rabbit.DeadLetters(ctx, *broker, func(l rabbit.DeadLetter) (rabbit.Fate, error) {
		if !all && !missing[l.Task.ID] {
			return rabbit.Keep, nil
		}
		fate, err := do(l)
		if err == nil {
			n++
			delete(missing, l.Task.ID)
		}
		return fate, err
	})
	fmt.Fprintf(cmd.Root().ErrWriter, "revq: %d %s\n", n, done)
	if err == nil && len(missing) > 0 {
		var ids []string
		for id := range missing {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		err = fmt.Errorf("%d of %d are not among the dead letters: %s", len(missing), named, strings.Join(ids, ", "))
	}
	return err
}

func jsonFlag(destination *bool) cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: "print JSON, one object a line", Destination: destination}
}

func allFlag(destination *bool) cli.Flag {
	return &cli.BoolFlag{Name: "all", Usage: "all that there are, instead of naming ids", Destination: destination}
}

func checkBroker(broker *rabbit.Config) error {
	if err := broker.Check(); err != nil {
		return command.UsageError(err)
	}
	return nil
}

// A letterWriter prints dead letters as a table or as JSON.
type letterWriter struct {
	json  *json.Encoder
	table *tabwriter.Writer
}

func newLetterWriter(w io.Writer, asJSON bool) *letterWriter {
	if asJSON {
		return &letterWriter{json: json.NewEncoder(w)}
	}
	return &letterWriter{table: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
}

func (w *letterWriter) write(l rabbit.DeadLetter) error {
	if w.json != nil {
		object := map[string]any{"id": l.Task.ID, "reason": l.Reason, "queue": l.Queue, "count": l.Count, "died": l.Died.UTC(), "text": l.Task.Text}
		if !l.Task.Accepted.IsZero() {
			object["accepted"] = l.Task.Accepted.UTC()
		}
		if l.Invalid != nil {
			object["invalid"] = l.Invalid.Error()
		}
		return w.json.Encode(object)
	}
	_, err := fmt.Fprintf(w.table, "%s\t%s\t%s\t%s\n", cmp.Or(l.Task.ID, "(no id)"), when(l.Died), reason(l), shorten(l.Task.Text))
	return err
}

func (w *letterWriter) flush() error {
	if w.table != nil {
		return w.table.Flush()
	}
	return nil
}

// reason says in words why a task was given up.
func reason(l rabbit.DeadLetter) string {
	switch {
	case l.Invalid != nil:
		return "not a proper task: " + l.Invalid.Error()
	case l.Reason == "delivery_limit":
		return "too many attempts failed"
	case l.Reason == "rejected":
		return "refused by a worker"
	}
	return cmp.Or(l.Reason, "unknown")
}

func when(t time.Time) string {
	if t.IsZero() {
		return "unknown"
	}
	return t.Local().Format(time.DateTime)
}

// shorten returns the beginning of a text, quoted so that it stays in its line.
func shorten(text string) string {
	const most = 40
	runes := []rune(text)
	if len(runes) > most {
		return strconv.Quote(string(runes[:most])) + "…"
	}
	return strconv.Quote(text)
}
