package stack

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

func readSlack(t *testing.T) time.Duration {
	t.Helper()
	out, err := exec.Command("cat", "/proc/self/timerslack_ns").Output()
	if err != nil {
		t.Fatal(err)
	}
	ns, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(ns)
}

func TestTimerSlack(t *testing.T) {
	before := readSlack(t)
	withTimerSlack(func() {
		if got := readSlack(t); got != timerSlack {
			t.Errorf("a child has a timer slack of %v, want %v", got, timerSlack)
		}
	})
	if after := readSlack(t); after != before {
		t.Errorf("the timer slack is %v afterwards, want %v as before", after, before)
	}
	for _, daemon := range []string{"api", "socket", "worker"} {
		unit := "../../systemd/revq-" + daemon + "@.service"
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		if want := "\nTimerSlackNSec=1ms\n"; !strings.Contains(string(text), want) || timerSlack != time.Millisecond {
			t.Errorf("%s has another timer slack than %v", unit, timerSlack)
		}
	}
}
