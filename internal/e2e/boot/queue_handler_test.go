//go:build linux

package boot

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
)

// handlers returns the services that run for connections of the queue shout.
func (q *queueTest) handlers(t *testing.T) []string {
	t.Helper()
	return strings.Fields(q.Shell(t, "systemctl list-units --plain --no-legend 'revq-handler-shout@*.service' | cut -d' ' -f1"))
}

func (q *queueTest) connections(t *testing.T) {
	q.Run(t, "systemctl", "restart", "revq-worker@shout")
	await.True(t, "the services have ended with the worker", func() bool { return len(q.handlers(t)) == 0 })
	for range 5 {
		q.result(t, q.post(t, "shout", "abc"))
	}
	if units := q.handlers(t); len(units) != 1 {
		t.Errorf("five tasks, one after the other, have the services %v, want one", units)
	}
	if user := q.Shell(t, "ps -o user:32= -p $(systemctl show --value -p MainPID '"+q.handlers(t)[0]+"')"); user != "revq-handler-shout" {
		t.Errorf("the handler's user is %q", user)
	}
}

// burst opens more connections at once than a handler's socket may have, and
// more than systemd takes by default within 2 s.
func (q *queueTest) burst(t *testing.T) {
	ctx := await.Context(t)
	var conns []net.Conn
	for range 300 {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", q.Path("/run/revq-handler-shout.sock"))
		if err != nil {
			t.Fatalf("connection %d: %v", len(conns)+1, err)
		}
		conns = append(conns, conn)
	}
	for _, conn := range conns {
		conn.Close()
	}
	if got := q.result(t, q.post(t, "shout", "after the burst")); got != "AFTER THE BURST" {
		t.Errorf("the result is %q", got)
	}
	if state := q.Property(t, "revq-handler-shout.socket", "ActiveState"); state != "active" {
		t.Errorf("the socket is %s", state)
	}
	// 300 services end, 64 at a time.
	for until := time.Now().Add(5 * await.Patience); len(q.handlers(t)) > 1; {
		if time.Now().After(until) {
			t.Fatalf("%d services are left", len(q.handlers(t)))
		}
	}
}

func (q *queueTest) exec(t *testing.T) {
	q.Write(t, "/etc/revq/revq-worker@inside.env", "REVQ_QUEUE=inside\nREVQ_EXEC=/usr/local/bin/shout\n")
	q.Run(t, "systemctl", "enable", "--now", "revq-setup@inside", "revq-worker@inside")
	if got := q.result(t, q.post(t, "inside", "abc")); got != "ABC" {
		t.Errorf("the result is %q, want ABC", got)
	}
	if services := q.Shell(t, "systemctl list-units --all --plain --no-legend 'revq-handler-inside*'"); services != "" {
		t.Errorf("the handler has units of its own: %s", services)
	}
	// The same queue with a unit of its own for the program, and then no queue.
	q.Shell(t, "systemctl disable --now revq-worker@inside; rm /etc/revq/revq-worker@inside.env")
	q.queue(t, "inside", "/usr/bin/tr", "a-z", "n-za-m")
	if got := q.result(t, q.post(t, "inside", "abc")); got != "nop" {
		t.Errorf("the result is %q, want nop", got)
	}
	q.unqueue(t, "inside")

	before := q.inventory(t)
	q.Write(t, "/etc/revq/revq-worker@inside.env", "REVQ_QUEUE=inside\nREVQ_EXEC=/usr/local/bin/shout\n")
	q.Run(t, "systemctl", "enable", "--now", "revq-setup@inside", "revq-worker@inside")
	// A worker with another name is not taken along, nor left without its queue.
	q.Write(t, "/etc/revq/revq-worker@other.env", "REVQ_QUEUE=\"inside\"\nREVQ_EXEC=/usr/local/bin/shout\n")
	q.Run(t, "systemctl", "enable", "--now", "revq-worker@other")
	out, err := q.Try(t, bootSource+"/systemd/install", "unqueue", "--discard-tasks", "inside")
	if err == nil || !strings.Contains(out, "revq-worker@other takes tasks of the queue inside, too, as /etc/revq/revq-worker@other.env says") {
		t.Errorf("unqueue with a second worker: %v, %q", err, out)
	}
	if got := q.result(t, q.post(t, "inside", "abc")); got != "ABC" {
		t.Errorf("the result after the refusal is %q, want ABC", got)
	}
	q.Shell(t, "systemctl disable --now revq-worker@other; rm /etc/revq/revq-worker@other.env")
	q.unqueue(t, "inside")
	if after := q.inventory(t); after != before {
		t.Errorf("something is left, or missing:\n%s", difference(before, after))
	}
}

func (q *queueTest) killed(t *testing.T) {
	if got := q.result(t, q.post(t, "shout", "kill the handler")); got != "KILL THE HANDLER" {
		t.Errorf("its second attempt: %q", got)
	}
	if state := q.Property(t, "revq-handler-shout.socket", "ActiveState"); state != "active" {
		t.Errorf("the socket is %s", state)
	}
	if failed := q.Shell(t, "systemctl list-units --failed --plain --no-legend 'revq*'"); failed != "" {
		t.Errorf("failed units are left:\n%s", failed)
	}
}

func (q *queueTest) outOfMemory(t *testing.T) {
	const limit = 64 << 20
	q.Write(t, bootTarget+"/revq-handler-shout@.service.d/memory.conf", "[Service]\nMemoryMax=64M\nMemorySwapMax=0\n")
	q.Write(t, "/etc/revq/revq-worker@shout.env", "REVQ_CONCURRENCY=1\n")
	q.Shell(t, "systemctl daemon-reload; systemctl restart revq-worker@shout")
	q.result(t, q.post(t, "shout", "first"))
	units := q.handlers(t)
	if len(units) != 1 {
		t.Fatalf("services %v, want one", units)
	}
	if !strings.Contains(q.Run(t, "cat", "/sys/fs/cgroup/cgroup.controllers"), "memory") {
		q.limitFromOutside(t, units[0], limit)
	}
	ids := []string{q.post(t, "shout", "too much memory"), q.post(t, "shout", "modest")}
	if got := q.result(t, ids[1]); got != "MODEST" {
		t.Errorf("the other task: %q", got)
	}
	if got := q.result(t, ids[0]); got != "TOO MUCH MEMORY" {
		t.Errorf("its second attempt: %q", got)
	}
	if now := q.handlers(t); !slices.Equal(now, units) {
		t.Errorf("the service %v was replaced by %v", units, now)
	}
	q.Shell(t, "rm -r "+bootTarget+"/revq-handler-shout@.service.d /etc/revq/revq-worker@shout.env; systemctl daemon-reload; systemctl restart revq-worker@shout")
}

// handlerProbe is a filter that tries what a handler must not be able to do, and
// what it may.
const handlerProbe = `#!/bin/bash
try() { if timeout 5 bash -c "$2" >/dev/null 2>&1; then echo "$1: yes"; else echo "$1: no"; fi; }
for d in /tmp /var/tmp / /etc /usr/local/bin /var/lib /run /home /root /srv; do
	try "write in $d" "echo x >$d/revq-probe && rm $d/revq-probe"
done
try "read the worker's URL" "cat /etc/revq/worker.amqp-url"
try "list revq's settings" "ls /etc/revq"
try "read the worker's credential" "cat /run/credentials/revq-worker@shout.service/amqp-url"
try "read the API's credential" "cat /run/credentials/revq-api@1.service/amqp-url"
try "look at the host's tokens" "ls /etc/credstore"
try "read the worker's environment" "cat /proc/` + "$1" + `/environ"
try "look into the worker" "ls /proc/` + "$1" + `/fd"
try "read /etc/shadow" "cat /etc/shadow"
try "look into homes" "ls /home /root"
try "see other processes" "ls /proc/1/"
try "become root in a namespace" "unshare --user --map-root-user true"
try "mount" "mount -t tmpfs none /mnt && umount /mnt"
try "change priorities" "nice -n -1 true 2>&1 | (! grep .)"
try "connect to the broker" "exec 3<>/dev/tcp/127.0.0.1/5672"
try "connect to the API" "exec 3<>/dev/tcp/127.0.0.1/8081"
try "connect to handlers" "python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect(\"/run/revq-handler-shout.sock\")'"
`

func (q *queueTest) handlerSandbox(t *testing.T) {
	worker := q.Property(t, "revq-worker@shout", "MainPID")
	q.Write(t, "/usr/local/bin/probe", handlerProbe)
	q.Run(t, "chmod", "755", "/usr/local/bin/probe")
	q.Run(t, "install", "-d", "-m", "700", "/etc/credstore")
	free := answers(q.Run(t, "/usr/local/bin/probe", worker))
	mayDo := []string{"write in /tmp", "write in /var/tmp"}
	for what, answer := range free {
		if answer != "yes" && (what != "connect to handlers" || !q.lacks(t, "python3")) {
			t.Errorf("root cannot %s: this shows nothing", what)
		}
	}
	q.queue(t, "probe", "/usr/local/bin/probe", worker)
	confined := answers(q.result(t, q.post(t, "probe", "x")))
	if len(confined) != len(free) {
		t.Errorf("%d answers, want %d: %v", len(confined), len(free), confined)
	}
	for what, answer := range confined {
		if may := slices.Contains(mayDo, what); may != (answer == "yes") {
			t.Errorf("may a handler %s? %s", what, answer)
		}
	}
	t.Logf("root may do all of the %d things, a handler only: %s", len(free), strings.Join(mayDo, ", "))
	q.unqueue(t, "probe")
	q.Run(t, "rm", "-d", "/usr/local/bin/probe", "/etc/credstore")
}

// lacks reports whether the host has no such program.
func (q *queueTest) lacks(t *testing.T, program string) bool {
	t.Helper()
	_, err := q.Try(t, "which", program)
	return err != nil
}

// gif is a red dot, in base64.
const gif = "R0lGODlhAgACAPAAAP8AAAAAACH5BAAAAAAALAAAAAACAAIAAAIChFEAOw=="

// examples has Node, which compiles while it runs, Python and ImageMagick handle
// tasks.
func (q *queueTest) examples(t *testing.T) {
	for _, tt := range []struct {
		queue, program, needs string
		flags                 []string
		text, has             string
	}{
		{"thumbnail", "thumbnail", "/usr/bin/convert", nil, gif, "/9j/4AAQSkZJRg"},
		{"chart", "chart.js", "/usr/bin/node", []string{"--persistent"}, "3 1 4 1 5 9", "<svg "},
		{"summarise", "summarise.py", "/usr/bin/python3", []string{"--persistent"}, "Cats like fish. It rains.", "Cats like fish"},
	} {
		if q.lacks(t, tt.needs) {
			t.Logf("the host has no %s", tt.needs)
			continue
		}
		program := "/usr/local/bin/" + tt.program
		content, err := os.ReadFile(filepath.Join("../../handler/examples", tt.program))
		if err != nil {
			t.Fatal(err)
		}
		q.Write(t, program, string(content))
		q.Run(t, "chmod", "755", program)
		// Debian's own programs, whatever else this machine has.
		q.Write(t, bootTarget+"/revq-handler-"+tt.queue+"@.service.d/path.conf", "[Service]\nEnvironment=PATH=/usr/bin:/bin\n")
		q.queue(t, append(tt.flags, tt.queue, program)...)
		if got := q.result(t, q.post(t, tt.queue, tt.text)); !strings.Contains(got, tt.has) {
			t.Errorf("%s answers %q, want %q in it", tt.program, got, tt.has)
		}
		if out, err := q.Try(t, "revq", "handle", "--check", "--handler", "unix:/run/revq-handler-"+tt.queue+".sock"); err != nil {
			t.Errorf("revq handle --check: %v\n%s", err, out)
		}
		q.unqueue(t, tt.queue)
		q.Run(t, "rm", program)
	}
}

func (q *queueTest) granted(t *testing.T) {
	q.Write(t, "/usr/local/bin/fetch", "#!/bin/bash\nexec 3<>/dev/tcp/127.0.0.1/8081 || exit 65\ncat \"$CREDENTIALS_DIRECTORY/key\"; echo x >/srv/out/x; echo $COLOUR\n")
	q.Write(t, "/srv/key", "the key\n")
	q.Write(t, bootTarget+"/revq-handler-fetch@.service.d/grant.conf", `[Service]
PrivateNetwork=no
IPAddressAllow=localhost
LoadCredential=key:/srv/key
ReadWritePaths=/srv/out
Environment=COLOUR=green
`)
	q.Shell(t, "chmod 755 /usr/local/bin/fetch; install -d -m 777 /srv/out")
	q.queue(t, "fetch", "/usr/local/bin/fetch")
	if got := q.result(t, q.post(t, "fetch", "x")); got != "the key\ngreen\n" {
		t.Errorf("the program printed %q", got)
	}
	if got := q.Run(t, "cat", "/srv/out/x"); got != "x" {
		t.Errorf("it wrote %q", got)
	}
	q.unqueue(t, "fetch")
	q.Shell(t, "rm -r /usr/local/bin/fetch /srv/key /srv/out")
}
