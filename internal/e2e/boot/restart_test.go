//go:build linux

package boot

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/wire"
)

func (b *bootTest) restartAPI(t *testing.T) {
	c := startCrowd(t, b.Host, "api")
	began := time.Now()
	for i := range 20 {
		c.awaitMore(t, 50)
		b.Run(t, "systemctl", "restart", fmt.Sprintf("revq-api@%d", 1+i%2))
	}
	t.Logf("20 restarts in %v", time.Since(began).Round(time.Millisecond))
	c.checkNoneFailed(t, b.ear)
}

func (b *bootTest) restartSocket(t *testing.T) {
	c := startCrowd(t, b.Host, "socket")
	for range 5 {
		c.awaitMore(t, 100)
		b.Run(t, "systemctl", "restart", "revq-socket@3")
	}
	c.awaitMore(t, 100)
	c.checkNoneFailed(t, b.ear)
}

func (b *bootTest) upgrade(t *testing.T) {
	passwords := b.Shell(t, "cat /etc/revq/*.amqp-url")
	c := startCrowd(t, b.Host, "upgrade")
	c.awaitMore(t, 100)
	if out, err := b.installer(t, documented(t, "upgrade")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	c.awaitMore(t, 100)
	c.checkNoneFailed(t, b.ear)
	if b.Shell(t, "cat /etc/revq/*.amqp-url") != passwords {
		t.Error("the upgrade has changed passwords")
	}
}

// restarts returns how often systemd has restarted a unit by itself.
func (b *bootTest) restarts(t *testing.T, unit string) int {
	t.Helper()
	n, err := strconv.Atoi(b.Property(t, unit, "NRestarts"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// awaitRestart waits until a unit that had been restarted n times has been
// restarted again and runs.
func (b *bootTest) awaitRestart(t *testing.T, unit string, n int) {
	t.Helper()
	took := await.True(t, unit+" is restarted", func() bool {
		return b.restarts(t, unit) > n && b.Property(t, unit, "ActiveState") == "active"
	})
	t.Logf("%s: active again after %v", unit, took.Round(time.Millisecond))
}

func (b *bootTest) kill(t *testing.T) {
	c := startCrowd(t, b.Host, "kill")
	for _, unit := range append([]string{"revq-api@2.service", "revq-worker@2.service"}, daemons...) {
		c.awaitMore(t, 100)
		n := b.restarts(t, unit)
		b.Run(t, "systemctl", "kill", "--signal=KILL", unit)
		b.awaitRestart(t, unit, n)
	}
	c.awaitMore(t, 100)
	c.checkKept(t, b.ear)
}

func (b *bootTest) crash(t *testing.T) {
	const unit = "revq-worker@1.service"
	n := b.restarts(t, unit)
	b.Run(t, "systemctl", "kill", "--signal=QUIT", unit) // Go treats it as a crash
	b.awaitRestart(t, unit, n)
	if log := b.Run(t, "journalctl", "--no-pager", "--output=cat", "--unit="+unit); !strings.Contains(log, "goroutine ") {
		t.Error("what it was doing is not in the journal")
	}
}

func (b *bootTest) hang(t *testing.T) {
	const unit = "revq-worker@1.service"
	b.Write(t, bootTarget+"/revq-worker@1.service.d/watchdog.conf", "[Service]\nWatchdogSec=3\n")
	b.Shell(t, "systemctl daemon-reload; systemctl restart "+unit)
	n := b.restarts(t, unit)
	c := startCrowd(t, b.Host, "hang")
	c.awaitMore(t, 50)
	b.Run(t, "systemctl", "kill", "--signal=STOP", unit)
	c.awaitMore(t, 100)
	b.awaitRestart(t, unit, n)
	if b.watchdogTimeouts(t) != 1 {
		t.Error("it was not the watchdog")
	}
	c.checkNoneFailed(t, b.ear)
	b.Shell(t, "rm "+bootTarget+"/revq-worker@1.service.d/watchdog.conf; systemctl daemon-reload; systemctl restart "+unit)
}

// watchdogTimeouts returns how many daemons the watchdog has ended.
func (b *bootTest) watchdogTimeouts(t *testing.T) int {
	t.Helper()
	return strings.Count(b.Run(t, "journalctl", "--no-pager", "--output=cat"), "Watchdog timeout")
}

func (b *bootTest) restartBroker(t *testing.T) {
	c := startCrowd(t, b.Host, "broker")
	c.awaitMore(t, 100)
	b.Run(t, "systemctl", "restart", "rabbitmq-server")
	began := time.Now()
	c.awaitMore(t, 100)
	t.Logf("100 tasks accepted within %v of the broker's start", time.Since(began).Round(time.Millisecond))
	c.checkKept(t, b.ear)
	for _, unit := range daemons {
		if state := b.Property(t, unit, "ActiveState"); state != "active" {
			t.Errorf("%s is %s, want active", unit, state)
		}
	}
}

func (b *bootTest) brokerLate(t *testing.T) {
	b.Run(t, "systemctl", "stop", "rabbitmq-server", "revq.target")
	b.awaitStopped(t)
	began := time.Now()
	b.Run(t, "systemctl", "start", "revq.target")
	t.Logf("revq.target was reached after %v", time.Since(began).Round(time.Millisecond))
	p := &poster{host: b.Host, site: apiSites[0]}
	defer p.close()
	if err := p.post("too-early", "abc"); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("a text without a broker: %v, want an answer of 503", err)
	}
	for unit, want := range map[string]string{"revq-api@1": "active", "revq-worker@1": "activating", "revq-worker@2": "activating"} {
		// The manager may read that the API is ready after the API's first answer.
		await.True(t, unit+" is "+want, func() bool { return b.Property(t, unit+".service", "ActiveState") == want })
		if text := b.Property(t, unit+".service", "StatusText"); !strings.HasPrefix(text, "waiting") {
			t.Errorf("%s has the status %q, want what it waits for", unit, text)
		}
	}
	b.Run(t, "systemctl", "start", "rabbitmq-server")
	took := await.True(t, "a text is accepted", func() bool { return p.post("in-time", "abc") == nil })
	t.Logf("accepted %v after the broker had started", took.Round(time.Millisecond))
	b.ear.check(t, []string{"in-time"})
}

func (b *bootTest) wrongWorker(t *testing.T) {
	const unit = "revq-worker@9.service"
	b.Write(t, "/etc/revq/revq-worker@9.env", "REVQ_CONCURRENCY=0\n")
	if out, err := b.Try(t, "systemctl", "start", unit); err == nil {
		t.Errorf("it started: %s", out)
	}
	for name, want := range map[string]string{"ActiveState": "failed", "ExecMainStatus": "2", "NRestarts": "0"} {
		if got := b.Property(t, unit, name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	wrong := func(e entry) bool { return e.Priority == "3" && strings.Contains(e.Message, "must be 1 to ") }
	if said := b.said(t, unit); !slices.ContainsFunc(said, wrong) {
		t.Errorf("the journal does not say as an error what to change: %q", said)
	}
	out, err := b.Try(t, "revq", "status")
	t.Log(firstLine(out))
	if err == nil || !strings.HasPrefix(out, "trouble: the unit "+unit+" has failed (exit-code): ") || !strings.Contains(out, "\nnext: journalctl -u '"+unit+"' -n 20") {
		t.Errorf("revq status: %v\n%s", err, out)
	}
	b.Shell(t, "rm /etc/revq/revq-worker@9.env; systemctl start "+unit+"; systemctl stop "+unit)
}

func (b *bootTest) wrongAPI(t *testing.T) {
	const settings = "/etc/revq/revq-api@9.env"
	b.Write(t, settings, "REVQ_MAX_TEXT=none\n")
	b.Run(t, "systemctl", "start", "revq-api@9.socket")
	p := &poster{host: b.Host, site: "127.0.0.1:8089"}
	defer p.close()
	answered := make(chan error, 1)
	go func() { answered <- p.post("patient", "abc") }()
	await.True(t, "the service fails", func() bool { return b.Property(t, "revq-api@9.service", "ExecMainStatus") == "2" })
	if err := os.Remove(b.Path(settings)); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Errorf("the connection that waited: %v", err)
	}
	log := b.Run(t, "journalctl", "--no-pager", "--output=cat", "--unit=revq-api@9.service")
	if n := strings.Count(log, "REVQ_MAX_TEXT"); n < 1 || n > 2 {
		t.Errorf("it was started %d times with the wrong setting, want once or twice:\n%s", n, log)
	}
	b.ear.check(t, []string{"patient"})
	b.Run(t, "systemctl", "stop", "revq-api@9.socket")
}

// awaitStopped waits until no process of revq runs.
func (b *bootTest) awaitStopped(t *testing.T) {
	t.Helper()
	await.True(t, "everything has stopped", func() bool {
		return b.Run(t, "systemctl", "list-units", "--plain", "--no-legend", "--state=active,activating,deactivating,reloading",
			"revq*.service", "revq*.socket", "revq.target") == ""
	})
}

func (b *bootTest) stop(t *testing.T) {
	// Each worker is busy for half a minute, the API has idle connections and
	// one with half a request, and somebody listens.
	b.Write(t, "/etc/revq/revq-worker.env", "REVQ_PAUSE=10s\nREVQ_MAX_PAUSE=30s\n")
	b.Run(t, "systemctl", "restart", "revq-worker@1", "revq-worker@2")
	var ids []string
	p := &poster{host: b.Host, site: apiSites[0]}
	defer p.close()
	for i := range 30 {
		ids = append(ids, fmt.Sprintf("stop-%d", i))
		if err := p.post(ids[i], "abc"); err != nil {
			t.Fatal(err)
		}
	}
	ctx := await.Context(t)
	half, err := b.Dial(ctx, "tcp", apiSites[0])
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	if _, err := io.WriteString(half, "POST "+wire.QueuePath+" HTTP/1.1\r\nHost: x\r\n"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	b.Run(t, "systemctl", "stop", "revq.target")
	b.awaitStopped(t)
	took := time.Since(began)
	t.Logf("everything stopped within %v", took.Round(time.Millisecond))
	if took > 18*time.Second {
		t.Errorf("stopping took %v", took)
	}
	for _, unit := range daemons {
		if result := b.Property(t, unit, "Result"); result != "success" {
			t.Errorf("%s ended with %s, want success", unit, result)
		}
	}
	b.Write(t, "/etc/revq/revq-worker.env", "REVQ_PAUSE=0s\n")
	b.Run(t, "systemctl", "start", "revq.target")
	b.ear.check(t, ids) // the tasks that were returned to the queue
}
