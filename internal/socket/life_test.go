package socket

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/token"
)

func TestDecide(t *testing.T) {
	cfg := DefaultConfig()
	cfg.PingInterval, cfg.WriteTimeout = 20*time.Second, 10*time.Second
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	revoked := expired(t, now)
	later := now.Add(time.Nanosecond)
	for _, tt := range []struct {
		name string
		l    listener
		do   action
		why  *farewell
	}{
		{"before its ping", listener{pingAt: later}, keep, nil},
		{"a ping is due", listener{pingAt: now}, ping, nil},
		{"has not answered, the next ping is not due", listener{pingAt: later, silent: true}, keep, nil},
		{"has not answered", listener{pingAt: now, silent: true}, drop, nil},
		{"events: need no answer", listener{pingAt: now, silent: true, dialect: eventsDialect{}}, ping, nil},
		{"not greeted", listener{pingAt: now, pos: feed.Pending}, ping, nil},
		{"not greeted for an interval", listener{pingAt: now, pos: feed.Pending, waited: true}, dismiss, &byeNoBroker},
		{"not greeted for an interval, and silent", listener{pingAt: now, pos: feed.Pending, waited: true, silent: true}, dismiss, &byeNoBroker},
		{"greeted late", listener{pingAt: now, waited: true}, ping, nil},
		{"blocked", listener{phase: blocked, since: ago(10 * time.Second), pingAt: later}, keep, nil},
		{"blocked when a ping is due", listener{phase: blocked, since: ago(time.Second), pingAt: now}, ping, nil},
		{"blocked for too long", listener{phase: blocked, since: ago(10*time.Second + 1), pingAt: now, silent: true}, force, &byeTooSlow},
		{"blocked for too long after a farewell", listener{phase: blocked, since: ago(10*time.Second + 1), leaving: true}, force, &byeTooSlow},
		{"its farewell is blocked", listener{phase: blocked, since: ago(closeGrace), leaving: true, slow: true}, keep, nil},
		{"its farewell is blocked for too long", listener{phase: blocked, since: ago(closeGrace + 1), leaving: true, slow: true}, drop, nil},
		{"takes its farewell after all", listener{since: ago(time.Hour), leaving: true, slow: true}, keep, nil},
		{"leaves", listener{pingAt: now, leaving: true, silent: true}, keep, nil},
		{"has left", listener{phase: left, since: ago(closeGrace), leaving: true}, keep, nil},
		{"does not close", listener{phase: left, since: ago(closeGrace + 1), leaving: true}, drop, nil},
		{"revoked", listener{pingAt: later, permit: revoked}, dismiss, &byeRevoked},
		{"revoked, and blocked", listener{phase: blocked, since: ago(time.Hour), permit: revoked}, dismiss, &byeRevoked},
		{"revoked after its farewell", listener{phase: left, since: ago(closeGrace), leaving: true, permit: revoked}, keep, nil},
	} {
		if tt.l.dialect == nil {
			tt.l.dialect = websocketDialect{}
		}
		if do, why := tt.l.decide(now, &cfg); do != tt.do || why != tt.why {
			t.Errorf("%s: %d, %v, want %d, %v", tt.name, do, why, tt.do, tt.why)
		}
	}
}

// expired returns the permit of a token that expires now.
func expired(t *testing.T, now time.Time) *token.Permit {
	t.Helper()
	secret, hash := token.New()
	f := token.NewFile()
	f.Path = filepath.Join(t.TempDir(), "tokens")
	line := token.Grant{Scope: token.Listen, Expires: now}.Line(hash)
	if err := os.WriteFile(f.Path, []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.Load(); err != nil {
		t.Fatal(err)
	}
	permit, err := f.Check(secret, now.Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return permit
}

func TestToldBy(t *testing.T) {
	for _, tt := range []struct {
		elapsed   time.Duration
		all, want int
	}{
		{0, 0, 0}, {0, 100, 0}, {10 * time.Millisecond, 100, 10}, {time.Second, 100, 100},
		{0, 90_000, 0}, {time.Second, 90_000, 30_000}, {dismissAll, 90_000, 90_000},
	} {
		if got := toldBy(tt.elapsed, tt.all); got != tt.want {
			t.Errorf("of %d after %v: %d, want %d", tt.all, tt.elapsed, got, tt.want)
		}
	}
}
