package worker

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/task"
)

var now = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func TestBefore(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name               string
		notBefore, expires time.Duration // from now; 0 for none
		deliveries, limit  int64
		want               step
		why                string
	}{
		{"any time", 0, 0, 1, 5, attempt, ""},
		{"due", -time.Second, 0, 1, 5, attempt, ""},
		{"too early", time.Millisecond, 0, 1, 5, sendOn, ""},
		{"in time", 0, time.Millisecond, 1, 5, attempt, ""},
		{"expired", 0, -time.Millisecond, 1, 5, giveUp, "expired before its attempt 3"},
		{"expired before it is due", time.Minute, -time.Millisecond, 1, 5, giveUp, "expired before its attempt 3"},
		{"expires while it waits", time.Minute, time.Second, 1, 5, sendOn, ""},
		{"delivered as often as it may be", 0, 0, 5, 5, attempt, ""},
		{"delivered more often", 0, 0, 6, 5, giveUp, "lost their connection, 5 times"},
		{"delivered more often, and too early", time.Minute, 0, 6, 5, giveUp, "lost their connection, 5 times"},
		{"returned by a worker that stopped", 0, 0, 2, 1, attempt, ""},
		{"delivered once more", 0, 0, 3, 1, giveUp, "lost their connection, 2 times"},
	} {
		task := task.Task{ID: "a", Failed: 2}
		if tt.notBefore != 0 {
			task.NotBefore = now.Add(tt.notBefore)
		}
		if tt.expires != 0 {
			task.Expires = now.Add(tt.expires)
		}
		got := before(task, tt.deliveries, tt.limit, now)
		if got.step != tt.want || got.counted {
			t.Errorf("%s: %+v, want the step %d", tt.name, got, tt.want)
		}
		switch {
		case got.step == sendOn && got.task != task:
			t.Errorf("%s: %+v is sent on", tt.name, got.task)
		case got.step == giveUp && !strings.Contains(got.why.Error(), tt.why):
			t.Errorf("%s: %v", tt.name, got.why)
		}
	}
	expires := task.Task{Expires: now}
	if got := before(expires, 1, 5, now); got.step != giveUp {
		t.Errorf("at the very moment: %+v", got)
	}
}

func TestAfter(t *testing.T) {
	t.Parallel()
	const retries = 10
	why := errors.New("why")
	for _, tt := range []struct {
		name    string
		outcome Outcome
		failed  int64         // before
		age     time.Duration // since it was accepted
		expires time.Duration // from now; 0 for never
		jitter  float64
		want    step
		wait    time.Duration // before the next attempt
		says    string        // when it is given up
	}{
		{"done", Done, 0, 0, 0, 0, finish, 0, ""},
		{"done after its time", Done, 0, 0, -time.Second, 0, finish, 0, ""},
		{"never", Never, 0, 0, 0, 0, giveUp, 0, "why"},
		{"stopped", Stopped, 5, 0, 0, 0, giveBack, 0, ""},
		{"stopped after its time", Stopped, 5, 0, -time.Second, 0, giveBack, 0, ""},
		{"first failure", Failed, 0, 0, 0, 0, sendOn, time.Second, ""},
		{"second failure", Failed, 1, 0, 0, 0, sendOn, 2 * time.Second, ""},
		{"with jitter", Failed, 4, 0, 0, 0.5, sendOn, 20 * time.Second, ""},
		{"last retry", Failed, 9, 0, 0, 0, sendOn, 512 * time.Second, ""},
		{"last failure", Failed, 10, 0, 0, 0, giveUp, 0, "attempt 11 of 11 failed: why"},
		{"more failures than retries", Failed, 20, 0, 0, 0, giveUp, 0, "attempt 21 of 11 failed: why"},
		{"expires after the next attempt", Failed, 2, 0, 4*time.Second + 1, 0, sendOn, 4 * time.Second, ""},
		{"expires before the next attempt", Failed, 2, 0, 4 * time.Second, 0, giveUp, 0, "attempt 3 failed, and the task expires before the next one: why"},
		{"later", Later, 10, 0, 0, 1, sendOn, time.Second, ""},
		{"later, and a minute old", Later, 10, time.Minute, 0, 1, sendOn, 12 * time.Second, ""},
		{"later, and an hour old", Later, 10, time.Hour, 0, 1, sendOn, 16 * time.Second, ""},
		{"later, with jitter", Later, 10, time.Hour, 0, 0, sendOn, 8 * time.Second, ""},
		{"later, from the future", Later, 0, -time.Hour, 0, 1, sendOn, time.Second, ""},
		{"misconfigured", Misconfigured, 10, time.Hour, 0, 1, sendOn, 16 * time.Second, ""},
	} {
		before := task.Task{ID: "a", Failed: tt.failed, Accepted: now.Add(-tt.age), Last: true}
		if tt.expires != 0 {
			before.Expires = now.Add(tt.expires)
		}
		got := after(before, tt.outcome, why, retries, now, tt.jitter)
		if got.step != tt.want {
			t.Errorf("%s: %+v, want the step %d", tt.name, got, tt.want)
			continue
		}
		switch got.step {
		case giveUp:
			if got.why.Error() != tt.says || !errors.Is(got.why, why) {
				t.Errorf("%s: %q, want %q", tt.name, got.why, tt.says)
			}
		case sendOn:
			want := before
			want.NotBefore = now.Add(tt.wait)
			if tt.outcome == Failed {
				want.Failed++
			}
			if got.task != want || got.counted != (tt.outcome == Failed) {
				t.Errorf("%s: %+v, want %+v", tt.name, got, want)
			}
		}
	}
	if got := after(task.Task{}, Later, why, retries, now, 1); got.task.NotBefore.Sub(now) != laterMax {
		t.Errorf("a task that another program queued waits for %v, want %v", got.task.NotBefore.Sub(now), laterMax)
	}
}

func TestRetryWait(t *testing.T) {
	t.Parallel()
	var sum time.Duration
	for failed := int64(1); failed <= 100; failed++ {
		base := min(time.Second<<min(failed-1, 30), retryMax)
		for _, jitter := range []float64{0, 0.3, 0.7, 0.9999, 1, rand.Float64()} {
			got := retryWait(failed, jitter)
			// 10 min are 2 x 256 s and 64 s, and not more.
			if got < min(base, 576*time.Second) || got > min(base*3/2, retryMax) {
				t.Errorf("after %d failures and with the jitter %v: %v, want about %v", failed, jitter, got, base)
			}
			if n := hops(got); n > maxLegs {
				t.Errorf("a wait of %v goes through %d queues", got, n)
			}
		}
		if failed <= 10 {
			sum += retryWait(failed, 0)
		}
	}
	if sum < 17*time.Minute {
		t.Errorf("ten retries take %v in all, want 17 minutes", sum)
	}
	if a, b := retryWait(10, 0.1), retryWait(10, 0.9); a == b {
		t.Errorf("both wait for %v", a)
	}
}

// hops returns how many waiting queues a publisher needs that takes the largest
// one each time.
func hops(wait time.Duration) (n int) {
	for leg := 16384 * time.Second; leg >= time.Second; leg /= 4 {
		for ; wait >= leg; wait -= leg {
			n++
		}
	}
	return n
}

func TestLegs(t *testing.T) {
	t.Parallel()
	for wait, want := range map[time.Duration]time.Duration{
		0:                       time.Second,
		1500 * time.Millisecond: time.Second,
		3 * time.Second:         3 * time.Second,
		7 * time.Second:         6 * time.Second,
		15 * time.Second:        12 * time.Second,
		63 * time.Second:        48 * time.Second,
		70 * time.Second:        69 * time.Second,
		time.Hour:               3072 * time.Second,
	} {
		if got := legs(wait); got != want {
			t.Errorf("legs(%v) = %v, want %v", wait, got, want)
		}
	}
}

func TestTold(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		why          error
		reason, said string
	}{
		{errors.New("why"), "why", ""},
		{fails(Never), "why", "said"},
		{fmt.Errorf("attempt 3 of 3 failed: %w", fails(Failed)), "attempt 3 of 3 failed: why", "said"},
	} {
		if reason, said := told(tt.why); reason != tt.reason || said != tt.said {
			t.Errorf("told(%v) = %q, %q", tt.why, reason, said)
		}
	}
}
