package daemon

import (
	"fmt"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/revq/revq/internal/admin"
)

// extension is how much more time the daemon asks the service manager for, each
// statusInterval while it stops. A daemon that hangs does not ask.
const extension = 5 * time.Second

// seen is what a look at the daemon has shown.
type seen struct {
	at        time.Time
	does      admin.State
	alive     bool          // nothing hangs, also while it stops
	impatient bool          // it is ready even if it still waits
	status    string        // does, why, and the load
	watchdog  time.Duration // how soon the service manager wants a sign of life; 0: never
}

// told is what the service manager knows. It changes when a message was sent: a
// state that could not be sent is sent later, if it still holds.
type told struct {
	ready    bool
	stopping bool
	status   string
	statusAt time.Time // when a status, or a request for more time, was last sent
	aliveAt  time.Time
}

// decide returns the lines to send to the service manager, and what it knows
// once they are sent.
func decide(s seen, t told) (say []string, then told) {
	then = t
	if s.does == admin.Stopping && !t.stopping {
		then.stopping = true
		say = append(say, daemon.SdNotifyStopping)
	}
	if !t.ready && (s.does == admin.Ready || s.does == admin.Waiting && s.impatient) {
		then.ready = true
		say = append(say, daemon.SdNotifyReady)
	}
	due := len(say) > 0 || s.at.Sub(t.statusAt) >= statusInterval
	if s.alive && s.watchdog > 0 && s.at.Sub(t.aliveAt) >= s.watchdog/2-s.watchdog/16 {
		then.aliveAt = s.at
		say = append(say, daemon.SdNotifyWatchdog)
	}
	if s.alive && then.stopping && due {
		then.statusAt = s.at
		say = append(say, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", extension.Microseconds()))
	}
	if s.status != t.status && due {
		then.status, then.statusAt = s.status, s.at
		say = append(say, statusLine(s.status))
	}
	return say, then
}

// statusLine returns the message that sets the status. It replaces line breaks,
// which would begin another assignment.
func statusLine(status string) string {
	return "STATUS=" + strings.ReplaceAll(status, "\n", "; ")
}
