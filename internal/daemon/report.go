package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/revq/revq/internal/command"
)

const (
	// readyInterval is how often is looked whether the daemon is ready, for
	// which others wait.
	readyInterval = 20 * time.Millisecond

	// statusInterval is how often its state is looked at later, and the least
	// time between two status lines.
	statusInterval = time.Second

	// extension is how much more time the service manager is asked for while
	// the daemon stops, each statusInterval: one that hangs gets no more.
	extension = 5 * time.Second
)

// A reporter tells the service manager how the daemon stands.
type reporter struct {
	d        *Daemon
	began    time.Time
	watchdog time.Duration // how soon the service manager wants a sign of life; 0: never

	ready    bool  // has been told
	stopping bool  // has been told
	hangs    bool  // has been logged
	wrong    error // of the last reload

	status   string    // as told last
	toldAt   time.Time // when that was
	pingedAt time.Time
}

// report tells the service manager how the daemon stands until ctx ends, and
// when the daemon is told to stop, which running's end means.
func (d *Daemon) report(ctx, running context.Context) {
	r := &reporter{d: d, began: time.Now()}
	var err error
	if r.watchdog, err = daemon.SdWatchdogEnabled(false); err != nil {
		d.Log.Warn("the watchdog is not told that all is well", "error", err)
	}
	ticker := time.NewTicker(readyInterval)
	defer ticker.Stop()
	told := running.Done()
	for {
		r.look(running)
		if r.ready || r.stopping {
			interval := statusInterval
			if r.watchdog > 0 {
				interval = min(interval, r.watchdog/4)
			}
			ticker.Reset(interval)
		}
		select {
		case <-ticker.C:
		case <-told:
			told = nil
		case <-d.hangups:
			r.reload()
		case <-ctx.Done():
			if running.Err() != nil && !r.stopping {
				r.look(running)
			}
			return
		}
	}
}

// look tells what has changed, and that the daemon is alive if it is.
func (r *reporter) look(running context.Context) {
	alive := r.alive()
	state, waiting := "ready", error(nil)
	if r.d.Ready != nil {
		waiting = r.d.Ready()
	}
	var say []string
	switch {
	case running.Err() != nil:
		state = "stopping"
		if !r.stopping {
			r.stopping = true
			say = append(say, daemon.SdNotifyStopping)
		}
	case alive != nil:
		state = "hangs: " + alive.Error()
	case waiting != nil:
		state = "waiting: " + waiting.Error()
	}
	impatient := r.d.Patience > 0 && time.Since(r.began) > r.d.Patience
	if !r.ready && !r.stopping && alive == nil && (waiting == nil || impatient) {
		r.ready = true
		r.d.Log.Info("ready")
		say = append(say, daemon.SdNotifyReady)
	}
	due := len(say) > 0 || time.Since(r.toldAt) >= statusInterval
	if alive == nil && r.watchdog > 0 && time.Since(r.pingedAt) >= r.watchdog/2-r.watchdog/16 {
		r.pingedAt = time.Now()
		say = append(say, daemon.SdNotifyWatchdog)
	}
	if r.d.Status != nil {
		state += "; " + r.d.Status()
	}
	if r.wrong != nil {
		state += "; the last reload changed nothing: " + r.wrong.Error()
	}
	if alive == nil && r.stopping && due {
		say = append(say, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", extension.Microseconds()))
		r.toldAt = time.Now()
	}
	if state != r.status && due {
		say = append(say, statusLine(state))
		r.status, r.toldAt = state, time.Now()
	}
	if len(say) > 0 {
		r.d.notify(strings.Join(say, "\n"))
	}
}

// alive returns an error if something hangs, and logs when that begins and ends.
func (r *reporter) alive() error {
	var alive []error
	for _, check := range r.d.Alive {
		alive = append(alive, check())
	}
	for _, ln := range r.d.listeners {
		alive = append(alive, ln.loop.Alive())
	}
	err := errors.Join(alive...)
	switch {
	case err != nil && !r.hangs:
		r.d.Log.Error("something hangs: the service manager gets no sign of life and has to restart this", "error", err)
	case err == nil && r.hangs:
		r.d.Log.Info("nothing hangs any more")
	}
	r.hangs = err != nil
	return err
}

// reload has the daemon reload, and tells when that begins and ends.
func (r *reporter) reload() {
	if r.stopping || r.d.Reload == nil {
		return
	}
	if r.ready { // for one that is not, the end would be taken for readiness
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
			r.d.Log.Warn("could not read the clock", "error", err)
		}
		r.d.notify(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, now.Nano()/int64(time.Microsecond)))
	}
	if r.wrong = r.d.reload(); r.wrong != nil {
		r.d.Log.Error("the reload changed nothing", "error", r.wrong)
	} else {
		r.d.Log.Info("reloaded")
	}
	if r.ready {
		r.d.notify(daemon.SdNotifyReady)
	}
}

// statusLine returns the message that sets the status. A line break would
// begin another assignment.
func statusLine(status string) string {
	return "STATUS=" + strings.ReplaceAll(status, "\n", "; ")
}

// failed returns the message that says why the daemon ends, with the system's
// number of the error where there is one.
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

// notify tells the service manager, if there is one.
func (d *Daemon) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil && d.Log != nil {
		d.Log.Warn("could not notify the service manager", "error", err)
	}
}
