package status

import (
	"slices"
	"strings"
	"testing"
	"time"

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
	now := time.Now()
	fine := func(*admin.Status) {}
	retries := func(s *admin.Status) {
		s.Worker.Retries = []admin.Retry{{ID: "t", Due: now.Add(time.Minute), Why: "exit status 1"}}
	}
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
		units   []Unit
		objects []string
	}{
		{name: "nothing", daemons: nil, level: Unknown, causes: "no daemon of revq has an admin socket", next: "--admin PATH"},
		{name: "all is well", daemons: []Daemon{api(fine), worker(fine)}, level: Well, causes: "2 daemons at work", next: "revq send"},
		{name: "tasks wait, and slots are free", daemons: []Daemon{api(wait(3, 1, 0)), worker(fine)}, level: Well, causes: "2 daemons", next: "revq send"},
		{name: "no worker", daemons: []Daemon{api(wait(3, 0, 0))}, level: Trouble, causes: "no worker takes tasks of reverse_text; 3 tasks wait", next: "systemctl start revq-worker"},
		{name: "slots", daemons: []Daemon{api(wait(1, 1, 2)), worker(func(s *admin.Status) { s.Worker.Busy = 2 })}, level: Trouble,
			causes: "all 2 slots of this host's workers of reverse_text are busy; 1 task waits|2 dead letters", next: "start more workers"},
		{name: "handler", daemons: []Daemon{api(wait(5, 1, 0)), worker(func(s *admin.Status) { s.Worker.Busy, s.Worker.Paused = 2, "the handler is out of order" })}, level: Trouble,
			causes: "tasks of reverse_text wait: the handler is out of order", next: "journalctl"},
		{name: "broker away hides all that follows", daemons: []Daemon{api(away), worker(func(s *admin.Status) { away(s); s.Worker.Paused = "x" })}, level: Trouble,
			causes: "the broker is away: connect to localhost:5672: dial tcp: connection refused", next: "rabbitmq-diagnostics status"},
		{name: "alarm", daemons: []Daemon{api(func(s *admin.Status) { s.Blocked = true; s.API.InFlight = 10 })}, level: Trouble, causes: "short of memory or disk space", next: "alarms"},
		{name: "login", daemons: []Daemon{api(func(s *admin.Status) {
			away(s)
			s.Broker[0].Why = "the broker is not connected: connect to x: Exception (403) Reason: \"username or password not allowed\""
		})}, level: Trouble, causes: "the broker refuses the login of revq-api", next: "user and the password"},
		{name: "objects", daemons: []Daemon{worker(func(s *admin.Status) {
			away(s)
			s.Broker[0].Why = "revq.tasks does not exist, and this user may not declare it"
		})},
			level: Trouble, causes: "revq.tasks does not exist", next: "revq setup"},
		{name: "hangs", daemons: []Daemon{api(func(s *admin.Status) { s.State, s.Why, s.Pid = admin.Hangs, "the loop", 7 })}, level: Trouble, causes: "revq-api hangs: the loop", next: "kill -ABRT 7"},
		{name: "dead letters", daemons: []Daemon{api(wait(0, 1, 1))}, level: Trouble, causes: "1 dead letter", next: "revq dead ls"},
		{name: "in flight", daemons: []Daemon{api(func(s *admin.Status) { s.API.InFlight = 9 })}, level: Trouble, causes: "9 of 10 texts wait", next: "rabbitmq-diagnostics"},
		{name: "listeners", daemons: []Daemon{{Status: admin.Status{Socket: &admin.Socket{Listeners: 90, MaxListeners: 100}}}}, level: Trouble, causes: "90 of 100 listeners", next: "--max-listeners"},
		{name: "one is silent", daemons: []Daemon{api(fine), {Socket: "/run/w", Error: "connection refused"}}, level: Trouble, causes: "/run/w does not answer: connection refused", next: "systemctl status"},
		{name: "all are silent", daemons: []Daemon{{Socket: "/run/w", Error: "timeout"}}, level: Unknown, causes: "/run/w does not answer: timeout", next: "systemctl status"},
		{name: "the broker is silent", daemons: []Daemon{worker(func(s *admin.Status) { s.Silent = true })}, level: Trouble,
			causes: "the broker does not answer, though revq-worker is connected", next: "rabbitmq-diagnostics"},
		{name: "busy until", daemons: []Daemon{api(wait(1, 1, 0)), worker(func(s *admin.Status) {
			s.Worker.Busy, s.Worker.Tasks = 2, []admin.Task{{Until: now.Add(time.Hour)}, {Until: now.Add(time.Minute)}}
		})}, level: Trouble, causes: "are busy, the first one until " + clock(now.Add(time.Minute)) + " at the latest; 1 task waits", next: "start more workers"},
		{name: "retries", daemons: []Daemon{api(fine), worker(retries), worker(retries)}, level: Trouble,
			causes: "2 tasks of reverse_text wait for a retry, the first one until " + clock(now.Add(time.Minute)) + ": exit status 1", next: "revq status t"},
		{name: "retries of a handler that is out of order", daemons: []Daemon{api(fine), worker(func(s *admin.Status) {
			retries(s)
			s.Worker.Paused = "the handler is out of order"
		})}, level: Trouble, causes: "tasks of reverse_text wait: the handler is out of order", next: "journalctl"},
		{name: "full", daemons: []Daemon{api(func(s *admin.Status) {
			wait(9, 1, 0)(s)
			s.Refused = &admin.Refusal{Queue: "revq.tasks", At: now.Add(-time.Second)}
		})}, level: Trouble, causes: "the broker refuses tasks for revq.tasks: the queue is full or not available; 9 tasks wait", next: "more workers"},
		{name: "no longer full", daemons: []Daemon{api(func(s *admin.Status) {
			wait(9, 1, 0)(s)
			s.Refused = &admin.Refusal{Queue: "revq.tasks", At: now.Add(-2 * time.Minute)}
		})}, level: Well, causes: "1 daemon at work", next: "revq send"},
		{name: "site", daemons: []Daemon{func() Daemon {
			d := api(func(s *admin.Status) { s.Sites = []admin.Site{{Address: "[::]:8081"}, {Address: "[::]:8082"}} })
			d.Sites = map[string]string{"[::]:8082": "timeout"}
			return d
		}()}, level: Trouble, causes: "the site [::]:8082 of revq-api is down: timeout", next: "log"},
		{name: "a unit that failed hides its socket", daemons: []Daemon{api(fine), {Socket: "/run/revq/api@2.admin", Error: "refused"}},
			units: []Unit{{"revq-api@2.service", "has failed"}}, level: Trouble, causes: "the unit revq-api@2.service has failed", next: "journalctl -u 'revq-api@2.service'"},
		{name: "only units", units: []Unit{{"revq-api@2.service", "has failed"}}, level: Trouble, causes: "the unit revq-api@2.service has failed", next: "journalctl"},
		{name: "objects", daemons: []Daemon{api(wait(3, 0, 0))}, objects: []string{"the queue revq.tasks has x-max-length 9"}, level: Trouble,
			causes: "the queue revq.tasks has x-max-length 9", next: "revq setup"},
	} {
		v := Judge(Facts{At: now, Daemons: tt.daemons, Units: tt.units, Objects: tt.objects})
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

// A systemd that does not answer is told: what has failed is not known then.
func TestJudgeWithoutUnits(t *testing.T) {
	t.Parallel()
	worker := Daemon{Socket: "/run/worker", Status: admin.Status{
		Daemon: "revq-worker", State: admin.Ready, Broker: []admin.Connection{{Role: "consumer", Connected: true}},
		Worker: &admin.Worker{Queue: "reverse_text", Slots: 2},
	}}
	v := Judge(Facts{Daemons: []Daemon{worker}, NoUnits: "nothing came within 5s"})
	want := []string{"systemd did not say which units have failed: nothing came within 5s"}
	if v.Level != Trouble || !slices.Equal(v.Causes, want) || v.Next != "systemctl list-units --all 'revq*'" {
		t.Errorf("%+v", v)
	}
}

// A daemon that has just begun is asked again while it lacks answers, and no
// longer than that.
func TestStarts(t *testing.T) {
	now := time.Now()
	connected, away := []admin.Connection{{Role: "reader", Connected: true}}, []admin.Connection{{Role: "reader", Connected: true}, {Role: "publisher"}}
	for _, tc := range []struct {
		what string
		age  time.Duration
		s    admin.Status
		want bool
	}{
		{"it waits", time.Second, admin.Status{State: admin.Waiting, Broker: connected}, true},
		{"one connection is not there yet", time.Second, admin.Status{State: admin.Ready, Broker: away}, true},
		{"the broker has not answered yet", time.Second, admin.Status{State: admin.Ready, Broker: connected, Silent: true}, true},
		{"it has all answers", time.Second, admin.Status{State: admin.Ready, Broker: connected}, false},
		{"it is old enough to have answers", 4 * time.Second, admin.Status{State: admin.Waiting, Broker: away, Silent: true}, false},
	} {
		tc.s.Started = now.Add(-tc.age)
		if got := starts(tc.s, now); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.what, got, tc.want)
		}
	}
}
