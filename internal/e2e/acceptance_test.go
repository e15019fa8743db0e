//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/daemon/daemontest"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/wire"
)

// misbehaving is a filter that does what its text says. It notes its process id.
const misbehaving = `: > DIR/$$
read -r what
case $what in
"status "*) exit "${what#status }" ;;
nothing) exit 0 ;;
flood) head -c 104857600 /dev/zero ;;
grandchild) sleep 1000 & ;;
hang) sleep 1000 ;;
kill) kill -KILL $$ ;;
fork) sleep 1000 & sleep 1000 & wait ;;
esac
printf done`

// misbehavingLines is the same for a persistent program.
const misbehavingLines = `: > DIR/$$
echo '{"revq":1}'
read -r hello
while read -r task; do
	id=${task#*'"id":"'} id=${id%%'"'*} what=${task#*'"text":"'} what=${what%%'"'*}
	case $what in
	"status "*) exit "${what#status }" ;;
	nothing) exit 0 ;;
	flood) head -c 104857600 /dev/zero ;;
	grandchild) sleep 1000 & ;;
	hang) sleep 1000 ;;
	kill) kill -KILL $$ ;;
	fork) sleep 1000 & sleep 1000 & wait ;;
	stray) echo 'debug: hello' ;;
	another) id=someone-else ;;
	esac
	printf '{"id":"%s","text":"done"}\n' "$id"
done`

// Whatever a program does, its task gets what the table of handler/README.md says, other tasks go on, and no process is
// left.
func TestMisbehavingPrograms(t *testing.T) {
	t.Parallel()
	filter := map[string]string{ // why a task is given up; "" if it is done
		"status 1": "exit status 1", "status 65": "exit status 65", "status 100": "exit status 100", "status 255": "exit status 255",
		"nothing": "its output is no result: the text is empty", "flood": "its output is longer than", "grandchild": "",
		"hang": "longer than the task time-out", "kill": "signal 9", "fork": "longer than the task time-out",
	}
	lines := map[string]string{
		"status 1": "(exit status 1)", "status 65": "(exit status 65)", "nothing": "(exit status 0)", "flood": "too long", "grandchild": "",
		"hang": "longer than the task time-out", "kill": "killed", "fork": "longer than the task time-out", "stray": "debug: hello", "another": `for the task "someone-else"`,
	}
	for _, tt := range []struct {
		name, program string
		args          []string
		socket        bool // in a unit of its own
		want          map[string]string
	}{
		{"filter", misbehaving, nil, false, filter},
		{"persistent", misbehavingLines, []string{"--handler", "persistent"}, false, lines},
		{"unix", misbehaving, nil, true, filter},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, dir := start(t), t.TempDir()
			l := s.listen(t, "json")
			handler := program(t, strings.ReplaceAll(tt.program, "DIR", dir))
			args := append([]string{"--retries", "0", "--task-timeout", "10s"}, tt.args...)
			if tt.socket {
				args = append(args, "--handler", "unix:"+serveHandler(t, handler))
			} else {
				args = append(args, "--", handler)
			}
			w := s.startWorker(t, args...)
			done, dead := map[string]bool{}, 0
			for what, why := range tt.want {
				id := strings.ReplaceAll(what, " ", "-")
				send(t, s.apiSites[0], id, what)
				send(t, s.apiSites[0], "after-"+id, "ok")
				done["after-"+id], done[id] = true, why == ""
				if why != "" {
					dead++
				}
			}
			for told := map[string]bool{}; len(told) < len(done); { // of each task once
				m := parse(t, l.next(t))
				want := wire.TypeFailed
				if done[m.ID] {
					want = wire.TypeResult
				}
				if told[m.ID] || m.Type != want || done[m.ID] && m.Text != "done" {
					t.Fatalf("listeners are told %+v, want a %s once", m, want)
				}
				told[m.ID] = true
			}
			await.True(t, "the others are given up", func() bool { return rabbittest.QueueLength(t, s.node, s.url, "revq.dead") >= dead })
			out, _ := s.revq(t, "dead", "ls", "--json")
			for line := range strings.Lines(out) {
				var letter struct{ Error, Text string }
				if err := json.Unmarshal([]byte(line), &letter); err != nil {
					t.Fatal(err)
				}
				if why := tt.want[letter.Text]; why == "" || !strings.Contains(letter.Error, why) {
					t.Errorf("%q: given up since %q, want %q", letter.Text, letter.Error, why)
				}
			}
			w.Terminate(t)
			files, err := os.ReadDir(dir)
			if err != nil || len(files) == 0 {
				t.Fatalf("no process ran: %v", err)
			}
			for _, f := range files {
				var group int
				fmt.Sscan(f.Name(), &group)
				await.True(t, "the processes of "+f.Name()+" are gone", func() bool { return syscall.Kill(-group, 0) != nil || onlyZombies(group) })
			}
		})
	}
}

// onlyZombies reports whether all processes of a group have ended, and wait for a parent that does not look.
func onlyZombies(group int) bool {
	out, err := exec.Command("ps", "-eo", "pgid=,stat=").Output()
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == fmt.Sprint(group) && !strings.HasPrefix(f[1], "Z") {
			return false
		}
	}
	return true
}

// serveHandler runs revq handle for each connection to a socket, as a unit with Accept=yes does, and returns its path.
func serveHandler(t *testing.T, handler string) string {
	t.Helper()
	path, revq := filepath.Join(t.TempDir(), "socket"), daemontest.Binary(t, "revq")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			file, err := conn.(*net.UnixConn).File()
			conn.Close()
			if err != nil {
				return
			}
			cmd := exec.Command(revq, "handle", "--task-timeout", "10s", "--", handler)
			cmd.Stdin, cmd.Stdout, cmd.WaitDelay = file, file, time.Second
			if cmd.Start() == nil {
				go cmd.Wait() // it ends with the connection
			}
			file.Close()
		}
	}()
	return path
}
