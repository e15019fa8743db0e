//go:build linux

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/rabbit/rabbittest"
)

// program writes a shell script that handles tasks.
func program(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// A script of one's own handles tasks: what it writes reaches those who listen,
// and what it gives up is a dead letter that says why.
func TestProgram(t *testing.T) {
	t.Parallel()
	s := start(t)
	l := s.listen(t, "json")
	w := s.startWorker(t, "--", program(t, `
text=$(cat)
case $text in
sick) echo "this is no picture" >&2; exit 65 ;;
once) [ "$REVQ_ATTEMPT" -gt 1 ] || exit 1 ;;
esac
printf '%s: %s' "$REVQ_TASK_ID" "$text" | tr a-z A-Z`))
	send(t, s.apiSites[0], "b", "sick")
	l.failed(t, "b")
	send(t, s.apiSites[0], "a", "abc def")
	send(t, s.apiSites[0], "c", "once")
	texts := map[string]string{}
	for _, m := range l.collect(t, []string{"a", "c"}) {
		texts[m.ID] = m.Text
	}
	if texts["a"] != "A: ABC DEF" || texts["c"] != "C: ONCE" {
		t.Errorf("results %q", texts)
	}
	await.True(t, "one task is given up", func() bool { return rabbittest.QueueLength(t, s.node, s.url, "revq.dead") == 1 })
	out, _ := s.revq(t, "dead", "ls", "--json")
	var letter struct{ ID, Reason, Error, Said, Queue, Text string }
	if err := json.Unmarshal([]byte(out), &letter); err != nil {
		t.Fatalf("revq dead ls: %q: %v", out, err)
	}
	if letter.ID != "b" || letter.Reason != "rejected" || letter.Error != "exit status 65" || letter.Said != "this is no picture" || letter.Queue != "reverse_text" || letter.Text != "sick" {
		t.Errorf("dead letter %s", out)
	}
	if out, _ := s.revq(t, "dead", "ls"); !strings.Contains(out, "given up: \"exit status 65") {
		t.Errorf("revq dead ls: %q, want the reason", out)
	}
	if out, _ := s.revq(t, "dead", "show", "b"); !strings.Contains(out, `said:     "this is no picture"`) {
		t.Errorf("revq dead show: %q, want what it said", out)
	}
	w.WaitLog(t, "this is no picture")
	w.Terminate(t)
}

// While a program is not there, tasks wait and are not counted as failed; the
// worker says so. It goes on by itself.
func TestProgramIsMissing(t *testing.T) {
	t.Parallel()
	s := start(t)
	l := s.listen(t, "json")
	path := filepath.Join(t.TempDir(), "program")
	w := s.startWorker(t, "--", path)
	w.WaitLog(t, "the handler cannot be started at present")
	ids := names("task", 20)
	for _, id := range ids {
		send(t, s.apiSites[0], id, "abc")
	}
	w.WaitState(t, "STATUS=waiting: the handler is out of order")
	if err := os.Symlink(program(t, "tr a-z A-Z"), path); err != nil {
		t.Fatal(err)
	}
	for _, m := range l.collect(t, ids) {
		if m.Text != "ABC" {
			t.Errorf("result %+v", m)
		}
	}
	w.WaitLog(t, "the handler works again")
	if n := rabbittest.QueueLength(t, s.node, s.url, "revq.dead"); n != 0 {
		t.Errorf("%d tasks were given up", n)
	}
}

// With --drain a worker that is told to stop finishes what runs, and returns
// the rest.
func TestDrain(t *testing.T) {
	t.Parallel()
	s := start(t)
	l := s.listen(t, "json")
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	w := s.startWorker(t, "--drain", "--concurrency", "1", "--", program(t, `read -r line < `+fifo+`; printf '%s' "$line"`))
	send(t, s.apiSites[0], "runs", "x")
	await.True(t, "the worker has the task", func() bool { return s.workerUnacked(t) == "[1]" })
	w.WaitLog(t, "ready")
	send(t, s.apiSites[0], "waits", "x")
	// The program reads from the pipe: it can be opened for writing.
	pipe, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	w.Signal(t, syscall.SIGTERM)
	w.WaitState(t, "STOPPING=1")
	if _, err := pipe.WriteString("finished\n"); err != nil {
		t.Fatal(err)
	}
	if m := l.collect(t, []string{"runs"})[0]; m.Text != "finished" {
		t.Errorf("result %+v", m)
	}
	if status := w.Wait(t); status != 0 {
		t.Errorf("the worker ended with status %d", status)
	}
	s.startWorker(t, "--pause", "0s")
	l.collect(t, []string{"waits"})
}

// A worker that is killed leaves no program behind.
func TestWorkerWithProgramIsKilled(t *testing.T) {
	t.Parallel()
	s := start(t)
	pidFile := filepath.Join(t.TempDir(), "pid")
	w := s.startWorker(t, "--", program(t, `echo $$ > `+pidFile+`.new; mv `+pidFile+`.new `+pidFile+`; exec sleep 1000`))
	send(t, s.apiSites[0], "a", "x")
	var pid string
	await.True(t, "the program runs", func() bool {
		text, err := os.ReadFile(pidFile)
		pid = strings.TrimSpace(string(text))
		return err == nil
	})
	t.Cleanup(func() {
		if n, err := strconv.Atoi(pid); err == nil && t.Failed() { // then it is still there
			syscall.Kill(-n, syscall.SIGKILL)
		}
	})
	w.Signal(t, syscall.SIGKILL)
	took := await.True(t, "the program is gone", func() bool {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
	if took > 15*time.Second {
		t.Errorf("it was there for another %v", took)
	}
}

// Nothing that systemd says to a worker, and no secret of the worker's, reaches
// a program; nor does an open file.
func TestProgramEnvironment(t *testing.T) {
	t.Parallel()
	s := start(t)
	l := s.listen(t, "json")
	// Files that our own parent has left open reach every process.
	bare, err := exec.Command(program(t, "ls /proc/$$/fd")).Output()
	if err != nil {
		t.Fatal(err)
	}
	s.startWorker(t, "--", program(t, `env | sed 's/=.*//' | grep -v -e '^PWD$' -e '^_$' -e '^SHLVL$' | sort; ls /proc/$$/fd`))
	send(t, s.apiSites[0], "a", "x")
	got := strings.Fields(l.collect(t, []string{"a"})[0].Text)
	got = slices.DeleteFunc(got, func(word string) bool {
		return word == "LANG" || word == "TZ" // if the worker has them
	})
	want := "PATH REVQ_ATTEMPT REVQ_DEADLINE REVQ_LAST_ATTEMPT REVQ_QUEUE REVQ_TASK_ID " + strings.Join(strings.Fields(string(bare)), " ")
	if strings.Join(got, " ") != want {
		t.Errorf("the program has %s, want %s", got, want)
	}
}
