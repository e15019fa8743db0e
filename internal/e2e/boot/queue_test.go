//go:build linux

package boot

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/e2e/foreign"
	"github.com/revq/revq/internal/wire"
)

// A queue of one's own on a real systemd, made and removed by systemd/install:
// the handler in its unit, what that unit may do, and what is left.
func TestBootQueue(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a host")
	}
	t.Parallel()
	root := "/"
	if *bootRelease != "" {
		root = Debian(t, *bootRelease)
	}
	q := &queueTest{bootTest: &bootTest{Host: Start(t, root)}}
	q.copySource(t)
	bare := q.bootTest.inventory(t)
	if out, err := q.installer(t, documented(t, "install")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	q.Write(t, "/usr/local/bin/shout", shout)
	q.Run(t, "chmod", "755", "/usr/local/bin/shout")
	q.hear(t)
	before := q.inventory(t)
	for _, part := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"what cannot be a queue is refused", q.refused},
		{"the documented command makes a queue", q.story},
		{"a browser gets its results", q.browser},
		{"the first page's three lines bring a picture to a web page", q.threeLines},
		{"systemd has nothing to say against the units", q.verifyHandler},
		{"the same command again changes nothing, another program takes over", q.again},
		{"arguments reach the program as they are", q.arguments},
		{"a connection is kept, and ends with the worker", q.connections},
		{"a burst of connections takes nothing down", q.burst},
		{"a worker runs the program itself", q.exec},
		{"a handler that is killed fails at its task, and leaves nothing", q.killed},
		{"a program that needs too much memory fails at its task alone", q.outOfMemory},
		{"the sandbox forbids the rest", q.handlerSandbox},
		{"the examples work in their units", q.examples},
		{"what is granted by a drop-in is there", q.granted},
		{"everything stops with revq.target", q.stopAll},
	} {
		t.Run(part.name, part.run)
	}
	t.Run("removing a queue leaves nothing", func(t *testing.T) { q.removed(t, before) })
	t.Run("uninstalling takes queues along", func(t *testing.T) { q.uninstalled(t, bare) })
	if t.Failed() {
		t.Logf("journal:\n%s", q.Run(t, "journalctl", "--no-pager", "--lines=300", "--output=short-precise", "--unit=revq*", "--unit=init.scope"))
	}
}

// shout is a filter; the text says what else it does.
const shout = `#!/bin/sh
text=$(cat)
case $text in
"kill the handler") [ "$REVQ_ATTEMPT" -gt 1 ] || kill -KILL $PPID ;;
"too much memory") [ "$REVQ_ATTEMPT" -gt 1 ] || tail /dev/zero ;;
esac
printf %s "$text" | tr a-z A-Z
`

// A queueTest has a listener that keeps the last message about each task.
type queueTest struct {
	*bootTest
	posts int

	mu    sync.Mutex
	heard map[string]wire.Message
}

func (q *queueTest) hear(t *testing.T) {
	q.heard = make(map[string]wire.Message)
	q.Lines(t, func(line string) {
		var m wire.Message
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			return
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		q.heard[m.ID] = m
	}, "systemd-run", "--quiet", "--pipe", "--collect", "--unit=ear", "revq", "listen", "--json", "--after", "-1")
}

// post posts a text to a queue and returns its id.
func (q *queueTest) post(t *testing.T, queue, text string) string {
	t.Helper()
	q.posts++
	id := fmt.Sprintf("%s-%d", queue, q.posts)
	if status, answer := q.tryPost(t, queue, id, text); status != http.StatusAccepted {
		t.Fatalf("a text for the queue %s: %d %s", queue, status, answer)
	}
	return id
}

func (q *queueTest) tryPost(t *testing.T, queue, id, text string) (status int, answer string) {
	t.Helper()
	transport := &http.Transport{DialContext: q.Dial, DisableKeepAlives: true}
	client := http.Client{Transport: transport, Timeout: await.Patience}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+apiSites[0]+"/queue/"+queue, strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "text/plain")
	req.Header.Set(wire.KeyHeader, id)
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// result waits for the last message about a task, and returns its text.
func (q *queueTest) result(t *testing.T, id string) string {
	t.Helper()
	var m wire.Message
	await.True(t, "a result for "+id, func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		m = q.heard[id]
		return m.Type == wire.TypeResult || m.Type == wire.TypeFailed
	})
	return m.Text
}

// queue runs systemd/install queue.
func (q *queueTest) queue(t *testing.T, args ...string) string {
	t.Helper()
	return q.Run(t, bootSource+"/systemd/install", append([]string{"queue"}, args...)...)
}

// unqueue runs systemd/install unqueue.
func (q *queueTest) unqueue(t *testing.T, name string) string {
	t.Helper()
	out, err := q.installer(t, "systemd/install unqueue "+name)
	if err != nil {
		t.Fatalf("systemd/install unqueue %s: %v\n%s", name, err, out)
	}
	return out
}

// inventory lists everything that a queue could leave.
func (q *queueTest) inventory(t *testing.T) string {
	t.Helper()
	return withoutAccounts(q.Written(t), "/etc/", "/usr/", "/srv/", "/root/") + q.Shell(t, `
		find /run /tmp /var/tmp | grep -e handler -e shout | sort
		systemctl list-units --all --plain --no-legend '*shout*' 'revq-handler*'
		cat /etc/group; getent passwd | grep handler || :
		rabbitmqctl -q -p revq list_queues name | sort
		rabbitmqctl -q -p revq list_bindings source_name routing_key destination_name | sort`)
}

// withoutAccounts returns those of the files that are below the directories,
// one a line, less the files of users and groups.
func withoutAccounts(files []string, below ...string) string {
	var kept strings.Builder
	for _, file := range files {
		if !isAccounts(file) && slices.ContainsFunc(below, func(dir string) bool { return strings.HasPrefix(file, dir) }) {
			kept.WriteString(file + "\n")
		}
	}
	return kept.String()
}

func (q *queueTest) refused(t *testing.T) {
	q.Write(t, "/root/mine", shout)
	q.Write(t, "/usr/local/bin/secret/mine", shout)
	q.Write(t, "/etc/revq/revq-worker@taken.env", "REVQ_QUEUE=other\n")
	q.Shell(t, "chmod 755 /root/mine /usr/local/bin/secret/mine; chmod 700 /usr/local/bin/secret; install -m 644 /usr/local/bin/shout /usr/local/bin/data")
	for _, tt := range []struct{ args, want string }{
		{"", "name the queue and the program"},
		{"shout", "name the queue and the program"},
		{"Shout /usr/local/bin/shout", "cannot be the name of a queue"},
		{"1 /usr/local/bin/shout", "cannot be the name of a queue"},
		{"a/b /usr/local/bin/shout", "cannot be the name of a queue"},
		{"$(printf %064d 0 | tr 0 a) /usr/local/bin/shout", "cannot be the name of a queue"},
		{"reverse_text /usr/local/bin/shout", "is built in"},
		{"--fast shout /usr/local/bin/shout", "does not know --fast"},
		{"shout /no/such/program", "there is no program /no/such/program"},
		{"shout no-such-program", "there is no program no-such-program in "},
		{"shout /usr/local/bin", "is not a file"},
		{"shout /usr/local/bin/data", "is not executable"},
		{"shout /root/mine", "does not see /root/mine"},
		{"shout /usr/local/bin/secret/mine", "may not execute"},
		{"shout /usr/local/bin/shout $'two\\nlines'", "line break"},
		{"taken /usr/local/bin/shout", "is taken by /etc/revq/revq-worker@taken.env"},
	} {
		out, err := q.Try(t, "bash", "-c", bootSource+"/systemd/install queue "+tt.args)
		if err == nil || !strings.Contains(out, tt.want) {
			t.Errorf("queue %s: %v, %q, want a refusal with %q", tt.args, err, out, tt.want)
		}
	}
	if out, err := q.Try(t, "setpriv", "--reuid=65534", "--clear-groups", bootSource+"/systemd/install", "queue", "shout", "/usr/local/bin/shout"); err == nil || !strings.Contains(out, "this is for root") {
		t.Errorf("for another user: %v, %q", err, out)
	}
	if out, err := q.Try(t, bootSource+"/systemd/install", "unqueue", "shout"); err == nil || !strings.Contains(out, "there is no queue shout") {
		t.Errorf("unqueue: %v, %q", err, out)
	}
	q.Shell(t, "rm -r /root/mine /usr/local/bin/secret /usr/local/bin/data /etc/revq/revq-worker@taken.env")
}

// site returns the address of a port on this machine that leads to one of the
// host's.
func (q *queueTest) site(t *testing.T, address string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := q.Dial(t.Context(), "tcp", address)
			if err != nil {
				near.Close()
				continue
			}
			go func() { io.Copy(far, near); far.Close() }()
			go func() { io.Copy(near, far); near.Close() }()
		}
	}()
	return ln.Addr().String()
}

func (q *queueTest) story(t *testing.T) {
	t.Log(q.Shell(t, "cd "+bootSource+"\n"+documented(t, "queue")))
	if got := q.result(t, q.post(t, "shout", "abc")); got != "ABC" {
		t.Errorf("the result is %q, want ABC", got)
	}
	for _, unit := range []string{"revq-worker@shout.service", "revq-handler-shout.socket", "revq-setup@shout.service"} {
		if state := q.Property(t, unit, "ActiveState"); state != "active" {
			t.Errorf("%s is %s, want active", unit, state)
		}
	}
}

// queuePage listens to one queue.
const queuePage = `
const events = new EventSource("http://%s/listen_results?queue=shout")
events.addEventListener("greeting", () => report("events", "greeting", ""))
events.onmessage = e => report("events", "result", e.data)`

func (q *queueTest) browser(t *testing.T) {
	p := foreign.OpenScript(t, fmt.Sprintf(queuePage, q.site(t, "127.0.0.1:8083")))
	p.Next(t, foreign.Report{Kind: "greeting"})
	q.Run(t, "revq", "send", "--text", "not for the page")
	q.post(t, "shout", "for the page")
	var m wire.Message
	got := p.Next(t, foreign.Report{Kind: "result"}).Data
	if err := json.Unmarshal([]byte(got), &m); err != nil || m.Text != "FOR THE PAGE" || m.Queue != "shout" {
		t.Errorf("the page got %s: %v", got, err)
	}
}

// threeLines runs the commands and the script of README.md word for word, but
// for the address at which the browser reaches the host.
func (q *queueTest) threeLines(t *testing.T) {
	if q.lacks(t, "convert") || q.lacks(t, "curl") {
		t.Skip("the host has no ImageMagick or no curl")
	}
	const page = "README.md"
	script := documentedIn(t, page, "own queue's page")
	const address = "localhost:8083"
	if !strings.Contains(script, address) {
		t.Fatalf("the script does not connect to %s:\n%s", address, script)
	}
	script = strings.ReplaceAll(script, address, q.site(t, "127.0.0.1:8083"))
	p := foreign.OpenScript(t, `document.write("<img>")
document.images[0].onload = e => report("image", "loaded", e.target.naturalWidth + "x" + e.target.naturalHeight)
`+script+`
events.addEventListener("greeting", () => report("events", "greeting", ""))`)
	p.Next(t, foreign.Report{Kind: "greeting"})
	q.Shell(t, "cd "+bootSource+"; convert -size 400x300 gradient:red-blue photo.jpg")
	if out, err := q.installer(t, documentedIn(t, page, "own queue")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got := p.Next(t, foreign.Report{Kind: "loaded"}).Data; got != "200x150" {
		t.Errorf("the page shows a picture of %s, want 200x150", got)
	}
	q.unqueue(t, "thumbnail")
	q.Run(t, "rm", "/usr/local/bin/thumbnail", bootSource+"/photo.jpg")
}

var handlerUnits = []string{"revq-handler-shout.socket", "revq-handler-shout@1.service", "revq-worker@shout.service", "revq-setup@shout.service"}

func (q *queueTest) verifyHandler(t *testing.T) {
	out, err := q.Try(t, "systemd-analyze", append([]string{"verify", "--man=no"}, handlerUnits...)...)
	checkVerified(t, out, err)
	for _, unit := range []string{"revq-handler-shout@1.service", "revq-worker@shout.service", "revq-setup@shout.service"} {
		checkExposure(t, unit, q.Run(t, "systemd-analyze", "security", "--no-pager", unit))
	}
}

func (q *queueTest) again(t *testing.T) {
	pid := q.Property(t, "revq-worker@shout", "MainPID")
	q.queue(t, "shout", "/usr/local/bin/shout")
	if now := q.Property(t, "revq-worker@shout", "MainPID"); now != pid {
		t.Error("the same command has restarted the worker")
	}
	q.queue(t, "shout", "/usr/bin/tr", "a-z", "n-za-m")
	if got := q.result(t, q.post(t, "shout", "abc")); got != "nop" {
		t.Errorf("the other program answers %q, want nop", got)
	}
	q.queue(t, "shout", "/usr/local/bin/shout")
}

func (q *queueTest) arguments(t *testing.T) {
	const name = "a-queue_with-a-name-of-63-characters-which-is-the-longest-one-99"
	args := []string{`%i $HOME ${PATH}`, `it's "quoted" \n`, "", ";", "ä $$ %%"}
	q.queue(t, append([]string{name[:63], "/usr/bin/printf", "<%s>"}, args...)...)
	want := "<" + strings.Join(args, "><") + ">"
	if got := q.result(t, q.post(t, name[:63], "x")); got != want {
		t.Errorf("the program printed %q, want %q", got, want)
	}
	q.unqueue(t, name[:63])
}

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

func (q *queueTest) stopAll(t *testing.T) {
	q.result(t, q.post(t, "shout", "abc"))
	q.Run(t, "systemctl", "stop", "revq.target")
	q.awaitStopped(t)
	q.Run(t, "systemctl", "start", "revq.target")
	if got := q.result(t, q.post(t, "shout", "def")); got != "DEF" {
		t.Errorf("after a new start: %q", got)
	}
}

func (q *queueTest) removed(t *testing.T, before string) {
	q.Write(t, "/etc/revq/revq-worker@shout.env", "REVQ_CONCURRENCY=2\n")
	q.Write(t, bootTarget+"/revq-handler-shout@.service.d/mine.conf", "[Service]\nCPUWeight=50\n")
	q.Run(t, "systemctl", "stop", "revq-worker@shout") // so that the next task waits
	q.post(t, "shout", "waits")
	if out, err := q.installer(t, documented(t, "unqueue")); err == nil || !strings.Contains(out, "1 tasks are waiting in the queue shout") {
		t.Errorf("with a task that waits: %v, want a refusal\n%s", err, out)
	}
	if got := q.result(t, fmt.Sprintf("shout-%d", q.posts)); got != "WAITS" {
		t.Errorf("the task that waited: %q", got)
	}
	q.Run(t, "revq", "send", "--queue", "shout", "--delay", "1h", "later")
	if out := q.unqueue(t, "shout"); !strings.Contains(out, "1 tasks of all queues wait for a retry or for their time") {
		t.Errorf("the task with a delay is not told:\n%s", out)
	}
	q.Run(t, "rabbitmqctl", "-q", "-p", "revq", "purge_queue", "revq.wait.1024")
	if status, answer := q.tryPost(t, "shout", "late", "x"); status != http.StatusNotFound {
		t.Errorf("the queue still takes texts: %d %s", status, answer)
	}
	if after := q.inventory(t); after != before {
		t.Errorf("something is left, or missing:\n%s", difference(before, after))
	}
}

func (q *queueTest) uninstalled(t *testing.T, bare string) {
	q.Run(t, bootSource+"/systemd/install", "queue", "shout", "/usr/local/bin/shout")
	q.result(t, q.post(t, "shout", "abc"))
	q.Run(t, "systemctl", "stop", "ear")
	if out, err := q.installer(t, documented(t, "uninstall")+"rm /usr/local/bin/shout"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if after := q.bootTest.inventory(t); after != bare {
		t.Errorf("something is left, or missing:\n%s", difference(bare, after))
	}
}
