package handler

import (
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// lists is a program that writes its variables and its open files, as a filter
// and as a persistent program.
const lists = `look() { env | grep -v -e ^PWD= -e ^_= -e ^SHLVL= | tr '\n' ' '; cd /proc/$$/fd; printf '%s ' *; }
if [ "$1" = filter ]; then look; exit; fi
echo '{"revq":1}'
read -r hello
read -r task
printf '{"id":"task-1","text":"'; look; echo '"}'
read -r end`

// Programs get the variables that README.md names, and no others: the rest may
// be secrets, or what the service manager says to revq.
func TestEnvironment(t *testing.T) {
	// t.Setenv keeps it from being parallel.
	for name, value := range map[string]string{
		"PATH": os.Getenv("PATH"), "LANG": "C.UTF-8", "TZ": "UTC",
		"NOTIFY_SOCKET": filepath.Join(t.TempDir(), "notify"), "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1",
		"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "x", "LISTEN_PIDFDID": "1",
		"CREDENTIALS_DIRECTORY": "/run/credentials/x", "REVQ_AMQP_URL": "amqp://user:secret@host", "GREETING": "hello",
	} {
		t.Setenv(name, value)
	}
	// Files that our own parent has left open reach every process.
	bare, err := exec.Command("/bin/sh", "-c", "cd /proc/$$/fd; printf '%s ' *").Output()
	if err != nil {
		t.Fatal(err)
	}
	const (
		ours     = "LANG PATH REVQ_QUEUE TZ"
		ofATask  = "LANG PATH REVQ_ATTEMPT REVQ_DEADLINE REVQ_LAST_ATTEMPT REVQ_QUEUE REVQ_TASK_ID TZ"
		ofTheirs = "GREETING CREDENTIALS_DIRECTORY"
	)
	for _, tt := range []struct {
		name, mode string
		serve      func(cfg Config, conn *net.UnixConn) // for a unit of its own
		want       string                               // variables
		given      string                               // variables that must be there, too
	}{
		{"filter", filterMode, nil, ofATask, ""},
		{"persistent", persistentMode, nil, ours, ""},
		{"filter in a unit of its own", filterMode, func(cfg Config, conn *net.UnixConn) {
			Serve(t.Context(), cfg, conn, conn, slog.New(slog.DiscardHandler))
		}, "", ofATask + " " + ofTheirs},
		{"persistent in a unit of its own", persistentMode, func(cfg Config, conn *net.UnixConn) {
			file, err := conn.File()
			if err != nil {
				t.Error(err)
				return
			}
			defer file.Close()
			conn.Close()
			Attend(t.Context(), cfg, file, file, os.Stderr)
		}, "", ofTheirs},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := quick()
			cfg.Mode, cfg.Program = tt.mode, []string{"/bin/sh", "-c", lists, "sh", tt.mode}
			if tt.serve != nil {
				served := cfg
				path := filepath.Join(t.TempDir(), "socket")
				cfg.Mode, cfg.Program = socketPrefix+path, nil
				serveSocket(t, path, func(conn net.Conn) { tt.serve(served, conn.(*net.UnixConn)) })
			}
			r := newRig(t, cfg)
			got, err := r.handle("x")
			if err != nil {
				t.Fatal(err)
			}
			var names, files []string
			for word := range strings.FieldsSeq(got) {
				if name, _, variable := strings.Cut(word, "="); variable {
					names = append(names, name)
				} else {
					files = append(files, word)
				}
			}
			slices.Sort(names)
			if all := strings.Join(names, " "); tt.serve == nil && all != tt.want {
				t.Errorf("the program gets %s, want %s", all, tt.want)
			}
			for name := range strings.FieldsSeq(tt.given) {
				if !slices.Contains(names, name) {
					t.Errorf("%s is missing: %s", name, got)
				}
			}
			for _, name := range names {
				for _, forbidden := range []string{"NOTIFY_SOCKET", "LISTEN_", "WATCHDOG_"} {
					if strings.HasPrefix(name, forbidden) {
						t.Errorf("the program gets %s", name)
					}
				}
			}
			if open := strings.Join(files, " "); open != strings.TrimSpace(string(bare)) {
				t.Errorf("the program has the files %s, want %s", open, bare)
			}
		})
	}
}
