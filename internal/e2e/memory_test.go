//go:build linux

package e2e

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/daemon/daemontest"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/wire"
)

// What an AMQP client publishes, however long, costs a socket server no more
// memory than --keep-bytes says, and is never missing silently.
func TestLongTextsOverAMQP(t *testing.T) {
	t.Parallel()
	const (
		keep = 4 << 20 // of each of three formats
		long = 16<<20 - 1
	)
	s := start(t)
	s.startWorker(t, "--pause", "0s")
	ln, site := daemontest.Listen(t)
	socket := s.startDaemon(t, "revq-socket", []daemontest.Socket{ln}, "--keep-bytes", "4194304")
	socket.WaitReady(t)
	s.socketSite = site
	before := residentBytes(t, socket)
	l := s.listen(t, "json")

	publish := s.foreignPublisher(t)
	publish("tasks", "long-task", strings.Repeat("x", long))
	await.True(t, "the long text is a dead letter", func() bool { return rabbittest.QueueLength(t, s.node, s.url, rabbit.DeadQueue) == 1 })
	l.failed(t, "long-task")
	const results = 5
	for range results { // by a program that may write results
		publish("results", "long-result", strings.Repeat("<", long))
		if m := parse(t, l.next(t)); m.Type != wire.TypeLost || m.ID != "long-result" || !strings.Contains(m.Text, "too long") {
			t.Fatalf("got %+v, want that the result is lost", m)
		}
	}
	for _, id := range names("large", 10) { // which are as long as may be
		send(t, s.apiSites[0], id, strings.Repeat("<", 60<<10))
	}
	l.collect(t, names("large", 10))
	for range 3 { // who resumes from the stream is told, too
		again := s.listenAfter(t, "json", "-1")
		again.failed(t, "long-task")
		for range results {
			if m := parse(t, again.next(t)); m.Type != wire.TypeLost {
				t.Fatalf("got a %s, want that a result is lost", m.Type)
			}
		}
		again.collect(t, names("large", 10))
	}
	l.drainWith(t, s, "the-end")
	if daemontest.Race() {
		return
	}
	t.Logf("from %d to %d MB", before/1e6, residentBytes(t, socket)/1e6)
	began := time.Now()
	await.True(t, "memory is what is kept, and as much again", func() bool { return residentBytes(t, socket) < before+2*3*keep })
	t.Logf("%d MB after %v", residentBytes(t, socket)/1e6, time.Since(began).Round(time.Millisecond))
}

// The command line tells at once that a result cannot be sent, to who waits for
// it and to who listens.
func TestLostResultOnTheCommandLine(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.startWorker(t, "--pause", "0s")
	apiLn, apiSite := daemontest.Listen(t)
	s.startDaemon(t, "revq-api", []daemontest.Socket{apiLn}, "--max-text", "200000").WaitReady(t)
	socketLn, socketSite := daemontest.Listen(t)
	s.startDaemon(t, "revq-socket", []daemontest.Socket{socketLn}, "--keep-bytes", "524288").WaitReady(t)

	run := func(args ...string) (*exec.Cmd, *strings.Builder) {
		var said strings.Builder
		cmd := exec.CommandContext(await.Context(t), daemontest.Binary(t, "revq"), args...)
		cmd.Env = daemontest.Environment()
		cmd.Stdin = strings.NewReader(strings.Repeat("x", 150_000) + "\nabc\n")
		cmd.Stdout, cmd.Stderr = &said, &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, &said
	}
	send, said := run("send", "--wait", "--url", "http://"+apiSite, "--socket-url", "ws://"+socketSite, "--file", "-")
	if err := send.Wait(); err == nil || !strings.Contains(said.String(), "its result cannot be sent: the text is too long") {
		t.Errorf("revq send --wait: %v: %s", err, said)
	}
	s.revq(t, "send", "--url", "http://"+apiSite, "abc") // whatever the one before did with its second line
	listen, said := run("listen", "--after", "-1", "--count", "1", "--url", "ws://"+socketSite)
	if err := listen.Wait(); err != nil || !strings.Contains(said.String(), "cannot be sent: the text is too long") || !strings.Contains(said.String(), "cba") {
		t.Errorf("revq listen: %v: %s", err, said)
	}
}
