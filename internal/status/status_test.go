package status

import (
	"strings"
	"testing"

	"github.com/revq/revq/internal/admin"
)

// TestJudge has each cause, alone and with the symptoms that it hides.
func TestJudge(t *testing.T) {
	t.Parallel()
	api := func(change func(*admin.Status)) Daemon {
		s := admin.Status{
			Daemon: "revq-api", State: admin.Ready, Broker: []admin.Connection{{Role: "publisher", Connected: true}},
			Queues: []admin.Queue{{Name: "revq.tasks", Of: "reverse_text", Consumers: 1}, {Name: "revq.dead"}},
			API:    &admin.API{MaxInFlight: 10},
		}
		change(&s)
		return Daemon{Socket: "/run/api", Status: s}
	}
	worker := func(change func(*admin.Status)) Daemon {
		s := admin.Status{
			Daemon: "revq-worker", State: admin.Ready, Broker: []admin.Connection{{Role: "consumer", Connected: true}},
			Worker: &admin.Worker{Queue: "reverse_text", Slots: 2},
		}
		change(&s)
		return Daemon{Socket: "/run/worker", Status: s}
	}
	fine := func(*admin.Status) {}
	away := func(s *admin.Status) {
		s.State, s.Why = admin.Waiting, "no broker"
		s.Broker[0] = admin.Connection{Role: s.Broker[0].Role, Why: "the broker is not connected: connect to localhost:5672: dial tcp: connection refused"}
		s.Queues = nil
	}
	wait := func(tasks, consumers, dead int) func(*admin.Status) {
		return func(s *admin.Status) {
			s.Queues[0].Tasks, s.Queues[0].Consumers, s.Queues[1].Tasks = tasks, consumers, dead
		}
	}
	for _, tt := range []struct {
		name    string
		daemons []Daemon
		level   Level
		causes  string // separated by |
		next    string
	}{
		{"nothing", nil, Unknown, "no daemon of revq has an admin socket", "--admin PATH"},
		{"all is well", []Daemon{api(fine), worker(fine)}, Well, "2 daemons do their work", "revq send"},
		{"tasks wait, and slots are free", []Daemon{api(wait(3, 1, 0)), worker(fine)}, Well, "2 daemons", "revq send"},
		{"no worker", []Daemon{api(wait(3, 0, 0))}, Trouble, "no worker takes tasks of reverse_text; 3 tasks wait", "systemctl start revq-worker"},
		{"slots", []Daemon{api(wait(1, 1, 2)), worker(func(s *admin.Status) { s.Worker.Busy = 2 })}, Trouble,
			"all 2 slots of this host's workers of reverse_text are busy; 1 task waits|2 dead letters", "start more workers"},
		{"handler", []Daemon{api(wait(5, 1, 0)), worker(func(s *admin.Status) { s.Worker.Busy, s.Worker.Paused = 2, "the handler is out of order" })}, Trouble,
			"tasks of reverse_text wait: the handler is out of order", "journalctl"},
		{"broker away hides all that follows", []Daemon{api(away), worker(func(s *admin.Status) { away(s); s.Worker.Paused = "x" })}, Trouble,
			"the broker is away: connect to localhost:5672: dial tcp: connection refused", "rabbitmq-diagnostics status"},
		{"alarm", []Daemon{api(func(s *admin.Status) { s.Blocked = true; s.API.InFlight = 10 })}, Trouble, "short of memory or disk space", "alarms"},
		{"login", []Daemon{api(func(s *admin.Status) {
			away(s)
			s.Broker[0].Why = "the broker is not connected: connect to x: Exception (403) Reason: \"username or password not allowed\""
		})}, Trouble, "the broker refuses the login of revq-api", "URL"},
		{"objects", []Daemon{worker(func(s *admin.Status) {
			away(s)
			s.Broker[0].Why = "revq.tasks does not exist, and this user may not declare it"
		})},
			Trouble, "revq.tasks does not exist", "revq setup"},
		{"hangs", []Daemon{api(func(s *admin.Status) { s.State, s.Why, s.Pid = admin.Hangs, "the loop", 7 })}, Trouble, "revq-api hangs: the loop", "kill -ABRT 7"},
		{"dead letters", []Daemon{api(wait(0, 1, 1))}, Trouble, "1 dead letter", "revq dead ls"},
		{"in flight", []Daemon{api(func(s *admin.Status) { s.API.InFlight = 9 })}, Trouble, "9 of 10 texts wait", "rabbitmq-diagnostics"},
		{"listeners", []Daemon{{Status: admin.Status{Socket: &admin.Socket{Listeners: 90, MaxListeners: 100}}}}, Trouble, "90 of 100 listeners", "--max-listeners"},
		{"one is silent", []Daemon{api(fine), {Socket: "/run/w", Error: "connection refused"}}, Trouble, "/run/w does not answer: connection refused", "systemctl status"},
		{"all are silent", []Daemon{{Socket: "/run/w", Error: "timeout"}}, Unknown, "/run/w does not answer: timeout", "systemctl status"},
	} {
		v := Judge(tt.daemons)
		causes := strings.Split(tt.causes, "|")
		if v.Level != tt.level || len(v.Causes) != len(causes) || !strings.Contains(v.Next, tt.next) {
			t.Errorf("%s: %+v", tt.name, v)
			continue
		}
		for i, want := range causes {
			if !strings.Contains(v.Causes[i], want) {
				t.Errorf("%s: cause %q, want %q", tt.name, v.Causes[i], want)
			}
		}
	}
}
