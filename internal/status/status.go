// Package status says whether revq does well on a host, and if not, why: the
// cause, and not its symptoms. Judge decides, from facts that others collect.
package status

import (
	"fmt"
	"slices"
	"strings"

	"github.com/revq/revq/internal/admin"
)

// A Daemon is what is known of one daemon.
type Daemon struct {
	Socket string       `json:"socket"`          // the path of its admin socket
	Status admin.Status `json:"status,omitzero"` // if there is no Error
	Error  string       `json:"error,omitempty"` // why it did not say its status
}

// A Level says how revq does.
type Level int

// The levels. They are also the exit status of revq status.
const (
	Well Level = iota
	Trouble
	Unknown
)

var levelNames = [...]string{"well", "trouble", "cannot tell"}

func (l Level) String() string { return levelNames[l] }

// MarshalText implements encoding.TextMarshaler.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// A Verdict says how revq does.
type Verdict struct {
	Level Level `json:"level"`

	// Causes are what is wrong, the most important one first; one sentence
	// each, and at least one.
	Causes []string `json:"causes"`

	// Next is the command or the step to take now.
	Next string `json:"next"`
}

// near is the part of a limit from which on it is told.
const near = 0.9

// A finding is something that is wrong, and what to do.
type finding struct{ cause, next string }

// Judge returns the verdict on the daemons of a host. What is wrong with the
// broker hides what follows from that.
func Judge(daemons []Daemon) Verdict {
	if len(daemons) == 0 {
		return Verdict{Unknown, []string{"no daemon of revq has an admin socket on this host that you may look for"},
			"start the daemons with --admin PATH, or revq up; then revq status --admin PATH"}
	}
	var silent, broker, other []finding
	for _, d := range daemons {
		if d.Error != "" {
			silent = append(silent, finding{d.Socket + " does not answer: " + d.Error, "systemctl status 'revq-*'"})
			continue
		}
		if f, wrong := brokerOf(d.Status); wrong {
			broker = append(broker, f)
		}
		other = append(other, daemonOf(d.Status)...)
	}
	if len(broker) == 0 {
		other = append(other, queuesOf(daemons)...)
	} else {
		other = nil // they follow from it, or cannot be known
	}
	var v Verdict
	for _, f := range slices.Concat(broker, silent, other) {
		if !slices.Contains(v.Causes, f.cause) {
			v.Causes = append(v.Causes, f.cause)
		}
		if v.Next == "" {
			v.Next = f.next
		}
	}
	switch {
	case len(v.Causes) == 0:
		return Verdict{Well, []string{fmt.Sprintf("%d daemons do their work", len(daemons))}, "revq send abcdef"}
	case len(silent) == len(daemons):
		v.Level = Unknown
	default:
		v.Level = Trouble
	}
	return v
}

// brokerOf returns what is wrong between a daemon and the broker.
func brokerOf(s admin.Status) (f finding, wrong bool) {
	if s.Blocked {
		return finding{"the broker takes no messages: it is short of memory or disk space", "rabbitmq-diagnostics alarms"}, true
	}
	for _, c := range s.Broker {
		if c.Connected {
			continue
		}
		switch why := c.Why; {
		case strings.Contains(why, "username or password"), strings.Contains(why, "ACCESS_REFUSED") && strings.Contains(why, "connect to"):
			return finding{"the broker refuses the login of " + s.Daemon, "check the URL of its user; systemd/install broker writes it anew"}, true
		case strings.Contains(why, "does not exist"), strings.Contains(why, "lacks a permission"):
			return finding{why, "revq setup"}, true
		default:
			return finding{"the broker is away: " + strings.TrimPrefix(why, "the broker is not connected: "), "rabbitmq-diagnostics status"}, true
		}
	}
	return f, false
}

// daemonOf returns what is wrong with a daemon itself.
func daemonOf(s admin.Status) (found []finding) {
	if s.State == admin.Hangs {
		found = append(found, finding{s.Daemon + " hangs: " + s.Why, fmt.Sprintf("kill -ABRT %d, and report the stacks in its log", s.Pid)})
	}
	if w := s.Worker; w != nil && w.Paused != "" {
		found = append(found, finding{fmt.Sprintf("tasks of %s wait: %s", w.Queue, w.Paused), "journalctl -u 'revq-worker@*' -n 20"})
	}
	if a := s.API; a != nil && nearly(a.InFlight, a.MaxInFlight) {
		found = append(found, finding{fmt.Sprintf("%d of %d texts wait for the broker's confirmation; more are answered 429", a.InFlight, a.MaxInFlight), "rabbitmq-diagnostics status"})
	}
	if l := s.Socket; l != nil && nearly(l.Listeners, l.MaxListeners) {
		found = append(found, finding{fmt.Sprintf("%d of %d listeners are connected; more are answered 503", l.Listeners, l.MaxListeners), "raise --max-listeners, or start another socket server"})
	}
	return found
}

func nearly(is, limit int) bool { return float64(is) >= near*float64(limit) }

// queuesOf returns which queues are not worked off.
func queuesOf(daemons []Daemon) (found []finding) {
	type queue struct {
		admin.Queue
		slots, busy int
		paused      bool
	}
	known := make(map[string]*queue)
	var names []string
	for _, d := range daemons {
		for _, q := range d.Status.Queues {
			if known[q.Name] == nil {
				known[q.Name] = &queue{}
				names = append(names, q.Name)
			}
			known[q.Name].Queue = q
		}
	}
	for _, d := range daemons {
		if w := d.Status.Worker; w != nil {
			for _, q := range known {
				if q.Of == w.Queue {
					q.slots, q.busy, q.paused = q.slots+w.Slots, q.busy+w.Busy, q.paused || w.Paused != ""
				}
			}
		}
	}
	slices.Sort(names)
	for _, name := range names {
		switch q := known[name]; {
		case q.Of == "":
			if q.Tasks > 0 {
				found = append(found, finding{plural(q.Tasks, "dead letter"), "revq dead ls"})
			}
		case q.Consumers == 0:
			found = append(found, finding{fmt.Sprintf("no worker takes tasks of %s; %s", q.Of, waiting(q.Tasks)), "systemctl start revq-worker@1"})
		case q.paused: // the reason is told already
		case q.Tasks > 0 && q.slots > 0 && q.busy >= q.slots:
			found = append([]finding{{fmt.Sprintf("all %d slots of this host's workers of %s are busy; %s", q.slots, q.Of, waiting(q.Tasks)), "start more workers, or raise --concurrency"}}, found...)
		}
	}
	return found
}

func waiting(tasks int) string {
	if tasks == 1 {
		return "1 task waits"
	}
	return fmt.Sprintf("%d tasks wait", tasks)
}

func plural(n int, of string) string {
	if n == 1 {
		return "1 " + of
	}
	return fmt.Sprintf("%d %ss", n, of)
}
