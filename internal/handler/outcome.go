package handler

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/worker"
)

// A cut is the reason why we killed a process.
type cut int

const (
	notCut   cut = iota
	tooLong      // its time was over
	tooLarge     // its output was too large
	stopped      // the worker stops, or its session with the broker ended
)

// An ending says how a filter's process ended.
type ending struct {
	start  error // it could not be started; the rest is empty then
	cut    cut
	status int            // its exit status
	signal syscall.Signal // what ended it instead; 0 for none
	output string         // at most one byte more than maxOutput
}

// limits are the limits that an ending is checked against.
type limits struct {
	timeout   time.Duration
	maxOutput int
}

// shortages are start errors that are not the program's fault: there are too
// many processes or files, or too little memory, or the program file is being
// written.
var shortages = []error{syscall.EAGAIN, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE, syscall.ETXTBSY}

// decide returns the outcome of an attempt: nil if the output is its result.
// The table in README.md says the same.
func decide(e ending, l limits) *worker.Error {
	switch {
	case e.start != nil && slices.ContainsFunc(shortages, func(s error) bool { return errors.Is(e.start, s) }):
		return verdict(worker.Later, "start the program: %w", e.start)
	case e.start != nil:
		return verdict(worker.Misconfigured, "start the program: %w", e.start)
	case e.cut == stopped:
		return verdict(worker.Stopped, "the attempt was cut short")
	case e.cut == tooLong:
		return verdict(worker.Failed, "it took longer than the task time-out of %v", l.timeout)
	case e.cut == tooLarge:
		return verdict(worker.Failed, "its output is longer than the %d bytes of --max-output", l.maxOutput)
	case e.signal != 0:
		return verdict(worker.Failed, "it was ended by the signal %d (%v)", int(e.signal), e.signal)
	case e.status != 0:
		return verdict(ofStatus(e.status), "exit status %d", e.status)
	}
	if err := task.CheckText(e.output, l.maxOutput); err != nil {
		return verdict(worker.Failed, "its output is no result: %w", err)
	}
	return nil
}

// ofStatus returns the outcome for an exit status other than 0.
func ofStatus(status int) worker.Outcome {
	switch status {
	case 75, 111: // EX_TEMPFAIL of sysexits.h; qmail's, which other programs use too
		return worker.Later
	case 65, 100: // EX_DATAERR; qmail's
		return worker.Never
	case 126, 127: // of shells: not executable, not found
		return worker.Misconfigured
	}
	return worker.Failed
}

func verdict(o worker.Outcome, format string, args ...any) *worker.Error {
	return &worker.Error{Outcome: o, Err: fmt.Errorf(format, args...)}
}

// saying adds the last standard error of a program.
func saying(e *worker.Error, said string) *worker.Error {
	if e != nil {
		e.Said = strings.ToValidUTF8(strings.TrimSpace(said), "\uFFFD")
	}
	return e
}
