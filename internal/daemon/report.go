package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/revq/revq/internal/admin"
	"github.com/revq/revq/internal/command"
)

const (
	// readyInterval is how often the reporter checks whether the daemon is
	// ready. It is short, since other units wait for that.
	readyInterval = 20 * time.Millisecond

	// statusInterval is how often the reporter checks the daemon's state later,
	// and the minimum time between two status lines.
	statusInterval = time.Second

	// retryInterval is how soon a message that the service manager did not take
	// is sent again: much sooner than the shortest of its timeouts.
	retryInterval = 100 * time.Millisecond
)

// A reporter tells the service manager the daemon's state.
type reporter struct {
	d        *Daemon
	manager  *manager
	began    time.Time
	watchdog time.Duration // how soon the service manager wants a sign of life; 0: never

	readyOnce sync.Once // logs that the daemon is ready

	told  told
	owed  []string // messages about the last reload that could not be sent yet, in order
	hangs bool     // it was logged that something hangs
	wrong error    // of the last reload
}

// report tells the service manager the daemon's state until ctx ends. The end
// of running means that the daemon was told to stop.
func (d *Daemon) report(ctx, running context.Context) {
	r := &reporter{d: d, manager: newManager(), began: time.Now()}
	var err error
	if r.watchdog, err = daemon.SdWatchdogEnabled(false); err != nil {
		d.Log.Warn("the watchdog is disabled: its interval cannot be read", "error", err)
	}
	ticker := time.NewTicker(readyInterval)
	defer ticker.Stop()
	stop := running.Done()
	for {
		r.look(running)
		ticker.Reset(r.interval())
		select {
		case <-ticker.C:
		case <-stop:
			stop = nil
		case <-d.hangups:
			r.reload()
		case <-ctx.Done():
			if running.Err() != nil && !r.told.stopping {
				r.look(running)
			}
			return
		}
	}
}

// interval returns the time until the next look.
func (r *reporter) interval() time.Duration {
	interval := statusInterval
	switch {
	case r.manager.failed:
		interval = retryInterval
	case !r.told.ready && !r.told.stopping:
		interval = readyInterval
	}
	if r.watchdog > 0 {
		interval = min(interval, r.watchdog/4)
	}
	return interval
}

// look sends what has changed, and a sign of life if the daemon is alive.
func (r *reporter) look(running context.Context) {
	alive := r.alive()
	does, why := r.d.state(running, alive)
	status := string(does)
	if why != nil {
		status += ": " + why.Error()
	}
	if r.d.Status != nil {
		status += "; " + r.d.Status()
	}
	if r.wrong != nil {
		status += "; the last reload changed nothing: " + r.wrong.Error()
	}
	now := time.Now()
	say, then := decide(seen{
		at: now, does: does, alive: alive == nil, status: status, watchdog: r.watchdog,
		impatient: r.d.Patience > 0 && now.Sub(r.began) > r.d.Patience,
	}, r.told)
	if then.ready {
		r.readyOnce.Do(func() { r.d.Log.Info("ready") })
	}
	if !then.stopping {
		r.pay()
	}
	if len(say) > 0 && r.send(strings.Join(say, "\n")) {
		r.told = then
	}
}

// pay sends the owed messages about the last reload.
func (r *reporter) pay() {
	for len(r.owed) > 0 && r.send(r.owed[0]) {
		r.owed = r.owed[1:]
	}
}

func (r *reporter) send(message string) bool { return r.manager.send(message, r.d.Log) }

// alive returns an error if something hangs, and logs when that begins and
// ends.
func (r *reporter) alive() error {
	err := r.d.alive()
	switch {
	case err != nil && !r.hangs:
		r.d.Log.Error("something hangs: stopped the signs of life, so that the service manager restarts this daemon", "error", err)
	case err == nil && r.hangs:
		r.d.Log.Info("nothing hangs any more")
	}
	r.hangs = err != nil
	return err
}

// alive returns an error if something hangs.
func (d *Daemon) alive() error {
	var alive []error
	for _, check := range d.Alive {
		alive = append(alive, check())
	}
	for _, ln := range d.listeners {
		alive = append(alive, ln.loop.Alive())
	}
	return errors.Join(alive...)
}

// state returns what the daemon does, and why it hangs or waits. The end of
// running means that it was told to stop; hangs says what hangs.
func (d *Daemon) state(running context.Context, hangs error) (is admin.State, why error) {
	switch {
	case running.Err() != nil:
		return admin.Stopping, nil
	case hangs != nil:
		return admin.Hangs, hangs
	case d.Ready != nil:
		if err := d.Ready(); err != nil {
			return admin.Waiting, err
		}
	}
	return admin.Ready, nil
}

// serveAdmin serves the admin socket until ctx ends. The end of running means
// that the daemon was told to stop.
func (d *Daemon) serveAdmin(ctx, running context.Context) {
	status := func() admin.Status {
		s := admin.Status{Daemon: d.name, Version: command.Version(), Pid: os.Getpid(), Started: d.began}
		is, why := d.state(running, d.alive())
		if s.State = is; why != nil {
			s.Why = why.Error()
		}
		if d.Status != nil {
			s.Load = d.Status()
		}
		for _, ln := range d.listeners {
			s.Sites = append(s.Sites, admin.Site{Address: ln.Addr().String(), TLS: d.cert.current.Load() != nil})
		}
		if d.Describe != nil {
			d.Describe(&s)
		}
		return s
	}
	ready := admin.Gauge("revq_ready", "1 if the daemon does its work, 0 if it waits, hangs or stops.", nil, func(send admin.Value) {
		if is, _ := d.state(running, d.alive()); is == admin.Ready {
			send(1)
		} else {
			send(0)
		}
	})
	if err := admin.NewServer(d.Log, status, d.Known, append(d.Metrics, ready)).Serve(ctx, d.admin); err != nil {
		d.Log.Error("nobody can look into this daemon any more", "error", err)
	}
}

// reload makes the daemon reload, and tells the service manager when that
// begins and ends. If these messages cannot be sent before the next reload,
// those of the next reload replace them.
func (r *reporter) reload() {
	if r.told.stopping || r.d.Reload == nil {
		return
	}
	r.owed = nil
	if r.told.ready { // before, the end of the reload would count as readiness
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
			r.d.Log.Warn("could not read the clock", "error", err)
		}
		r.owed = []string{fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, now.Nano()/int64(time.Microsecond))}
		r.pay()
	}
	if r.wrong = r.d.reload(); r.wrong != nil {
		r.d.Log.Error("the reload changed nothing", "error", r.wrong)
	} else {
		r.d.Log.Info("reloaded")
	}
	if r.told.ready {
		r.owed = append(r.owed, daemon.SdNotifyReady)
		r.pay()
	}
}

// failed returns the message that says why the daemon ends, with the errno of
// the error if it has one.
func failed(f *command.Failure) string {
	message := statusLine("failed: " + f.Error())
	var errno syscall.Errno
	switch {
	case f.Status == command.StatusUsage:
		errno = syscall.EINVAL
	case errors.Is(f, errStopTimeout):
		errno = syscall.ETIMEDOUT
	case !errors.As(f, &errno):
		return message
	}
	return fmt.Sprintf("%s\nERRNO=%d", message, int(errno))
}
