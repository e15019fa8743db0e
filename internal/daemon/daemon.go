// Package daemon is what revq's daemons share: settings, listening sockets,
// logs, messages to the service manager, and how they start and stop.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/revq/revq/internal/admin"
	"github.com/revq/revq/internal/command"
	"github.com/revq/revq/internal/journal"
	"github.com/revq/revq/internal/liveness"
	"github.com/revq/revq/internal/setting"
)

// A Program describes a daemon.
type Program struct {
	Name  string // of the binary
	Usage string // what it does, in half a line

	// Description is the rest of the help text, with the heading EXAMPLES.
	Description string

	// Settings are the daemon's own; those of this package are added.
	Settings []setting.Setting

	// Sites are the addresses to listen on; nil if the daemon does not listen.
	Sites *Sites

	// Program is set to the program and its arguments that follow -- on the
	// command line. Nil if the daemon takes no program.
	Program *[]string

	// Checks are called once all settings are known, until one returns an
	// error.
	Checks []func() error

	// Run does the work until ctx ends, usually by way of d.Run.
	Run func(ctx context.Context, d *Daemon) error
}

// A Daemon is a running Program. Its functions may be nil. Reload is called from
// one goroutine, the others from several at once.
type Daemon struct {
	Log *slog.Logger

	// Ready returns nil once the daemon does its work, otherwise what it is
	// waiting for. Nil stands for always ready.
	Ready func() error

	// Status describes the daemon's load in a few words.
	Status func() string

	// Alive return an error if something in the daemon hangs, so that only a
	// restart helps. Problems of others, such as the broker, must not be
	// errors here. They return at once.
	Alive []func() error

	// Reload reads the settings that may change at run time again. If it fails,
	// nothing changes.
	Reload func() error

	// Metrics are what the admin socket shows beside the metrics that every
	// program has.
	Metrics admin.Metrics

	// Describe adds to the status that the admin socket shows what only this
	// daemon has.
	Describe func(*admin.Status)

	// Known returns what this daemon knows of a task.
	Known func(id string) admin.Known

	// Patience is how long to wait for Ready before serving anyway: a server
	// can answer that it has no broker. Until then clients wait in the queues
	// of the listening sockets, so that a restart refuses no client. Zero, the
	// default without Sites, means that the daemon is reported ready only once
	// Ready returns nil. The default with Sites is 2 s: several times as long
	// as it takes to connect to a broker.
	Patience time.Duration

	name        string // of the program
	began       time.Time
	listeners   []*listener
	admin       net.Listener // nil if there is no admin socket
	adminPath   string
	cert        *certificate // nil without Sites
	hangups     chan os.Signal
	stopTimeout time.Duration
}

// StopTimeout returns how long running work may take once the daemon is told to
// stop.
func (d *Daemon) StopTimeout() time.Duration { return d.stopTimeout }

const servePatience = 2 * time.Second

// minStopTimeout leaves time to tell clients and listeners to go.
const minStopTimeout = time.Second

// Main runs p and ends the process with its exit status.
func Main(p Program) { os.Exit(run(p, os.Args)) }

func run(p Program, args []string) int {
	// Go ends with status 2 after a panic or SIGABRT, which units would take
	// for a wrong setting. This makes it end by the signal, with all stacks.
	debug.SetTraceback("crash")
	// The memory holds the broker's password, clients' tokens and their texts:
	// no core is written, and other processes of the same user cannot read it.
	// It fails only where a sandbox forbids it.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	logs := defaultLog()
	d := newDaemon()
	// In a terminal, SIGHUP means that the terminal is gone.
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		signal.Notify(d.hangups, syscall.SIGHUP)
	}
	if p.Sites != nil {
		d.Patience = servePatience
	}
	args = p.cutProgram(args)
	cmd := p.command(&logs, d)
	cmd.Action = func(ctx context.Context, cmd *cli.Command) error {
		if err := command.NoArguments(cmd); err != nil {
			return err
		}
		for _, check := range p.Checks {
			if err := check(); err != nil {
				return command.UsageError(err)
			}
		}
		d.Log, d.name = logs.logger(os.Stderr), p.Name
		if err := d.listen(p); err != nil {
			return err
		}
		ctx, stop := command.UntilSignal(ctx)
		defer stop()
		return p.Run(ctx, d)
	}
	failure := command.Try(context.Background(), cmd, args)
	if failure == nil {
		return command.StatusOK
	}
	journal.Error(os.Stderr, failure.Error())
	if err := newManager().sendLast(failed(failure)); err != nil && d.Log != nil {
		d.Log.Warn("could not tell the service manager why this ends", "error", err)
	}
	return failure.Status
}

// cutProgram returns the daemon's own arguments, and sets Program to what follows
// --. It requires --, so that a value without its flag is not run as a program.
func (p Program) cutProgram(args []string) []string {
	if at := slices.Index(args, "--"); p.Program != nil && at > 0 {
		*p.Program = args[at+1:]
		return args[:at]
	}
	return args
}

// Command returns the command line of p without an action, for the manual page.
func (p Program) Command() *cli.Command {
	logs := defaultLog()
	return p.command(&logs, newDaemon())
}

func (p Program) command(logs *logConfig, d *Daemon) *cli.Command {
	usage := ""
	if p.Program != nil {
		usage = "[-- PROGRAM ARG ...]"
	}
	return &cli.Command{
		Name:                  p.Name,
		Usage:                 p.Usage,
		ArgsUsage:             usage,
		Description:           p.Description,
		Flags:                 command.Flags(p.settings(logs, d)),
		EnableShellCompletion: true,
		HideHelpCommand:       true,
		ErrWriter:             os.Stderr,
	}
}

// AllSettings returns all settings of the daemon, with the defaults.
func (p Program) AllSettings() []setting.Setting {
	logs := defaultLog()
	return p.settings(&logs, newDaemon())
}

// settings returns the settings of p and those that all daemons share. The
// latter are stored in logs and d.
func (p Program) settings(logs *logConfig, d *Daemon) []setting.Setting {
	all := append(slices.Clone(p.Settings), logs.settings()...)
	adminPath := setting.String("admin", "create a socket at `PATH` with the status, metrics and profiles of this daemon", &d.adminPath, admin.CheckPath).
		With("Only the daemon's user and group can open it. A socket that systemd passes with the name admin wins.")
	adminPath.Wiring = true
	all = append(all, setting.In("daemon",
		setting.Time("stop-timeout", "`TIME` that running work may take once the daemon is told to stop", &d.stopTimeout, minStopTimeout, 0).
			With("The units wait for 30 s."), adminPath)...)
	if p.Sites != nil {
		all = append(all, p.Sites.settings()...)
	}
	return all
}

func newDaemon() *Daemon {
	return &Daemon{began: time.Now(), stopTimeout: 20 * time.Second, hangups: make(chan os.Signal, 1)}
}

// listen opens the listening sockets of p: those of its sites, if it has any,
// and the admin socket.
func (d *Daemon) listen(p Program) error {
	handed, err := handedOver(p.Name, p.Sites != nil)
	if err != nil {
		return err
	}
	d.admin = handed.admin
	if d.admin == nil && d.adminPath != "" {
		if d.admin, err = admin.Listen(d.adminPath); err != nil {
			handed.close()
			return err
		}
	}
	if p.Sites == nil {
		return nil
	}
	d.cert = &p.Sites.cert
	pair, err := d.cert.read()
	if err != nil {
		handed.close()
		return command.UsageError(err)
	}
	d.cert.current.Store(pair)
	listeners, err := p.Sites.open(p.Name, handed.sites)
	if err != nil {
		handed.close()
		return err
	}
	for _, ln := range listeners {
		d.listeners = append(d.listeners, &listener{d.cert.serve(ln), liveness.New("taking connections at "+ln.Addr().String(), acceptLimit)})
	}
	return nil
}

// acceptLimit is how long a Server may take between accepting two connections
// that wait. It only has to start a goroutine for each.
const acceptLimit = time.Minute

// A listener is a listening socket that notices when the server no longer
// accepts its connections.
type listener struct {
	net.Listener
	loop *liveness.Loop
}

func (l *listener) Accept() (net.Conn, error) {
	l.loop.Idle()
	c, err := l.Listener.Accept()
	if err == nil {
		l.loop.Busy()
	}
	return c, err
}

// A Server serves connections.
type Server interface {
	// Serve serves the connections of ln until Shutdown.
	Serve(ln net.Listener) error

	// Shutdown accepts no more connections, and ends the open ones before ctx
	// ends.
	Shutdown(ctx context.Context) error
}

// Addresses returns the number of listening sockets.
func (d *Daemon) Addresses() int { return len(d.listeners) }

// Exposed reports whether other machines can reach one of the listening
// sockets.
func (d *Daemon) Exposed() bool {
	return slices.ContainsFunc(d.listeners, func(ln *listener) bool {
		at, ok := ln.Addr().(*net.TCPAddr)
		return ok && !at.IP.IsLoopback()
	})
}

// Serve returns the work for Run that lets s serve all listening sockets.
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
				ln.loop.Idle()
				if err == nil && ctx.Err() == nil {
					err = errors.New("the listening socket was closed")
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

// Run runs work until ctx ends, and reports the daemon's state to the service
// manager. The background functions run until work has ended. Run returns
// work's error, or an error if the stop took too long.
func (d *Daemon) Run(ctx context.Context, work func(context.Context) error, background ...func(context.Context)) error {
	backCtx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var running sync.WaitGroup
	for _, b := range background {
		running.Go(func() { b(backCtx) })
	}
	if d.admin != nil {
		running.Go(func() { d.serveAdmin(backCtx, ctx) })
	}
	reporting, stopReporting := context.WithCancel(context.Background())
	reported := make(chan struct{})
	go func() {
		d.report(reporting, ctx)
		close(reported)
	}()

	done := make(chan error, 1)
	go func() {
		err := work(ctx)
		if ctx.Err() == nil {
			stopReporting() // work has failed, and must not be reported as ready
		}
		cancel()
		running.Wait()
		stopReporting()
		<-reported
		done <- err
	}()
	select {
	case err := <-done:
		if ctx.Err() == nil {
			return err
		}
		done <- err // it stopped quickly: log "stopping" first
	case <-ctx.Done():
	}
	d.Log.Info("stopping")
	select {
	case err := <-done:
		d.Log.Info("stopped")
		return err
	case <-time.After(d.stopTimeout + stopGrace): // work itself keeps to stopTimeout
		stopReporting()
		return fmt.Errorf("%w %v: the broker takes unfinished work back", errStopTimeout, d.stopTimeout)
	}
}

// stopGrace is how much longer than the stop timeout the end may take, to cut
// connections and to close the sessions with the broker.
const stopGrace = 5 * time.Second

var errStopTimeout = errors.New("could not stop within")

// awaitReady waits for Ready, for at most Patience.
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
