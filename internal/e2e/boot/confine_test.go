//go:build linux

package boot

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/wire"
)

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
