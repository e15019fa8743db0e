//go:build linux

package boot

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/daemon/daemontest"
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
	if out, err := b.installer(t, documented(t, "broker")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const setting = "dead_letter_worker_publisher_confirm_timeout"
	if got := b.Run(t, "rabbitmqctl", "-q", "eval", "application:get_env(rabbit, "+setting+")."); got != "{ok,2000}" {
		t.Errorf("RabbitMQ has %s = %s, want {ok,2000}", setting, got)
	}
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
