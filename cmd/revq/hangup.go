package main

import (
	"context"
	"os"

	"golang.org/x/sys/unix"
)

// untilHangUp returns a context that also ends when f is a pipe whose reader
// has closed it. A program notices this only at its next write, so without this
// `revq listen | head -1` would run until the next result.
func untilHangUp(ctx context.Context, f any) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	file, ok := f.(*os.File)
	if !ok {
		return ctx, cancel
	}
	if info, err := file.Stat(); err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		return ctx, cancel
	}
	go func() {
		defer cancel()
		for {
			fds := []unix.PollFd{{Fd: int32(file.Fd())}} // errors and hang-ups are always reported
			if _, err := unix.Poll(fds, -1); err != unix.EINTR {
				return
			}
		}
	}()
	return ctx, cancel
}
