package liveness

import (
	"testing"
	"testing/synctest"
	"time"
)

// The clock is that of the bubble: its timers go off when all others wait, and
// take no time.
func TestLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New("the loop", time.Minute)
		alive := func(what string) {
			t.Helper()
			if err := l.Alive(); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		<-time.After(time.Hour)
		alive("that has not begun")
		l.Busy()
		<-time.After(time.Minute)
		alive("at its limit")
		l.Busy()
		<-time.After(time.Minute)
		alive("with the next thing")
		l.Idle()
		<-time.After(time.Hour)
		alive("that waits")
		l.Busy()
		<-time.After(90 * time.Second)
		if err := l.Alive(); err == nil || err.Error() != "the loop hangs: it has been busy with one thing for 1m30s" {
			t.Errorf("that hangs: %v", err)
		}
		l.Busy()
		alive("that goes on after all")
	})
}

func TestNobodyLooks(t *testing.T) {
	var l *Loop
	l.Busy()
	l.Idle()
}
