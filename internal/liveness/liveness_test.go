package liveness

import (
	"testing"
	"testing/synctest"
	"time"
)

// The clock is that of the bubble: to sleep sets it forward, and takes no time.
func TestLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New("the loop", time.Minute)
		alive := func(what string) {
			t.Helper()
			if err := l.Alive(); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		time.Sleep(time.Hour)
		alive("that has not begun")
		l.Busy()
		time.Sleep(time.Minute)
		alive("at its limit")
		l.Busy()
		time.Sleep(time.Minute)
		alive("with the next thing")
		l.Idle()
		time.Sleep(time.Hour)
		alive("that waits")
		l.Busy()
		time.Sleep(90 * time.Second)
		if err := l.Alive(); err == nil || err.Error() != "the loop has not gone round for 1m30s" {
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
