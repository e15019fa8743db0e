package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/client"
	"github.com/revq/revq/internal/command"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/visible"
	"github.com/revq/revq/internal/wire"
)

const defaultAPI = "http://localhost:8081"

// A sending is one run of `revq send`.
type sending struct {
	client client.Sender
	socket []string
	ca     trust
	token  secret

	text        string
	file        string
	wait        bool
	waitTimeout time.Duration
	quiet       bool
	how         printing
	place       place

	stdout, stderr io.Writer
	texts          *source
	report         *report
	results        *waiting // nil without --wait
	refused        int      // number of texts that were not accepted, for good
	givenUp        int      // number of texts that were accepted and have no result
}

func send() *cli.Command {
	s := sending{place: newPlace()}
	return &cli.Command{
		Name:      "send",
		Usage:     "queue texts, and print `Got it` for each",
		ArgsUsage: "[TEXT ...]",
		Description: `The texts are the arguments, the text of --text, or the lines of a file or of
standard input; empty lines are skipped. If a text fails for a reason that may
pass, revq retries it with the same id, until --timeout. The exit status is 1 if
a text was not accepted. Standard error then says which texts are not queued,
which may be queued or not, and how to carry on. With --wait, it is also 1 if a
task was given up; standard error says why, and shows progress on a terminal.

EXAMPLES:
   revq send abcdef ghijkl
   revq send --wait --file texts
   revq send --queue thumbnails --delay 5m cat.jpg
   generate | revq send --quiet
   revq send --file texts --resume-from 8601/RUN`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{
				Name:        "url",
				Usage:       "`URL` of the API",
				Sources:     cli.EnvVars("REVQ_API_URL"),
				Value:       defaultAPI,
				Destination: &s.client.URL,
			},
			s.ca.flag(),
			s.token.flag(),
			&cli.StringFlag{Name: "text", Usage: "`TEXT` to queue", Destination: &s.text},
			&cli.StringFlag{Name: "file", Aliases: []string{"f"}, Usage: "queue each line of `FILE`; - is standard input", TakesFile: true, Destination: &s.file},
			&cli.StringFlag{
				Name:  "resume-from",
				Usage: "begin at `PLACE`: NUMBER/RUN as an interrupted revq send printed it, with the same input; or the NUMBER of a line or text",
				Validator: func(place string) (err error) {
					s.place, err = parsePlace(place)
					return err
				},
			},
			&cli.StringFlag{
				Name: "queue", Usage: "name of the `QUEUE` for the texts", Value: wire.DefaultQueue, Sources: cli.EnvVars("REVQ_QUEUE"),
				Destination: &s.client.Queue, Validator: wire.CheckQueue,
			},
			&cli.DurationFlag{
				Name: "delay", Usage: "`TIME` that the texts wait before they are handled, such as 90s or 2h",
				Destination: &s.client.Delay, Validator: command.Within(0, wire.MaxDelay),
			},
			&cli.DurationFlag{
				Name: "expires", Usage: "`TIME` after which a text is given up if no worker has begun with it",
				Destination: &s.client.Expires, Validator: command.Within(1, wire.MaxExpires),
			},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print neither Got it nor progress", Destination: &s.quiet},
			&cli.DurationFlag{
				Name:        "timeout",
				Usage:       "`TIME` for a text to be accepted",
				Value:       10 * time.Second,
				Destination: &s.client.Timeout,
				Validator:   command.Within(time.Millisecond, 0),
			},
			&cli.BoolFlag{Name: "wait", Aliases: []string{"w"}, Usage: "print the results instead, in the order of the texts", Destination: &s.wait},
			&cli.StringSliceFlag{
				Name:        "socket-url",
				Usage:       "`URL` of a socket site, for --wait (repeatable)",
				Sources:     cli.EnvVars("REVQ_SOCKET_URL"),
				Value:       []string{defaultSocket},
				Destination: &s.socket,
			},
			&cli.DurationFlag{
				Name:        "wait-timeout",
				Usage:       "`TIME` for a result to arrive, for --wait",
				Value:       5 * time.Minute,
				Destination: &s.waitTimeout,
				Validator:   command.Within(time.Millisecond, 0),
			},
		}, s.how.flags()...),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			s.stdout, s.stderr = cmd.Root().Writer, cmd.Root().ErrWriter
			if err := s.how.check(); err != nil {
				return err
			}
			if s.client.Expires > 0 && s.client.Expires <= s.client.Delay {
				return command.Usagef("the texts would expire before their delay is over: give a longer --expires or a shorter --delay")
			}
			if err := s.open(cmd); err != nil {
				return err
			}
			defer s.texts.Close()
			err := s.run(ctx)
			switch {
			case errors.Is(err, client.ErrBadURL):
				return command.UsageError(err)
			case errors.Is(err, client.ErrUnreachable):
				return fmt.Errorf("%w; is revq up, and is --url right?", err)
			case errors.As(err, new(x509.UnknownAuthorityError)):
				return fmt.Errorf("%w; to trust another authority, give --ca FILE", err)
			}
			return err
		},
	}
}

var errInterrupted = errors.New("interrupted")

// open opens the source of the texts and the report on them.
func (s *sending) open(cmd *cli.Command) error {
	args := cmd.Args().Slice()
	if cmd.IsSet("text") {
		args = append([]string{s.text}, args...)
	}
	input, size := io.NopCloser(cmd.Root().Reader), int64(-1)
	switch {
	case len(args) > 0 && s.file != "":
		return command.Usagef("give texts or a file, not both")
	case len(args) > 0:
		s.texts, s.report = fromArguments(args, s.place.from), s.newReport(false, size)
		return nil
	case s.file == "" && isTerminal(cmd.Root().Reader):
		return command.Usagef("there is nothing to send: give --text TEXT, or a file, or lines on standard input")
	case s.file != "" && s.file != "-":
		f, err := os.Open(s.file)
		if err != nil {
			return err
		}
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			size = info.Size()
		}
		input = f
	}
	s.texts, s.report = fromLines(input, s.place.from), s.newReport(true, size)
	return nil
}

// run sends all texts and reports on each.
func (s *sending) run(ctx context.Context) error {
	var err error
	if s.client.HTTP, err = s.ca.client(); err != nil {
		return err
	}
	if s.client.Token, err = s.token.read(); err != nil {
		return err
	}
	defer s.report.end()
	if s.wait {
		tls, err := s.ca.config()
		if err != nil {
			return err
		}
		s.results = newWaiting(s.socket, s.client.Queue, tls, s.client.Token, s.waitTimeout, s.stderr, s.showProgress)
		if err := s.results.connect(ctx); err != nil {
			return err
		}
		defer s.results.close()
	}
	return s.all(ctx)
}

// all sends batch after batch until the texts end.
func (s *sending) all(ctx context.Context) error {
	next := s.place.from // the number of the first undecided text
	for {
		batch, err := s.texts.batch(ctx)
		switch {
		case errors.Is(err, io.EOF):
			return s.verdict()
		case err != nil && ctx.Err() != nil:
			s.explain(nil, nil, next)
			return errInterrupted
		case err != nil:
			return err
		}
		if err := s.batch(ctx, batch); err != nil {
			return err
		}
		next = batch[len(batch)-1].number + 1
		s.report.advance(batch)
	}
}

// batch sends a batch and prints what came of each text.
func (s *sending) batch(ctx context.Context, batch []text) error {
	tasks := make([]task.Task, len(batch))
	for i, t := range batch {
		tasks[i] = task.Task{ID: s.place.id(t.number), Text: t.content}
		if s.results != nil {
			s.results.expect(tasks[i].ID, t.number)
		}
	}
	answers, sendErr := s.client.Send(ctx, tasks)
	if err := s.printAnswers(batch, answers); err != nil {
		return err
	}
	if first, reason := undecided(batch, answers); reason != nil {
		if ctx.Err() != nil {
			sendErr = errInterrupted
		}
		s.explain(batch, answers, first)
		return cmp.Or(sendErr, reason)
	}
	if s.results == nil {
		return nil
	}
	for i, answer := range answers {
		if answer != nil {
			s.results.forget(tasks[i].ID)
			continue
		}
		text, err := s.results.result(ctx, tasks[i].ID)
		switch {
		case errors.Is(err, errGivenUp):
			s.givenUp++
			s.report.problem("%s %d was accepted, but %v", s.texts.unit, batch[i].number, err)
			continue
		case err != nil:
			s.explain(nil, nil, batch[len(batch)-1].number+1)
			return fmt.Errorf("%s %d was accepted, but %w", s.texts.unit, batch[i].number, err)
		}
		if err := s.report.print(s.how.text(s.stdout, text)); err != nil {
			return err
		}
	}
	return nil
}

// printAnswers prints which texts of a batch were accepted, unless their
// results are printed instead, and which were refused for good. If there is no
// such queue, it returns that of the first text: the others would be refused,
// too.
func (s *sending) printAnswers(batch []text, answers []error) error {
	for i, answer := range answers {
		switch {
		case answer == nil && s.results == nil:
			if err := s.report.print("Got it"); err != nil {
				return err
			}
		case client.IsNotFound(answer):
			s.explain(nil, nil, batch[i].number)
			return fmt.Errorf("%s %d was not accepted: %w", s.texts.unit, batch[i].number, answer)
		case answer != nil && client.IsFinal(answer):
			s.refused++
			s.report.problem("%s %d was not accepted: %v", s.texts.unit, batch[i].number, answer)
		}
	}
	return nil
}

// verdict returns what to say once all texts are decided.
func (s *sending) verdict() error {
	if s.texts.count == 0 && !s.quiet {
		s.report.problem("there was nothing to send")
	}
	switch {
	case s.refused > 0 && s.givenUp > 0:
		return fmt.Errorf("%d of %d texts were not accepted, and %d were given up", s.refused, s.texts.count, s.givenUp)
	case s.refused > 0:
		return fmt.Errorf("%d of %d texts were not accepted", s.refused, s.texts.count)
	case s.givenUp > 0:
		return fmt.Errorf("%d of %d texts were given up", s.givenUp, s.texts.count)
	}
	return nil
}

// showProgress shows how far the task of a text is.
func (s *sending) showProgress(number int, progress string) {
	s.report.progress.show("%s %d: %s", s.texts.unit, number, visible.Line(progress))
}

// explain prints what became of the texts if not all were sent. Those before
// next are decided, answers says what became of those in batch, and those after
// batch were not sent.
func (s *sending) explain(batch []text, answers []error, next int) {
	last, sent := next-1, next > s.place.from
	if len(batch) > 0 {
		last = batch[len(batch)-1].number
	}
	for _, answer := range answers {
		sent = sent || answer == nil || client.IsUncertain(answer)
	}
	if !sent {
		return // the reason says it all
	}
	if maybe := ranges(s.texts.unit, batch, answers, client.IsUncertain); maybe != "" {
		s.report.problem("may be queued or not: %s", maybe)
	}
	if not := ranges(s.texts.unit, batch, answers, isUnsent); not != "" {
		s.report.problem("not queued: %s", not)
	}
	if s.texts.more() {
		s.report.problem("not queued: everything after %s %d", s.texts.unit, last)
	}
	s.place.from = next
	s.report.problem("to carry on without duplicate results, repeat the command with --resume-from %v", s.place)
}
