package handler

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/revq/revq/internal/proc"
)

// Attend runs the persistent program of cfg with in and out themselves as its
// standard input and output, so that it speaks with the worker directly. When
// the worker has closed the connection, the program has 2 s to end, and is
// killed after that: a program that hangs must not keep its place among the
// connections of its unit. When ctx ends, the program gets SIGTERM. Attend
// returns nil if the program ended by itself after either of these. The process
// should end then: in is watched until its other side is closed.
func Attend(ctx context.Context, cfg Config, in, out, stderr *os.File) error {
	program := cfg.program()
	cmd := exec.Command(program[0], program[1:]...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = unitEnvironment(), in, out, stderr
	p, err := proc.Start(cmd)
	if err != nil {
		return fmt.Errorf("start the program: %w", err)
	}
	closed := make(chan error, 1)
	go func() { closed <- awaitHangUp(in, -1) }()
	select {
	case <-p.Done():
		if err := awaitHangUp(in, 0); err != nil {
			return fmt.Errorf("the program ended before its input did: %v", p.State())
		}
		return nil
	case <-ctx.Done():
		return p.Stop(endGrace)
	case err := <-closed:
		timer := time.NewTimer(endGrace)
		defer timer.Stop()
		select {
		case <-p.Done():
			return err
		case <-timer.C:
		}
		p.Kill()
		<-p.Done()
		return errors.Join(err, fmt.Errorf("the program still ran %v after the end of its input, and was killed", endGrace))
	}
}

// errOpen says that the other side of a connection is still open.
var errOpen = errors.New("the connection is open")

// awaitHangUp returns nil when the other side of f is closed, whether or not
// everything was read that it has sent. It waits for milliseconds, or for ever
// if that is negative.
func awaitHangUp(f *os.File, milliseconds int) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch the connection: %w", err)
	}
	var wrong error
	err = conn.Control(func(fd uintptr) {
		// It asks for no event: the hang-up is always reported.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd)}}, milliseconds)
		for errors.Is(err, unix.EINTR) {
			n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd)}}, milliseconds)
		}
		if err == nil && n == 0 {
			err = errOpen
		}
		wrong = err
	})
	return errors.Join(err, wrong)
}
