package daemon

import (
	"slices"
	"testing"
	"time"

	"github.com/revq/revq/internal/admin"
)

// Each row is one look; what the service manager knows then is what a row
// before it has said, unless that was lost.
func TestDecide(t *testing.T) {
	t.Parallel()
	const extend = "EXTEND_TIMEOUT_USEC=5000000"
	type look struct {
		at   time.Duration // after the first look
		seen seen
		want []string
		lost bool // the service manager did not take it
	}
	ready := seen{does: admin.Ready, alive: true, status: "ready"}
	waiting := seen{does: admin.Waiting, alive: true, status: "waiting: x"}
	hangs := seen{does: admin.Hangs, status: "hangs: x"}
	stopping := seen{does: admin.Stopping, alive: true, status: "stopping"}
	with := func(s seen, change func(*seen)) seen { change(&s); return s }
	guarded := func(s *seen) { s.watchdog = 160 * time.Millisecond } // a sign of life each 70 ms
	for _, tt := range []struct {
		name  string
		looks []look
	}{
		{"a usual life", []look{
			{0, waiting, []string{"STATUS=waiting: x"}, false},
			{time.Millisecond, ready, []string{"READY=1", "STATUS=ready"}, false},
			{2 * time.Second, ready, nil, false},
			{3 * time.Second, waiting, []string{"STATUS=waiting: x"}, false}, // it stays ready for the service manager
			{4 * time.Second, ready, []string{"STATUS=ready"}, false},
			{4100 * time.Millisecond, stopping, []string{"STOPPING=1", extend, "STATUS=stopping"}, false},
			{4200 * time.Millisecond, stopping, nil, false},
			{5100 * time.Millisecond, stopping, []string{extend}, false},
		}},
		{"a status waits for its second", []look{
			{0, ready, []string{"READY=1", "STATUS=ready"}, false},
			{999 * time.Millisecond, waiting, nil, false},
			{time.Second, waiting, []string{"STATUS=waiting: x"}, false},
			{1500 * time.Millisecond, ready, nil, false},
			{1600 * time.Millisecond, waiting, nil, false},
			{2 * time.Second, waiting, nil, false}, // it has come back to what was told
		}},
		{"patience has an end", []look{
			{0, waiting, []string{"STATUS=waiting: x"}, false},
			{2 * time.Second, with(waiting, func(s *seen) { s.impatient = true }), []string{"READY=1"}, false},
			{3 * time.Second, ready, []string{"STATUS=ready"}, false},
		}},
		{"who hangs is not ready, gives no sign, and asks for no time", []look{
			{0, with(hangs, func(s *seen) { s.impatient = true; guarded(s) }), []string{"STATUS=hangs: x"}, false},
			{time.Second, with(stopping, func(s *seen) { s.alive = false; guarded(s) }), []string{"STOPPING=1", "STATUS=stopping"}, false},
			{3 * time.Second, with(stopping, func(s *seen) { s.alive = false; guarded(s) }), nil, false},
		}},
		{"signs of life", []look{
			{0, with(ready, guarded), []string{"READY=1", "WATCHDOG=1", "STATUS=ready"}, false},
			{69 * time.Millisecond, with(ready, guarded), nil, false},
			{70 * time.Millisecond, with(ready, guarded), []string{"WATCHDOG=1"}, false},
			{100 * time.Millisecond, with(hangs, guarded), nil, false},
			{2 * time.Second, with(stopping, guarded), []string{"STOPPING=1", "WATCHDOG=1", extend, "STATUS=stopping"}, false},
		}},
		{"what was lost is said again, if it still holds", []look{
			{0, ready, []string{"READY=1", "STATUS=ready"}, true},
			{time.Millisecond, waiting, []string{"STATUS=waiting: x"}, true},
			{2 * time.Millisecond, stopping, []string{"STOPPING=1", extend, "STATUS=stopping"}, true},
			{3 * time.Millisecond, stopping, []string{"STOPPING=1", extend, "STATUS=stopping"}, false},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			began, knows := time.Now(), told{}
			for i, look := range tt.looks {
				look.seen.at = began.Add(look.at)
				say, then := decide(look.seen, knows)
				if !slices.Equal(say, look.want) {
					t.Errorf("look %d says %q, want %q", i+1, say, look.want)
				}
				if !look.lost {
					knows = then
				}
			}
		})
	}
}
