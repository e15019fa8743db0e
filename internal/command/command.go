// Package command is what revq's programs share on the command line: flags,
// errors, exit status, version and manual pages.
//
// Data goes to standard output, everything else to standard error. An error is
// one line that begins with the program's name.
package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"sync"
	"syscall"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/journal"
	"github.com/revq/revq/internal/visible"
)

// The exit status of all programs.
const (
	StatusOK     = 0
	StatusFailed = 1 // the command failed
	StatusUsage  = 2 // a wrong flag, variable or argument: a retry does not help
)

// UsageError marks err as a mistake in flags, variables or arguments.
func UsageError(err error) error { return &usageError{err} }

// Usagef returns a UsageError with a formatted message.
func Usagef(format string, args ...any) error { return UsageError(fmt.Errorf(format, args...)) }

// Exit returns an error that ends the program with a status, and nil for
// StatusOK. The program has said everything that there is to say.
func Exit(status int) error {
	if status == StatusOK {
		return nil
	}
	return exit(status)
}

type exit int

func (e exit) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }

// A Failure is why a program ends with a status other than 0. Its text is the
// message to the user.
type Failure struct {
	Status int
	text   string
	err    error
}

func (f *Failure) Error() string { return f.text }
func (f *Failure) Unwrap() error { return f.err }

// Run runs cmd with args, the first of which is the program's name, and returns
// the exit status. It writes an error to cmd.ErrWriter.
func Run(ctx context.Context, cmd *cli.Command, args []string) int {
	f := Try(ctx, cmd, args)
	if f == nil {
		return StatusOK
	}
	if f.text != "" {
		journal.Error(cmd.ErrWriter, f.Error())
	}
	return f.Status
}

// Try is Run, but returns the failure instead of writing it; nil for success.
func Try(ctx context.Context, cmd *cli.Command, args []string) *Failure {
	cmd.Version = Build()
	cmd.ConfigureShellCompletionCommand = repairCompletion
	r := runner{in: cmd.Name}
	r.prepare(cmd)
	err := cmd.Run(ctx, args)
	if err == nil {
		return nil
	}
	if ends, ok := errors.AsType[exit](err); ok {
		return &Failure{int(ends), "", err}
	}
	var wrong *usageError
	if r.acted && !errors.As(err, &wrong) {
		return &Failure{StatusFailed, fmt.Sprintf("%s: %s", cmd.Name, visible.Lines(redact(err.Error()))), err}
	}
	return &Failure{StatusUsage, fmt.Sprintf("%s: %s (see %s --help)", cmd.Name, Clean(plain(err)), r.in), err}
}

// A runner records how far a command line was parsed.
type runner struct {
	in    string // the command that was recognised, such as "revq send"
	acted bool   // the flags are valid and the action has begun
}

// prepare keeps the library from writing errors itself, and makes cmd record in
// r how far it gets.
func (r *runner) prepare(cmd *cli.Command) {
	cmd.OnUsageError = func(_ context.Context, cmd *cli.Command, err error, _ bool) error {
		r.in = cmd.FullName()
		return err
	}
	cmd.ExitErrHandler = func(context.Context, *cli.Command, error) {}
	if action := cmd.Action; action != nil {
		cmd.Action = func(ctx context.Context, cmd *cli.Command) error {
			r.in, r.acted = cmd.FullName(), true
			return action(ctx, cmd)
		}
	}
	for _, sub := range cmd.Commands {
		r.prepare(sub)
	}
}

// credentials match the user and password in a URL, up to the last @, because
// someone may have forgotten to percent-encode an earlier one. Messages quote
// what they repeat, so a quotation mark ends the URL.
var credentials = regexp.MustCompile(`://(?:[^"\\\n]|\\.)*@`)

// redact removes the user and password of URLs from a message, which may repeat
// what the user gave in the wrong place.
func redact(message string) string {
	return credentials.ReplaceAllStringFunc(message, func(found string) string {
		if found == "://USER:PASSWORD@" { // the message shows how to write a URL
			return found
		}
		return "://…@"
	})
}

// Clean returns a message in one line, without passwords and without control
// characters that a terminal would obey.
func Clean(message string) string { return visible.Line(redact(message)) }

// UntilSignal returns a context that ends with the first SIGTERM or SIGINT. A
// second signal ends the program at once. The function that it returns undoes
// this.
func UntilSignal(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, 2) // room for both, even if they arrive at the same time
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	undone := make(chan struct{})
	go func() {
		for range 2 {
			select {
			case sig := <-signals:
				if ctx.Err() != nil {
					signal.Reset(sig)
					syscall.Kill(os.Getpid(), sig.(syscall.Signal))
				}
				cancel()
			case <-undone:
				return
			}
		}
	}()
	return ctx, sync.OnceFunc(func() {
		signal.Stop(signals)
		close(undone)
		cancel()
	})
}

// NoArguments returns an error if there are arguments other than flags.
func NoArguments(cmd *cli.Command) error {
	if cmd.Args().Present() {
		return Usagef("unexpected argument %q", cmd.Args().First())
	}
	return nil
}
