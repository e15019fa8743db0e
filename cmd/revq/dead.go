package main

import (
	"bufio"
	"bytes"
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
	"github.com/revq/revq/internal/visible"
	"github.com/revq/revq/internal/wire"
)

func dead() *cli.Command {
	return &cli.Command{
		Name:  "dead",
		Usage: "inspect dead letters, and requeue or purge them",
		Description: `A task becomes a dead letter if too many attempts failed, if its handler gave it
up, or if it is not a valid task. Dead letters stay in the queue revq.dead. Once
the cause is fixed, requeue returns them to the workers.

EXAMPLES:
   revq dead ls
   revq dead requeue --all --queue thumbnails`,
		Commands: []*cli.Command{deadList(), deadShow(), deadRequeue(), deadPurge()},
		Action: func(_ context.Context, cmd *cli.Command) error {
			if cmd.Args().Present() {
				return command.Usagef("there is no command %q of dead: use ls, show, requeue or purge", cmd.Args().First())
			}
			return cli.ShowSubcommandHelp(cmd)
		},
	}
}

func deadList() *cli.Command {
	broker := rabbit.DefaultConfig("revq dead")
	var (
		asJSON bool
		limit  int
		queue  string
	)
	return &cli.Command{
		Name:  "ls",
		Usage: "list dead letters",
		Description: `EXAMPLES:
   revq dead ls
   revq dead ls --queue thumbnails
   revq dead ls --json --limit 10`,
		Flags: append(command.Flags(broker.Settings()),
			jsonFlag(&asJSON),
			queueFlag(&queue),
			&cli.IntFlag{
				Name: "limit", Usage: "at most `N`", Value: 1000, Destination: &limit,
				Validator: command.Within(1, 0),
			},
		),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := cmp.Or(command.NoArguments(cmd), checkBroker(&broker)); err != nil {
				return err
			}
			var page bytes.Buffer
			out := newLetterWriter(&page, asJSON)
			n := 0
			// This reads all letters, even beyond the limit: the broker returns
			// the letters that were read to the queue after the unread ones.
			err := deadLetters(ctx, broker, queue, func(l rabbit.DeadLetter) (rabbit.Fate, error) {
				if n++; n > limit {
					return rabbit.Keep, nil
				}
				return rabbit.Keep, out.write(l)
			})
			stderr := cmd.Root().ErrWriter
			switch {
			case err != nil:
			case n == 0:
				note(stderr, "there are no %s", lettersOf(queue))
			case n > limit:
				note(stderr, "%d more dead letters are not shown; see --limit", n-limit)
			}
			return errors.Join(err, out.flush(), printPage(cmd, &page))
		},
	}
}

func deadShow() *cli.Command {
	broker := rabbit.DefaultConfig("revq dead")
	var (
		asJSON bool
		queue  string
	)
	return &cli.Command{
		Name:      "show",
		Usage:     "show dead letters completely, with their texts",
		ArgsUsage: "ID ...",
		Description: `EXAMPLES:
   revq dead show ID`,
		Flags: append(command.Flags(broker.Settings()), jsonFlag(&asJSON), queueFlag(&queue)),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if !cmd.Args().Present() {
				return command.Usagef("name the ids: `revq dead ls` lists them")
			}
			var page bytes.Buffer
			_, err := eachNamed(ctx, cmd, &broker, queue, func(l rabbit.DeadLetter) (rabbit.Fate, error) {
				if asJSON {
					return rabbit.Keep, newLetterWriter(&page, true).write(l)
				}
				failure := ""
				if l.Error != "" {
					failure = fmt.Sprintf("error:    %q\n", l.Error)
				}
				if l.Said != "" {
					failure += fmt.Sprintf("said:     %q\n", l.Said)
				}
				_, err := fmt.Fprintf(&page, "id:       %s\nreason:   %s\n%sdied:     %s\nqueue:    %s, deaths so far: %d\naccepted: %s\ntext:     %q\n",
					id(l), reason(l), failure, when(l.Died), l.Task.Queue, l.Count, when(l.Task.Accepted), l.Task.Text)
				return rabbit.Keep, err
			})
			return errors.Join(err, printPage(cmd, &page))
		},
	}
}

// printPage writes what was collected about dead letters. The letters are back
// in their queue by then: while they are read, nobody else sees them, and the
// broker ends a session that holds one for longer than its consumer_timeout,
// as it would while a pager shows the first page.
func printPage(cmd *cli.Command, page *bytes.Buffer) error {
	_, err := page.WriteTo(cmd.Root().Writer)
	return err
}

func deadRequeue() *cli.Command {
	broker := rabbit.DefaultConfig("revq dead")
	var (
		all   bool
		queue string
	)
	return &cli.Command{
		Name:  "requeue",
		Usage: "return dead letters to the workers, under the same ids",
		Description: `Each task returns to the queue that it comes from. With --all, invalid tasks
stay, since no worker can handle them.

EXAMPLES:
   revq dead requeue ID ID
   revq dead requeue --all --queue thumbnails`,
		ArgsUsage: "ID ...",
		Flags:     append(command.Flags(broker.Settings()), allFlag(&all), queueFlag(&queue)),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := checkNamed(cmd, all); err != nil {
				return err
			}
			invalid := 0
			n, err := eachNamed(ctx, cmd, &broker, queue, func(l rabbit.DeadLetter) (rabbit.Fate, error) {
				if all && l.Invalid != nil {
					invalid++
					return rabbit.Keep, nil
				}
				return rabbit.Requeue, nil
			})
			reportDone(cmd, n, "requeued", err)
			if invalid > 0 {
				note(cmd.Root().ErrWriter, "%d stay, since they are not valid tasks", invalid)
			}
			return err
		},
	}
}

func deadPurge() *cli.Command {
	broker := rabbit.DefaultConfig("revq dead")
	var (
		all, yes bool
		queue    string
	)
	return &cli.Command{
		Name:      "purge",
		Usage:     "delete dead letters for good",
		ArgsUsage: "ID ...",
		Description: `EXAMPLES:
   revq dead purge ID
   revq dead purge --all --queue thumbnails --yes`,
		Flags: append(command.Flags(broker.Settings()),
			allFlag(&all),
			queueFlag(&queue),
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask", Destination: &yes},
		),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := checkNamed(cmd, all); err != nil {
				return err
			}
			if !yes {
				if err := confirm(cmd, queue); err != nil {
					return err
				}
			}
			n, err := eachNamed(ctx, cmd, &broker, queue, func(rabbit.DeadLetter) (rabbit.Fate, error) {
				return rabbit.Purge, nil
			})
			reportDone(cmd, n, "purged", err)
			return err
		},
	}
}

// reportDone prints how many letters were requeued or purged, unless there are
// none and the error says why.
func reportDone(cmd *cli.Command, n int, done string, err error) {
	if n > 0 || err == nil {
		note(cmd.Root().ErrWriter, "%d %s", n, done)
	}
}

// confirm asks before dead letters are purged.
func confirm(cmd *cli.Command, queue string) error {
	if !isTerminal(cmd.Root().Reader) {
		return command.Usagef("purge deletes for good: confirm with --yes")
	}
	what := cmp.Or(strings.Join(cmd.Args().Slice(), ", "), "all "+lettersOf(queue))
	fmt.Fprintf(cmd.Root().ErrWriter, "purge %s for good? [y/N] ", visible.Line(what))
	answer, err := bufio.NewReader(cmd.Root().Reader).ReadString('\n')
	if err != nil && err != io.EOF {
		return err
	}
	if !slices.Contains([]string{"y", "yes"}, strings.ToLower(strings.TrimSpace(answer))) {
		return errors.New("nothing was purged")
	}
	return nil
}

// checkNamed requires ids or --all, so that nobody changes all letters by
// mistake.
func checkNamed(cmd *cli.Command, all bool) error {
	if all == cmd.Args().Present() {
		return command.Usagef("give either ids or --all: `revq dead ls` lists the ids")
	}
	return nil
}

// deadLetters is as [rabbit.DeadLetters] for those of one queue; of all queues
// if it is "".
func deadLetters(ctx context.Context, broker rabbit.Config, queue string, decide func(rabbit.DeadLetter) (rabbit.Fate, error)) error {
	return rabbit.DeadLetters(ctx, broker, func(l rabbit.DeadLetter) (rabbit.Fate, error) {
		if queue != "" && l.Task.Queue != queue {
			return rabbit.Keep, nil
		}
		return decide(l)
	})
}

// lettersOf says which dead letters a queue or "" stands for.
func lettersOf(queue string) string {
	if queue == "" {
		return "dead letters"
	}
	return "dead letters of the queue " + queue
}

// eachNamed calls do with the dead letters of a queue that the arguments name,
// or with all of them if there are no arguments. The queue "" stands for all.
// It returns how many were not kept. If an id does not exist, it still handles
// the others, and then returns an error.
func eachNamed(ctx context.Context, cmd *cli.Command, broker *rabbit.Config, queue string, do func(rabbit.DeadLetter) (rabbit.Fate, error)) (n int, err error) {
	if err := checkBroker(broker); err != nil {
		return 0, err
	}
	found := make(map[string]bool) // by the ids that are named
	for _, id := range cmd.Args().Slice() {
		found[id] = false
	}
	err = deadLetters(ctx, *broker, queue, func(l rabbit.DeadLetter) (rabbit.Fate, error) {
		// Several letters may have the same id.
		if _, named := found[l.Task.ID]; len(found) > 0 && !named {
			return rabbit.Keep, nil
		}
		fate, err := do(l)
		if err == nil && len(found) > 0 {
			found[l.Task.ID] = true
		}
		if err == nil && fate != rabbit.Keep {
			n++
		}
		return fate, err
	})
	if err != nil {
		return n, err
	}
	var missing []string
	for id, ok := range found {
		if !ok {
			missing = append(missing, id)
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return n, fmt.Errorf("not among the %s: %s", lettersOf(queue), strings.Join(missing, ", "))
	}
	return n, nil
}

func jsonFlag(destination *bool) cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: "print JSON, one object a line", Destination: destination}
}

func allFlag(destination *bool) cli.Flag {
	return &cli.BoolFlag{Name: "all", Usage: "all dead letters, instead of ids", Destination: destination}
}

func queueFlag(destination *string) cli.Flag {
	return &cli.StringFlag{
		Name: "queue", Usage: "only dead letters of `QUEUE`; without it, those of all queues",
		Destination: destination, Validator: wire.CheckQueue,
	}
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
		if isTerminal(w) {
			w = visible.JSONWriter(w)
		}
		encoder := json.NewEncoder(w)
		encoder.SetEscapeHTML(false)
		return &letterWriter{json: encoder}
	}
	return &letterWriter{table: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
}

// A letterObject is a dead letter in JSON.
type letterObject struct {
	ID       string    `json:"id"`               // may be empty
	Reason   string    `json:"reason"`           // the broker's: delivery_limit or rejected
	Error    string    `json:"error,omitzero"`   // from the handler that gave it up
	Said     string    `json:"said,omitzero"`    // the end of what it wrote to standard error
	Invalid  string    `json:"invalid,omitzero"` // why it is not a valid task
	Queue    string    `json:"queue"`
	Count    int64     `json:"count"`
	Died     time.Time `json:"died,omitzero"`
	Accepted time.Time `json:"accepted,omitzero"`
	Text     string    `json:"text"`
}

func (w *letterWriter) write(l rabbit.DeadLetter) error {
	if w.json == nil {
		_, err := fmt.Fprintf(w.table, "%s\t%s\t%s\t%s\n", id(l), when(l.Died), reason(l), shorten(l.Task.Text))
		return err
	}
	object := letterObject{
		ID: l.Task.ID, Reason: l.Reason, Error: l.Error, Said: l.Said, Queue: l.Task.Queue, Count: l.Count,
		Died: l.Died.UTC(), Accepted: l.Task.Accepted.UTC(), Text: l.Task.Text,
	}
	if l.Invalid != nil {
		object.Invalid = l.Invalid.Error()
	}
	return w.json.Encode(object)
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
		return "not a valid task: " + visible.Line(l.Invalid.Error())
	case l.Reason == "delivery_limit":
		return "too many attempts failed"
	case l.Error != "":
		return "given up: " + shorten(l.Error)
	case l.Reason == "expired":
		return "its queue was removed while it waited"
	case l.Reason == "rejected":
		return fmt.Sprintf("refused by a worker: %d bytes are more than its --max-text", len(l.Task.Text))
	}
	return cmp.Or(visible.Text(l.Reason), "unknown")
}

func id(l rabbit.DeadLetter) string { return cmp.Or(visible.Text(l.Task.ID), "(no id)") }

func when(t time.Time) string {
	if t.IsZero() {
		return "unknown"
	}
	return t.Local().Format(time.DateTime)
}

// shorten returns the beginning of a text, quoted so that it stays on one line.
func shorten(text string) string {
	const maximum = 40
	runes := []rune(text)
	if len(runes) > maximum {
		return strconv.Quote(string(runes[:maximum])) + "…"
	}
	return strconv.Quote(text)
}
