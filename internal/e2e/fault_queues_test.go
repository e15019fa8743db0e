//go:build linux

package e2e

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/wire"
)

// The named queues of the fault test: programs handle their tasks.
const (
	filterQueue     = "filtered" // a process for each task
	persistentQueue = "persistent"
)

// programRetries is how many retries the tasks of a program have. A good one
// whose program is killed or hangs with its worker must not be given up for
// that.
const programRetries = 3

// kinds are what texts for programs begin with: what their handlers do. Only
// the tasks of the last two are given up.
var kinds = []string{"good", "good", "good", "good", "good", "fails once", "killed once", "later once", "never", "fails"}

// textOf returns text number of a poster for a queue. Those for programs are of
// all kinds.
func textOf(queue, name string) string {
	if queue == wire.DefaultQueue {
		return "text of " + name
	}
	if rand.IntN(50) == 0 { // it takes a slot until the task time-out
		return "hangs once: " + name
	}
	return kinds[rand.IntN(len(kinds))] + ": " + name
}

// A posting is a text that was accepted.
type posting struct {
	queue, text string
	at          time.Time
}

// result returns the result that the task must have; "" if it is to be given
// up.
func (p posting) result() string {
	switch {
	case p.queue == wire.DefaultQueue:
		return reversed(p.text)
	case strings.HasPrefix(p.text, "never: "), strings.HasPrefix(p.text, "fails: "):
		return ""
	}
	return p.queue + " " + p.text
}

// faultyFilter handles a text as its kind says. While there is a file named
// away, it can do nothing.
const faultyFilter = `
[ ! -e DIR/away ] || exit 75
text=$(cat)
case $text in
"never: "*) echo "it can never be done" >&2; exit 65 ;;
"fails: "*) exit 1 ;;
"later once: "*) mkdir "DIR/$REVQ_TASK_ID" 2>/dev/null && exit 75 ;;
esac
if [ "$REVQ_ATTEMPT" = 1 ]; then
	case $text in
	"fails once: "*) exit 1 ;;
	"killed once: "*) kill -KILL $$ ;;
	"hangs once: "*) sleep 60 & wait ;;
	esac
fi
printf '%s %s' "$REVQ_QUEUE" "$text"`

// faultyLines is a persistent program that does the same.
const faultyLines = `
answer() { printf '{"id":"%s",%s}\n' "$id" "$1"; }
echo '{"revq":1}'
read -r hello
while read -r task; do
	id=${task#*'"id":"'} id=${id%%'"'*}
	text=${task#*'"text":"'} text=${text%%'"'*}
	attempt=${task#*'"attempt":'} attempt=${attempt%%,*}
	if [ -e DIR/away ]; then
		answer '"error":"it is away","retry":"later"'
		continue
	fi
	case $text in
	"never: "*) answer '"error":"it can never be done","retry":"no"'; continue ;;
	"fails: "*) answer '"error":"it fails"'; continue ;;
	"later once: "*) mkdir "DIR/$id" 2>/dev/null && { answer '"error":"wait","retry":"later"'; continue; } ;;
	esac
	if [ "$attempt" = 1 ]; then
		case $text in
		"fails once: "*) echo 'debug: a stray line' ;;
		"killed once: "*) kill -KILL $$ ;;
		"hangs once: "*) sleep 60 ;;
		esac
	fi
	answer "\"text\":\"persistent $text\""
done`

// startPrograms declares the named queues, and prepares two workers for each.
func (r *trial) startPrograms() {
	r.t.Helper()
	r.programs = r.t.TempDir()
	for queue, script := range map[string]string{filterQueue: faultyFilter, persistentQueue: faultyLines} {
		script = "#!/bin/sh" + strings.ReplaceAll(script, "DIR", r.programs)
		if err := os.WriteFile(filepath.Join(r.programs, queue), []byte(script), 0o700); err != nil {
			r.t.Fatal(err)
		}
	}
	for _, queue := range []string{filterQueue, persistentQueue} {
		ctx := await.Context(r.t)
		cfg := r.brokerConfig()
		cfg.Topology.Queue = queue
		_, err := rabbit.Setup(ctx, cfg)
		if err != nil {
			r.t.Fatal(err)
		}
		args := []string{"--queue", queue, "--concurrency", "4", "--retries", strconv.Itoa(programRetries), "--task-timeout", "5s"}
		if queue == persistentQueue {
			args = append(args, "--handler", "persistent", "--recycle", "20")
		} else {
			args = append(args, "--drain")
		}
		args = append(args, "--", filepath.Join(r.programs, queue))
		for range 2 {
			r.handlers = append(r.handlers, r.newUnit("revq-worker", false, args...))
		}
	}
}

// killPrograms kills all programs of one worker.
func (r *trial) killPrograms() {
	r.t.Helper()
	of := r.any(r.handlers).daemon.Pid()
	var killed int
	for _, pid := range childrenOf(r.t, of) {
		if syscall.Kill(pid, syscall.SIGKILL) == nil {
			killed++
		}
	}
	r.note("  %d programs of %d killed", killed, of)
}

// childrenOf returns the processes that a process has started.
func childrenOf(t *testing.T, pid int) (children []int) {
	t.Helper()
	// pgrep has the status 1 if there are none.
	out, err := exec.Command("pgrep", "-P", strconv.Itoa(pid)).Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode() != 1) {
		t.Fatal(err)
	}
	for word := range strings.FieldsSeq(string(out)) {
		child, err := strconv.Atoi(word)
		if err != nil {
			t.Fatal(err)
		}
		children = append(children, child)
	}
	return children
}

// programsAway lets programs do nothing for a time, as without the database
// that they need.
func (r *trial) programsAway() {
	r.t.Helper()
	away := filepath.Join(r.programs, "away")
	if err := os.WriteFile(away, nil, 0o600); err != nil {
		r.t.Fatal(err)
	}
	r.last(span{time.Second, 4 * time.Second})
	if err := os.Remove(away); err != nil {
		r.t.Fatal(err)
	}
}

// programMissing takes a program away for a time, as an upgrade may.
func (r *trial) programMissing() {
	r.t.Helper()
	program := filepath.Join(r.programs, []string{filterQueue, persistentQueue}[r.random.IntN(2)])
	if err := os.Rename(program, program+".old"); err != nil {
		r.t.Fatal(err)
	}
	r.last(span{100 * time.Millisecond, 3 * time.Second})
	if err := os.Rename(program+".old", program); err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.t.Fatal(err)
	}
}

// judgeGivenUp fails the test unless exactly those tasks are dead letters, once
// each, that must be given up.
func (r *trial) judgeGivenUp() {
	r.t.Helper()
	dead := make(map[string]int)
	ctx := await.Context(r.t)
	err := rabbit.DeadLetters(ctx, r.brokerConfig(), func(l rabbit.DeadLetter) (rabbit.Fate, error) {
		dead[l.Task.ID]++
		if p, ok := r.posters.accepted[l.Task.ID]; ok && p.result() != "" && !lostItsWorkers(l) {
			r.t.Errorf("%s (%q) was given up: %s %s", l.Task.ID, p.text, l.Reason, l.Error)
		}
		return rabbit.Keep, nil
	})
	if err != nil {
		r.t.Errorf("read the dead letters: %v", err)
	}
	for id, p := range r.posters.accepted {
		if p.result() == "" {
			r.givenUp++
			if dead[id] != 1 {
				r.t.Errorf("%s (%q) is a dead letter %d times, want once", id, p.text, dead[id])
			}
		}
	}
}
