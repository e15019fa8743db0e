// Package status says whether revq does well on a host, and if not, why: the
// cause, and not its symptoms. Judge decides, from facts that others collect.
package status

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/revq/revq/internal/admin"
)

// Facts are what is known of a host.
type Facts struct {
	At      time.Time
	Daemons []Daemon
	Units   []Unit
	NoUnits string   // why it is not known which units have failed, if systemd was asked
	Objects []string // what is wrong with the objects at the broker, if somebody looked
}

// A Daemon is what is known of one daemon.
type Daemon struct {
	Socket string       `json:"socket"`          // the path of its admin socket
	Status admin.Status `json:"status,omitzero"` // if there is no Error
	Error  string       `json:"error,omitempty"` // why it did not say its status

	// Sites are those of the daemon's sites that do not answer, with the
	// reason.
	Sites map[string]string `json:"sites,omitempty"`
}

// A Unit is a unit of systemd that does not do what it should.
type Unit struct {
	Name string `json:"name"` // such as revq-api@1.service
	Why  string `json:"why"`
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

const (
	// near is the part of a limit from which on it is told.
	near = 0.9

	// refusedFor is how long a refusal of the broker is told. A queue that is
	// full takes a task each time that a worker has taken one, so a
	// confirmation does not mean that it is not full.
	refusedFor = time.Minute
)

// A finding is something that is wrong, and what to do.
type finding struct{ cause, next string }

// Judge returns the verdict on a host. What is wrong with the broker hides what
// follows from that.
func Judge(f Facts) Verdict {
	if len(f.Daemons) == 0 && len(f.Units) == 0 {
		return Verdict{Unknown, []string{"no daemon of revq has an admin socket on this host that you may look for"},
			"start the daemons with --admin PATH, or revq up; then revq status --admin PATH"}
	}
	var broker, silent, own, follows []finding
	units := unitsOf(f.Units)
	for _, d := range f.Daemons {
		if d.Error != "" {
			if !hasFailed(f.Units, d.Socket) {
				silent = append(silent, finding{d.Socket + " does not answer: " + d.Error, "systemctl status 'revq-*'"})
			}
			continue
		}
		if f, wrong := brokerOf(d.Status); wrong {
			broker = append(broker, f)
		}
		own = append(own, siteOf(d)...)
		own = append(own, daemonOf(d.Status)...)
		follows = append(follows, loadOf(d.Status)...)
	}
	if f.NoUnits != "" {
		units = append(units, finding{"systemd did not say which units have failed: " + f.NoUnits, "systemctl list-units --all 'revq*'"})
	}
	for _, o := range f.Objects {
		broker = append(broker, finding{o, "revq setup"})
	}
	follows = append(follows, queuesOf(f)...)
	if len(broker) > 0 {
		follows = nil // they follow from it, or cannot be known
	}
	var v Verdict
	for _, f := range slices.Concat(broker, units, silent, own, follows) {
		if !slices.Contains(v.Causes, f.cause) {
			v.Causes = append(v.Causes, f.cause)
		}
		if v.Next == "" {
			v.Next = f.next
		}
	}
	switch {
	case len(v.Causes) == 0:
		return Verdict{Well, []string{plural(len(f.Daemons), "daemon") + " at work"}, "revq send abcdef"}
	case len(silent) > 0 && len(silent) == len(f.Daemons):
		v.Level = Unknown
	default:
		v.Level = Trouble
	}
	return v
}

func unitsOf(units []Unit) (found []finding) {
	for _, u := range units {
		found = append(found, finding{fmt.Sprintf("the unit %s %s", u.Name, u.Why), fmt.Sprintf("journalctl -u '%s' -n 20", u.Name)})
	}
	return found
}

// hasFailed reports whether the unit of the daemon with an admin socket is one
// of units. The socket of revq-api@1.service is called api@1.admin.
func hasFailed(units []Unit, socket string) bool {
	name := "revq-" + strings.TrimSuffix(filepath.Base(socket), ".admin") + ".service"
	return slices.ContainsFunc(units, func(u Unit) bool { return u.Name == name })
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
		switch why := strings.TrimPrefix(c.Why, "the broker is not connected: "); {
		case strings.Contains(why, "username or password"), strings.Contains(why, "ACCESS_REFUSED") && strings.Contains(why, "connect to"):
			return finding{"the broker refuses the login of " + s.Daemon, "check the user and the password in its --amqp-url; systemd/install broker makes new ones"}, true
		case strings.Contains(why, "does not exist"), strings.Contains(why, "lacks a permission"):
			// Which object it was when it was declared matters less.
			why, _, _ = strings.Cut(why, ": declare the ")
			return finding{why, "revq setup"}, true
		default:
			return finding{"the broker is away: " + why, "rabbitmq-diagnostics status"}, true
		}
	}
	if s.Silent {
		return finding{"the broker does not answer, though " + s.Daemon + " is connected to it", "rabbitmq-diagnostics status"}, true
	}
	return f, false
}

func siteOf(d Daemon) (found []finding) {
	for _, site := range d.Status.Sites {
		if why, down := d.Sites[site.Address]; down {
			found = append(found, finding{fmt.Sprintf("the site %s of %s is down: %s", site.Address, d.Status.Daemon, why),
				fmt.Sprintf("read the log of the process %d", d.Status.Pid)})
		}
	}
	return found
}

// daemonOf returns what is wrong with a daemon itself, whatever the broker does.
func daemonOf(s admin.Status) (found []finding) {
	if s.State == admin.Hangs {
		found = append(found, finding{s.Daemon + " hangs: " + s.Why, fmt.Sprintf("kill -ABRT %d, and report the stacks in its log", s.Pid)})
	}
	if l := s.Socket; l != nil && nearly(l.Listeners, l.MaxListeners) {
		found = append(found, finding{fmt.Sprintf("%d of %d listeners are connected; more are answered 503", l.Listeners, l.MaxListeners), "raise --max-listeners, or start another socket server"})
	}
	if a := s.API; a != nil && nearly(a.Connections, a.MaxConnections) {
		found = append(found, finding{fmt.Sprintf("%d of %d connections of clients are open; more are answered 503", a.Connections, a.MaxConnections), "raise --max-connections, or start another site"})
	}
	return found
}

// loadOf returns what is wrong with a daemon and may follow from the broker.
func loadOf(s admin.Status) (found []finding) {
	if w := s.Worker; w != nil && w.Paused != "" {
		found = append(found, finding{fmt.Sprintf("tasks of %s wait: %s", w.Queue, w.Paused), "journalctl -u 'revq-worker@*' -n 20"})
	}
	if a := s.API; a != nil && nearly(a.InFlight, a.MaxInFlight) {
		found = append(found, finding{fmt.Sprintf("%d of %d texts wait for the broker's confirmation; more are answered 429", a.InFlight, a.MaxInFlight), "rabbitmq-diagnostics status"})
	}
	return found
}

func nearly(is, limit int) bool { return limit > 0 && float64(is) >= near*float64(limit) }

// A line is what is known of a queue at the broker, and of this host's workers
// of it.
type line struct {
	admin.Queue
	slots, busy int
	free        time.Time // when the first slot is free, at the latest; zero if unknown
	paused      bool
	retries     []admin.Retry
	refused     time.Time
}

// queuesOf returns which queues are not worked off, the root causes first.
func queuesOf(f Facts) (found []finding) {
	var idle, full, busy, retried, dead []finding
	for _, q := range linesOf(f.Daemons) {
		if f.At.Sub(q.refused) < refusedFor && q.Tasks > 0 {
			full = append(full, finding{fmt.Sprintf("the broker refuses tasks for %s: the queue is full or not available; %s", q.Name, waiting(q.Tasks)),
				"start more workers; revq setup --help says how to make the queue larger"})
		}
		switch {
		case q.Waiting:
		case q.Of == "":
			if q.Tasks > 0 {
				dead = append(dead, finding{plural(q.Tasks, "dead letter"), "revq dead ls"})
			}
		case q.Consumers == 0:
			idle = append(idle, finding{fmt.Sprintf("no worker takes tasks of %s; %s", q.Of, waiting(q.Tasks)), "systemctl start revq-worker@1"})
		case q.paused: // the reason is told already
		case q.Tasks > 0 && q.slots > 0 && q.busy >= q.slots:
			until := ""
			if q.free.After(f.At) {
				until = ", the first one until " + clock(q.free) + " at the latest"
			}
			busy = append(busy, finding{fmt.Sprintf("all %d slots of this host's workers of %s are busy%s; %s", q.slots, q.Of, until, waiting(q.Tasks)), "start more workers, or raise --concurrency"})
		}
		if !q.paused && len(q.retries) > 0 {
			next := q.retries[0]
			are := "task of " + q.Of + " waits"
			if len(q.retries) > 1 {
				are = "tasks of " + q.Of + " wait"
			}
			retried = append(retried, finding{fmt.Sprintf("%d %s for a retry, the first one until %s: %s", len(q.retries), are, clock(next.Due), next.Why), "revq status " + next.ID})
		}
	}
	return slices.Concat(idle, full, busy, retried, dead)
}

// linesOf returns what the daemons know of each queue, in the order of their
// names.
func linesOf(daemons []Daemon) (lines []*line) {
	known := make(map[string]*line)
	at := func(name string) *line {
		if known[name] == nil {
			known[name] = &line{}
			lines = append(lines, known[name])
		}
		return known[name]
	}
	for _, d := range daemons {
		for _, q := range d.Status.Queues {
			at(q.Name).Queue = q
		}
	}
	for _, d := range daemons {
		if r := d.Status.Refused; r != nil && known[r.Queue] != nil {
			at(r.Queue).refused = r.At
		}
		w := d.Status.Worker
		if w == nil {
			continue
		}
		for _, q := range lines {
			if q.Of != w.Queue {
				continue
			}
			q.slots, q.busy, q.paused = q.slots+w.Slots, q.busy+w.Busy, q.paused || w.Paused != ""
			q.retries = append(q.retries, w.Retries...)
			for _, t := range w.Tasks {
				if q.free.IsZero() || t.Until.Before(q.free) {
					q.free = t.Until
				}
			}
		}
	}
	slices.SortFunc(lines, func(a, b *line) int { return strings.Compare(a.Name, b.Name) })
	for _, q := range lines {
		slices.SortFunc(q.retries, func(a, b admin.Retry) int { return a.Due.Compare(b.Due) })
	}
	return lines
}

// clock returns a time as people read it, with the date unless it is today.
func clock(t time.Time) string {
	t = t.Local()
	if now := time.Now(); t.YearDay() != now.YearDay() || t.Year() != now.Year() {
		return t.Format(time.DateTime)
	}
	return t.Format(time.TimeOnly)
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
