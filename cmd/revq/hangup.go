package main

import (
	"context"
	"os"

	"golang.org/x/sys/unix"
)

// untilHangUp returns a context that also ends when f is a pipe that nobody
// reads any more. Otherwise one would notice only at the next write, and
// `revq listen | head -1` end only with the next result.
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
