//go:build linux

package boot

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/daemon/daemontest"
	"github.com/revq/revq/internal/wire"
)

var bootRelease = flag.String("boot.release", "", "release of Debian that TestBoot boots, such as trixie; this machine's own system by default")

// The sites of a booted host, by the numbers of their units.
var apiSites = []string{"127.0.0.1:8081", "127.0.0.1:8082"}

const (
	bootSource = "/srv/revq"           // the clone of this repository, in the host
	bootTarget = "/etc/systemd/system" // where administrators put drop-ins

	// elsewhere is an address of the host that is neither its loopback address
	// nor the broker's.
	elsewhere = "192.0.2.1"
)

// A bootTest is revq on a booted host.
type bootTest struct {
	*Host
	ear *ear // listens from the installation on
}

// revq on a real systemd with Debian's own RabbitMQ, installed and removed with
// the commands of systemd/README.md. The subtests run one after another on the
// same host.
func TestBoot(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a host")
	}
	t.Parallel()
	root := "/"
	if *bootRelease != "" {
		root = Debian(t, *bootRelease)
	}
	b := &bootTest{Host: Start(t, root)}
	t.Logf("%s; RabbitMQ %s", firstLine(b.Run(t, "systemctl", "--version")), b.Run(t, "rabbitmqctl", "-q", "version"))
	b.Run(t, "ip", "address", "add", elsewhere+"/32", "dev", "lo")
	b.copySource(t)
	b.Run(t, "install", "-d", "-m", "700", "/etc/credstore")
	before := b.inventory(t)

	if !t.Run("the documented commands install and start it", b.install) {
		return
	}
	for _, part := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"systemd has nothing to say against the units", b.verify},
		{"the exposure of each service is 1.0 at most", b.exposure},
		{"the first connection starts a service", b.onDemand},
		{"a site is open to other hosts", b.otherHosts},
		{"the sites speak TLS where the host has a certificate", b.tls},
		{"only those who have a token are let in where the host has tokens", b.tokens},
		{"workers are added and set one by one", b.moreWorkers},
		{"the status says how a daemon stands", b.status},
		{"root and the group revq-admin see how all daemons do, and nobody else", b.look},
		{"what was stopped stays stopped when somebody looks", b.lookOnly},
		{"the metrics of all daemons are at one address", b.metrics},
		{"a new operator sees what is wrong with Prometheus and revq status", b.monitor},
		{"a start is a few lines in the journal, with their levels", b.journal},
		{"the API restarts 20 times and no request fails", b.restartAPI},
		{"the socket server restarts and nothing is missed", b.restartSocket},
		{"an upgrade drops nothing", b.upgrade},
		{"whatever is killed comes back and nothing is lost", b.kill},
		{"a crash is no wrong setting", b.crash},
		{"a worker that hangs is restarted and others do its tasks", b.hang},
		{"RabbitMQ restarts and nothing is lost", b.restartBroker},
		{"the daemons start before the broker", b.brokerLate},
		{"a wrong setting stops a worker", b.wrongWorker},
		{"a wrong setting leaves the socket open until it is fixed", b.wrongAPI},
		{"memory is limited", b.memory},
		{"the sandbox forbids the rest", b.sandbox},
		{"everything stops in time", b.stop},
		{"nothing tells the secrets", b.secrets},
	} {
		t.Run(part.name, part.run)
	}
	t.Run("uninstalling leaves nothing", func(t *testing.T) { b.uninstall(t, before) })
	if t.Failed() {
		t.Logf("journal:\n%s", b.Run(t, "journalctl", "--no-pager", "--lines=400", "--output=short-precise"))
	}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// copySource builds the programs as systemd/README.md says, and copies them, the
// directory systemd and the examples of handlers to the host.
func (b *bootTest) copySource(t *testing.T) {
	t.Helper()
	repository, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	clone := b.Path(bootSource)
	if err := os.MkdirAll(clone, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"systemd", "internal/handler/examples"} {
		if err := os.CopyFS(filepath.Join(clone, dir), os.DirFS(filepath.Join(repository, dir))); err != nil {
			t.Fatal(err)
		}
	}
	// The commands of the README, but with bin/ in the host.
	build := strings.Replace(documented(t, "build"), "-o bin/", "-o "+filepath.Join(clone, "bin")+"/", 1)
	cmd := exec.Command("bash", "-euc", build)
	cmd.Dir = repository
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", build, err, out)
	}
}

// documented returns the commands in systemd/README.md that follow the mark.
func documented(t *testing.T, mark string) string {
	t.Helper()
	return documentedIn(t, "systemd/README.md", mark)
}

// documentedIn returns the commands in a page that follow the mark.
func documentedIn(t *testing.T, page, mark string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../..", page))
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)<!-- " + mark + " -->\n```[a-z]+\n(.*?)```").FindSubmatch(text)
	if block == nil {
		t.Fatalf("%s has no commands marked %q", page, mark)
	}
	return string(block[1])
}

// inventory lists everything that an installation could leave.
func (b *bootTest) inventory(t *testing.T) string {
	t.Helper()
	var lines []string
	for _, file := range b.Written(t) {
		if !strings.HasPrefix(file, "/var/lib/rabbitmq/") && !strings.HasPrefix(file, "/var/log/") && !isAccounts(file) {
			lines = append(lines, file)
		}
	}
	return strings.Join(lines, "\n") + "\n" + b.Shell(t, `
		find /run /tmp /var/tmp -iname '*revq*' | sort
		rabbitmqctl -q list_vhosts; rabbitmqctl -q list_users
		systemctl list-units --all --plain --no-legend 'revq*'; systemctl list-unit-files --no-legend 'revq*' || :
		getent passwd; cat /etc/group; ps -eo comm= | grep revq || :`)
}

// isAccounts reports whether a file is one of those of users and groups: making
// and removing a group writes them again.
func isAccounts(file string) bool {
	return strings.HasPrefix(file, "/etc/group") || strings.HasPrefix(file, "/etc/gshadow") || file == "/etc/.pwd.lock"
}

// installerTimeout is the time limit of systemd/install, which starts rabbitmqctl
// several times. Measured: 10 s, and more than a minute on a machine that is busy
// with other things.
const installerTimeout = 5 * time.Minute

// installer runs a script that calls systemd/install, in the clone.
func (b *bootTest) installer(t *testing.T, script string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), installerTimeout)
	defer cancel()
	out, err := b.Command(ctx, "bash", "-euc", "cd "+bootSource+"\n"+script).CombinedOutput()
	return string(out), err
}

func (b *bootTest) install(t *testing.T) {
	out, err := b.installer(t, documented(t, "install"))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Log(out)
	b.ear = startEar(t, b.Host)
	if got := b.Run(t, "revq", "send", "--wait", "--text", "abcdef"); got != "fedcba" {
		t.Errorf("revq send --wait printed %q, want fedcba", got)
	}
	await.True(t, "revq listen has the result", func() bool {
		b.ear.mu.Lock()
		defer b.ear.mu.Unlock()
		return len(b.ear.times) == 1
	})
	for _, unit := range []string{"revq.target", "revq-api@1.socket", "revq-api@2.socket", "revq-socket@3.socket",
		"revq-worker@1.service", "revq-worker@2.service", "revq-setup.service"} {
		if state := b.Property(t, unit, "ActiveState"); state != "active" {
			t.Errorf("%s is %s, want active", unit, state)
		}
	}
}

func (b *bootTest) verify(t *testing.T) {
	out, err := b.Try(t, "systemd-analyze", append([]string{"verify", "--man=no"}, append(others, services...)...)...)
	checkVerified(t, out, err)
}

func (b *bootTest) exposure(t *testing.T) {
	for _, unit := range services {
		checkExposure(t, unit, b.Run(t, "systemd-analyze", "security", "--no-pager", unit))
	}
}

func (b *bootTest) onDemand(t *testing.T) {
	inactive := func(unit string) {
		if state := b.Property(t, unit, "ActiveState"); state != "inactive" {
			t.Errorf("%s is %s before the first connection, want inactive", unit, state)
		}
	}
	const api, socket = "revq-api@2.service", "revq-socket@6.service"
	inactive(api)
	began := time.Now()
	p := &poster{host: b.Host, site: apiSites[1]}
	defer p.close()
	if err := p.post("on-demand", "abc"); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s answered after %v", api, time.Since(began).Round(time.Millisecond))

	b.Run(t, "systemctl", "start", "revq-socket@6.socket")
	inactive(socket)
	began = time.Now()
	b.Run(t, "revq", "listen", "--url", "ws://127.0.0.1:8086", "--after", "-1", "--count", "1")
	t.Logf("%s sent the first result after %v", socket, time.Since(began).Round(time.Millisecond))
	for _, unit := range []string{api, socket} {
		if state := b.Property(t, unit, "ActiveState"); state != "active" {
			t.Errorf("%s is %s after it, want active", unit, state)
		}
	}
	b.Run(t, "systemctl", "stop", "revq-socket@6.socket")
	b.ear.check(t, []string{"on-demand"})
}

func (b *bootTest) otherHosts(t *testing.T) {
	p := &poster{host: b.Host, site: elsewhere + ":8081"}
	defer p.close()
	if err := p.post("from-abroad", "abc"); err != nil {
		t.Error(err)
	}
	b.ear.check(t, []string{"from-abroad"})
}

func (b *bootTest) tls(t *testing.T) {
	dir := t.TempDir()
	daemontest.Certify(t, dir)
	for from, to := range map[string]string{"tls-cert": "fullchain.pem", "tls-key": "privkey.pem"} {
		content, err := os.ReadFile(filepath.Join(dir, from))
		if err != nil {
			t.Fatal(err)
		}
		b.Write(t, "/srv/tls/"+to, string(content))
	}
	b.Shell(t, "cd /srv/tls\n"+documented(t, "tls"))
	const send = "revq send --ca /srv/tls/fullchain.pem --url https://127.0.0.1:8081 --socket-url wss://127.0.0.1:8083 --wait ghijkl"
	if got := b.Shell(t, send); got != "lkjihg" {
		t.Errorf("revq send --wait printed %q, want lkjihg", got)
	}
	p := &poster{host: b.Host, site: apiSites[0]}
	defer p.close()
	if err := p.post("in-clear", "abc"); err == nil {
		t.Error("a site with a certificate answers without TLS, too")
	}
	b.Shell(t, "rm -r /etc/credstore/* /srv/tls; systemctl try-restart 'revq-api@*.service' 'revq-socket@*.service'")
	if err := p.post("after-tls", "abc"); err != nil {
		t.Errorf("without a certificate again: %v", err)
	}
	b.ear.check(t, []string{"after-tls"})
}

func (b *bootTest) moreWorkers(t *testing.T) {
	b.Write(t, "/etc/revq/revq-worker.env", "REVQ_PAUSE=0s\n")
	b.Write(t, "/etc/revq/revq-worker@3.env", "REVQ_PAUSE=200ms\nREVQ_MAX_PAUSE=5s\n")
	b.Shell(t, "systemctl try-restart 'revq-worker@*'; systemctl start revq-worker@{3,4}")
	for unit, pause := range map[string]string{"revq-worker@1": "0s", "revq-worker@3": "200ms", "revq-worker@4": "0s"} {
		environment := b.Shell(t, "tr '\\0' '\\n' </proc/$(systemctl show --value -p MainPID "+unit+")/environ")
		if !slices.Contains(strings.Fields(environment), "REVQ_PAUSE="+pause) {
			t.Errorf("%s has not REVQ_PAUSE=%s in\n%s", unit, pause, environment)
		}
	}
	b.Run(t, "systemctl", "stop", "revq-worker@3", "revq-worker@4")
}

func (b *bootTest) status(t *testing.T) {
	for _, unit := range daemons {
		process := b.Property(t, unit, "MainPID")
		b.Run(t, "systemctl", "reload", unit)
		if now := b.Property(t, unit, "MainPID"); now != process {
			t.Errorf("%s has been restarted by a reload", unit)
		}
		text := b.Property(t, unit, "StatusText")
		t.Logf("%s: %s", unit, text)
		if !strings.HasPrefix(text, "ready") {
			t.Errorf("%s has the status %q, want ready", unit, text)
		}
	}
}

// lookAs runs revq status as a user who owns nothing, in a group.
func (b *bootTest) lookAs(t *testing.T, group string) (string, error) {
	t.Helper()
	return b.Try(t, "bash", "-c", "setpriv --reuid=65534 --regid=65534 --groups=$(getent group "+group+" | cut -d: -f3) revq status")
}

func (b *bootTest) look(t *testing.T) {
	seen := b.Run(t, "revq", "status")
	t.Log(seen)
	sockets := []string{"api@1", "api@2", "socket@3", "worker@1", "worker@2"}
	for _, name := range sockets {
		if !strings.Contains(seen, "/run/revq/"+name+".admin") {
			t.Errorf("revq status does not show %s", name)
		}
	}
	if out, err := b.lookAs(t, "revq-admin"); err != nil || !strings.HasPrefix(out, "well: ") {
		t.Errorf("for a member of the group: %v\n%s", err, out)
	}
	out, err := b.lookAs(t, "nogroup")
	if err == nil || !strings.Contains(out, "permission denied") || strings.Contains(out, "listeners") {
		t.Errorf("for another user: %v\n%s", err, out)
	}
	for _, name := range sockets {
		if mode := b.Run(t, "stat", "--format=%U %G %a", "/run/revq/"+name+".admin"); mode != "root revq-admin 660" {
			t.Errorf("the admin socket of %s is %s, want root revq-admin 660", name, mode)
		}
	}
}

func (b *bootTest) lookOnly(t *testing.T) {
	// A worker whose admin socket alone is there is started by the first look.
	b.Run(t, "systemctl", "start", "revq-admin-worker@4.socket")
	if out, err := b.Try(t, "revq", "status"); !strings.Contains(out, "/run/revq/worker@4.admin") {
		t.Errorf("the worker was not started: %v\n%s", err, out)
	}
	await.True(t, "the worker takes tasks", func() bool { return b.Property(t, "revq-worker@4", "ActiveState") == "active" })
	b.Run(t, "systemctl", "stop", "revq-worker@4", "revq-api@2")
	if out, err := b.Try(t, "revq", "status"); !strings.Contains(out, "/run/revq/api@1.admin") {
		t.Errorf("without the second API: %v\n%s", err, out)
	}
	for _, unit := range []string{"revq-worker@4.service", "revq-admin-worker@4.socket", "revq-api@2.service"} {
		if state := b.Property(t, unit, "ActiveState"); state != "inactive" {
			t.Errorf("%s is %s after a look, want inactive", unit, state)
		}
	}
	b.Run(t, "systemctl", "start", "revq-api@2")
	if out, err := b.Try(t, "revq", "status"); !strings.Contains(out, "/run/revq/api@2.admin") || strings.Contains(out, "worker@4") || !strings.HasPrefix(out, "well: ") {
		t.Errorf("after a new start of the API: %v\n%s", err, out)
	}
}

// metrics scrapes the address of revq-metrics, whose first request starts it.
func (b *bootTest) metrics(t *testing.T) {
	b.Run(t, "systemctl", "start", "revq-metrics.socket")
	page := b.Run(t, "curl", "--silent", "--show-error", "--fail", "--max-time", "20", "http://127.0.0.1:8090/metrics")
	for _, want := range []string{
		`revq_up{daemon="api@1"} 1`, `revq_up{daemon="api@2"} 1`, `revq_up{daemon="socket@3"} 1`, `revq_up{daemon="worker@1"} 1`, `revq_up{daemon="worker@2"} 1`,
		`revq_api_texts_total{result="accepted",daemon="api@1"} `, `revq_socket_listeners{format="text",daemon="socket@3"} `, `revq_worker_slots{queue="reverse_text",daemon="worker@2"} `,
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	if t.Failed() {
		t.Logf("%.4000s", page)
	}
	if state := b.Property(t, "revq-metrics.service", "ActiveState"); state != "active" {
		t.Errorf("revq-metrics.service is %s", state)
	}
	b.Run(t, "systemctl", "stop", "revq-metrics.socket", "revq-metrics.service")
}

// An entry is one of the journal.
type entry struct {
	Priority string `json:"PRIORITY"`
	Message  string `json:"MESSAGE"`
}

// said returns what the processes of a unit have written to the journal since
// its last start.
func (b *bootTest) said(t *testing.T, unit string) (entries []entry) {
	t.Helper()
	out := b.Run(t, "journalctl", "--no-pager", "--output=json", "_SYSTEMD_INVOCATION_ID="+b.Property(t, unit, "InvocationID"))
	for line := range strings.Lines(out) {
		var e entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		entries = append(entries, e)
	}
	return entries
}

func (b *bootTest) journal(t *testing.T) {
	for _, unit := range daemons {
		b.Run(t, "systemctl", "restart", unit)
		await.True(t, unit+" is ready", func() bool {
			return slices.ContainsFunc(b.said(t, unit), func(e entry) bool { return e == entry{"6", "level=INFO msg=ready"} })
		})
		entries := b.said(t, unit)
		t.Logf("%s: %q", unit, entries)
		news := 0
		for _, e := range entries {
			level := map[string]string{"level=INFO": "6", "level=WARN": "4"}
			if name, _, _ := strings.Cut(e.Message, " "); e.Priority != level[name] {
				t.Errorf("%s: %q has the priority %s", unit, e.Message, e.Priority)
			}
			if e.Priority == "6" {
				news++
			}
		}
		if news > 2 {
			t.Errorf("the start of %s is %d lines besides warnings, want 2 at most", unit, news)
		}
	}
}

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

func (b *bootTest) memory(t *testing.T) {
	const unit = "revq-api@2.service"
	b.Write(t, bootTarget+"/revq-api@2.service.d/memory.conf", "[Service]\nMemoryMax=64M\nEnvironment=GOMEMLIMIT=48MiB\n")
	b.Shell(t, "systemctl daemon-reload; systemctl restart "+unit)
	if limit := b.Property(t, unit, "MemoryMax"); limit != strconv.Itoa(64<<20) {
		t.Fatalf("MemoryMax is %s, want 64M", limit)
	}
	if !strings.Contains(b.Run(t, "cat", "/sys/fs/cgroup/cgroup.controllers"), "memory") {
		b.limitFromOutside(t, unit, 64<<20)
	}
	n := b.restarts(t, unit)
	// Each connection makes the API hold most of a megabyte.
	body := strings.Repeat("x", 1<<20-1)
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	ctx := await.Context(t)
	for range 150 {
		conn, err := b.Dial(ctx, "tcp", apiSites[1])
		if err != nil {
			break
		}
		conns = append(conns, conn)
		if err := conn.SetDeadline(time.Now().Add(await.Patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: %d\r\n\r\n%s", wire.QueuePath, 1<<20, body); err != nil {
			break // it was killed
		}
	}
	b.awaitRestart(t, unit, n)
	for i, site := range apiSites {
		p := &poster{host: b.Host, site: site}
		defer p.close()
		if err := p.post(fmt.Sprintf("memory-%d", i), "abc"); err != nil {
			t.Errorf("%s does not work: %v", site, err)
		}
	}
	b.ear.check(t, []string{"memory-0", "memory-1"})
	b.Shell(t, "rm "+bootTarget+"/revq-api@2.service.d/memory.conf; systemctl daemon-reload; systemctl restart "+unit)
}

// limitFromOutside sets the limit of a unit where systemd cannot: if this
// machine has the memory controller in a hierarchy of version 1, a container
// has none.
func (b *bootTest) limitFromOutside(t *testing.T, unit string, bytes int) {
	t.Helper()
	group, err := os.MkdirTemp("/sys/fs/cgroup/memory", "revq-boot-")
	if err != nil {
		t.Skipf("this machine gives a container no memory controller of its own: %v", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(group); err != nil {
			t.Error(err)
		}
	})
	for _, file := range []struct {
		name  string
		value int
	}{{"memory.limit_in_bytes", bytes}, {"cgroup.procs", b.PID(t, b.Property(t, unit, "MainPID"))}} {
		if err := os.WriteFile(filepath.Join(group, file.name), []byte(strconv.Itoa(file.value)), 0); err != nil {
			t.Fatal(err)
		}
	}
}

// probe tries what a service must not be able to do, and what it must. Each
// line of its output is a name and yes or no.
const probe = `#!/bin/bash
try() { if timeout 5 bash -c "$2" >/dev/null 2>&1; then echo "$1: yes"; else echo "$1: no"; fi; }
for d in / /etc /usr/local/bin /var/lib /var/tmp /tmp /run /run/lock /dev/shm /home /root /srv; do
	try "write in $d" "echo x >$d/revq-probe && rm $d/revq-probe"
done
try "read the setup user's URL" "cat /etc/revq/setup.amqp-url"
try "read the credentials of others" "cat /run/credentials/revq-worker@2.service/amqp-url"
try "read /etc/shadow" "cat /etc/shadow"
try "look into homes" "ls /home /root"
try "see other processes" "ls /proc/1/"
try "see the kernel's settings" "cat /proc/sys/kernel/ostype"
try "become root in a namespace" "unshare --user --map-root-user true"
try "mount" "mount -t tmpfs none /mnt && umount /mnt"
try "change priorities" "nice -n -1 true 2>&1 | (! grep .)"
try "connect to another address" "exec 3<>/dev/tcp/` + elsewhere + `/8081"
try "connect to the broker" "exec 3<>/dev/tcp/127.0.0.1/5672"
try "read its own URL" "grep -q amqp:// ${CREDENTIALS_DIRECTORY:-/etc/revq/}/*amqp-url"
`

func (b *bootTest) sandbox(t *testing.T) {
	b.Write(t, "/srv/probe", probe)
	b.Run(t, "chmod", "+x", "/srv/probe")
	free := answers(b.Run(t, "/srv/probe"))
	for what, answer := range free {
		if answer != "yes" {
			t.Errorf("root cannot %s: this shows nothing", what)
		}
	}
	mayDo := []string{"connect to the broker", "read its own URL"}
	units := []string{"revq-api@7", "revq-socket@6", "revq-worker@7"}
	for _, unit := range units {
		b.Write(t, bootTarget+"/"+unit+".service.d/probe.conf", fmt.Sprintf(`[Service]
Type=oneshot
Restart=no
WatchdogSec=0
ExecStart=
ExecStart=/srv/probe
StandardOutput=append:/run/probed-%s
`, unit))
	}
	b.Shell(t, "systemctl daemon-reload; systemctl start "+strings.Join(units, " "))
	for _, unit := range units {
		confined := answers(b.Run(t, "cat", "/run/probed-"+unit))
		if len(confined) != len(free) {
			t.Errorf("%s: %d answers, want %d: %v", unit, len(confined), len(free), confined)
		}
		for what, answer := range confined {
			if may := slices.Contains(mayDo, what); may != (answer == "yes") {
				t.Errorf("may %s %s? %s", unit, what, answer)
			}
		}
		b.Shell(t, "systemctl stop '"+unit+".*'; rm -r "+bootTarget+"/"+unit+".service.d /run/probed-"+unit)
	}
	b.Run(t, "systemctl", "daemon-reload")
	b.Run(t, "rm", "/srv/probe")
	t.Logf("root may do all of the %d things, the services only: %s", len(free), strings.Join(mayDo, ", "))
}

func answers(out string) map[string]string {
	found := make(map[string]string)
	for line := range strings.Lines(out) {
		what, answer, _ := strings.Cut(strings.TrimSpace(line), ": ")
		found[what] = answer
	}
	return found
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

// shown returns how many lines of the journal, and of the properties of units,
// hold a secret, and which other logs, files and processes do: what every user
// can see.
func (b *bootTest) shown(t *testing.T, secret string) string {
	t.Helper()
	b.Write(t, "/run/needle", secret+"\n")
	return b.Shell(t, `set +e
		journalctl --no-pager --output=export | grep -caFf /run/needle
		grep -rlaFf /run/needle /var/log /tmp /var/tmp
		systemctl show --all 'revq*' | grep -caFf /run/needle
		for p in $(systemctl show --value -p MainPID 'revq-*.service'); do
			[ $p = 0 ] || grep -laFf /run/needle /proc/$p/cmdline /proc/$p/environ
		done
		rm /run/needle`)
}

func (b *bootTest) secrets(t *testing.T) {
	for _, role := range []string{"api", "worker", "socket", "setup"} {
		url, err := os.ReadFile(b.Path("/etc/revq/" + role + ".amqp-url"))
		if err != nil {
			t.Fatal(err)
		}
		found := regexp.MustCompile(`^amqp://revq-` + role + `:([0-9a-f]{64})@localhost/revq\n$`).FindSubmatch(url)
		if found == nil {
			t.Fatalf("the URL of %s is not as expected", role)
		}
		out := b.shown(t, string(found[1]))
		if out != "0\n0" {
			t.Errorf("the password of %s is in the journal, in files, or in properties of units (lines in each):\n%s", role, out)
		}
	}
	if n := b.watchdogTimeouts(t); n != 1 {
		t.Errorf("the journal has %d watchdog timeouts, want the one that was made", n)
	}
}

func (b *bootTest) uninstall(t *testing.T, before string) {
	b.Shell(t, "systemctl enable -q --now revq-worker@5; systemctl stop 'revq-worker@*'; systemctl set-property revq.slice CPUWeight=200")
	b.Write(t, bootTarget+"/revq-.service.d/mine.conf", "[Service]\nCPUWeight=50\n")
	b.Run(t, "revq", "send", "--text", "not done yet")
	if out, err := b.installer(t, documented(t, "uninstall")); err == nil || !strings.Contains(out, "1 tasks or dead letters are still at the broker") {
		t.Fatalf("with a task that waits: %v, want a refusal\n%s", err, out)
	}
	b.Shell(t, "systemctl start revq.target")
	await.True(t, "the task is done", func() bool {
		return b.Shell(t, "rabbitmqctl -q -p revq list_queues name messages | grep tasks | cut -f2") == "0"
	})
	b.Run(t, "systemctl", "stop", "ear")
	out, err := b.installer(t, documented(t, "uninstall"))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Log(out)
	if after := b.inventory(t); after != before {
		t.Errorf("something is left, or missing:\n%s", difference(before, after))
	}
}

// difference returns the lines that only one of two texts has.
func difference(before, after string) string {
	var lines []string
	was, is := strings.Split(before, "\n"), strings.Split(after, "\n")
	for _, line := range was {
		if !slices.Contains(is, line) {
			lines = append(lines, "- "+line)
		}
	}
	for _, line := range is {
		if !slices.Contains(was, line) {
			lines = append(lines, "+ "+line)
		}
	}
	return strings.Join(lines, "\n")
}
