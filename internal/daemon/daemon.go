// Package daemon is what revq's daemons share: settings, listeners, logs, the
// conversation with the service manager, and how they start and stop.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/command"
)

// A Program describes a daemon.
type Program struct {
	Name  string // of the binary
	Usage string // in half a line

	// Flags are the daemon's own; those of this package are added.
	Flags []cli.Flag

	// Sites are the addresses to listen on; nil if the daemon does not listen.
	Sites *Sites

	// Check returns what is wrong with the settings, once all are known. May be nil.
	Check func() error

	// Run does the work until ctx ends, usually by way of d.Run.
	Run func(ctx context.Context, d *Daemon) error
}

// A Daemon is a running Program.
type Daemon struct {
	Log *slog.Logger

	// Ready returns nil once the daemon does its work, otherwise what it is
	// waiting for. Nil stands for always ready.
	Ready func() error

	// Patience is how long to wait for Ready before serving all the same: a
	// server can answer that it has no broker. Until then clients wait in the
	// listeners' queues, so that a restart refuses nobody. Zero stands for a
	// daemon that is ready or not.
	Patience time.Duration

	listeners   []net.Listener
	stopTimeout time.Duration
}

// ServePatience is the Patience of servers: some times what a broker that is
// there takes to connect to.
const ServePatience = 2 * time.Second

// minStopTimeout leaves time to tell clients and listeners to go.
const minStopTimeout = time.Second

// Main runs p and ends the process with its exit status.
func Main(p Program) { os.Exit(run(p, os.Args)) }

func run(p Program, args []string) int {
	logs := logConfig{format: "text"}
	d := &Daemon{stopTimeout: 20 * time.Second}
	flags := slices.Concat(p.Flags, logs.flags(), []cli.Flag{
		command.Duration("stop-timeout", "`TIME` that work in hand may take once the daemon is told to stop", "daemon", &d.stopTimeout, minStopTimeout, 0),
	})
	if p.Sites != nil {
		flags = append(flags, p.Sites.flags()...)
	}
	cmd := &cli.Command{
		Name:                  p.Name,
		Usage:                 p.Usage,
		Flags:                 flags,
		EnableShellCompletion: true,
		HideHelpCommand:       true,
		ErrWriter:             os.Stderr,
		Action: func(ctx context.Context, cmd *cli.Command) (err error) {
			if err := command.NoArguments(cmd); err != nil {
				return err
			}
			if p.Check != nil {
				if err := p.Check(); err != nil {
					return command.UsageError(err)
				}
			}
			d.Log = logs.logger(os.Stderr)
			if p.Sites != nil {
				if d.listeners, err = p.Sites.open(); err != nil {
					return err
				}
			}
			ctx, stop := command.UntilSignal(ctx)
			defer stop()
			return p.Run(ctx, d)
		},
	}
	return command.Run(context.Background(), cmd, args)
}

// A Server serves connections.
type Server interface {
	// Serve serves those of ln until Shutdown.
	Serve(ln net.Listener) error

	// Shutdown takes no more of them, and ends those that there are, in ctx's
	// time.
	Shutdown(ctx context.Context) error
}

// Serve returns work for Run: to have s serve all listeners.
func (d *Daemon) Serve(s Server) func(context.Context) error {
	for _, ln := range d.listeners {
		d.Log.Info("listening", "address", ln.Addr().String()) // clients wait until they are served
	}
	return func(ctx context.Context) error {
		d.awaitReady(ctx)
		failed := make(chan error, len(d.listeners))
		for _, ln := range d.listeners {
			go func() {
				err := s.Serve(ln)
				if err == nil && ctx.Err() == nil {
					err = errors.New("the listener was closed")
				}
				failed <- fmt.Errorf("serve %s: %w", ln.Addr(), err)
			}()
		}
		var err error
		select {
		case <-ctx.Done():
		case err = <-failed:
		}
		stop, cancel := context.WithTimeout(context.Background(), d.stopTimeout)
		defer cancel()
		if e := s.Shutdown(stop); e != nil {
			err = errors.Join(err, fmt.Errorf("connections were still busy after %v: %w", d.stopTimeout, e))
		}
		for _, ln := range d.listeners {
			ln.Close() // Shutdown has done so already, unless Serve came too late
		}
		return err
	}
}

// Run does work until ctx ends, and tells the service manager how it stands.
// What is in the background goes on until work has ended. Run returns work's
// error, or one that says that the stop took too long.
func (d *Daemon) Run(ctx context.Context, work func(context.Context) error, background ...func(context.Context) error) error {
	backCtx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var running sync.WaitGroup
	for _, b := range background {
		running.Go(func() { b(backCtx) })
	}
	reporting, stopReporting := context.WithCancel(ctx)
	defer stopReporting()
	running.Go(func() { d.reportReady(reporting) })

	done := make(chan error, 1)
	go func() {
		err := work(ctx)
		stopReporting() // work that failed early was never ready, nor will be
		cancel()
		running.Wait()
		done <- err
	}()
	select {
	case err := <-done:
		if ctx.Err() == nil {
			return err
		}
		done <- err // it was quick to stop; that it was told to is still to be said
	case <-ctx.Done():
	}
	d.Log.Info("stopping")
	d.notify(daemon.SdNotifyStopping)
	select {
	case err := <-done:
		d.Log.Info("stopped")
		return err
	case <-time.After(d.stopTimeout + 5*time.Second): // work keeps to the time by itself
		return fmt.Errorf("could not stop within %v: work in hand goes back to the broker", d.stopTimeout)
	}
}

// awaitReady waits for Ready with Patience.
func (d *Daemon) awaitReady(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, d.Patience)
	defer cancel()
	ticker := time.NewTicker(readyInterval)
	defer ticker.Stop()
	for d.Ready != nil && d.Ready() != nil && ctx.Err() == nil {
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
}

// How often is looked whether the daemon is ready: at the start, for which
// others wait, and later, for people who look at the status.
const (
	readyInterval = 20 * time.Millisecond
	stillInterval = time.Second
)

// reportReady tells the service manager when the daemon is ready, and from then
// on, in its status, whether it still is.
func (d *Daemon) reportReady(ctx context.Context) {
	ticker := time.NewTicker(readyInterval)
	defer ticker.Stop()
	began := time.Now()
	for ready, last := false, ""; ctx.Err() == nil; {
		status := "ready"
		if d.Ready != nil {
			if err := d.Ready(); err != nil {
				// A line break would begin another assignment.
				status = "waiting: " + strings.ReplaceAll(err.Error(), "\n", "; ")
			}
		}
		impatient := d.Patience > 0 && time.Since(began) > d.Patience
		switch {
		case (status == "ready" || impatient) && !ready:
			ready = true
			d.Log.Info("ready")
			d.notify(daemon.SdNotifyReady + "\nSTATUS=" + status)
			ticker.Reset(stillInterval)
		case status != last:
			d.notify("STATUS=" + status)
		}
		if d.Ready == nil {
			return
		}
		last = status
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
}

// notify tells the service manager, if there is one.
func (d *Daemon) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		d.Log.Warn("could not notify the service manager", "error", err)
	}
}
