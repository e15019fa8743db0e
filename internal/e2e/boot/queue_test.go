//go:build linux

package boot

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

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
