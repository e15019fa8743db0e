//go:build linux

package boot

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
)

// copySource builds the programs as systemd/README.md says, and copies them, the
// directory systemd and the examples of handlers to the host.
func (b *bootTest) copySource(t *testing.T) {
	t.Helper()
	repository, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	clone := b.Path(bootSource)
	if err := os.MkdirAll(clone, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"systemd", "internal/handler/examples"} {
		if err := os.CopyFS(filepath.Join(clone, dir), os.DirFS(filepath.Join(repository, dir))); err != nil {
			t.Fatal(err)
		}
	}
	// The commands of the README, but with bin/ in the host.
	build := strings.Replace(documented(t, "build"), "-o bin/", "-o "+filepath.Join(clone, "bin")+"/", 1)
	cmd := exec.Command("bash", "-euc", build)
	cmd.Dir = repository
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", build, err, out)
	}
}

// documented returns the commands in systemd/README.md that follow the mark.
func documented(t *testing.T, mark string) string {
	t.Helper()
	return documentedIn(t, "systemd/README.md", mark)
}

// documentedIn returns the commands in a page that follow the mark.
func documentedIn(t *testing.T, page, mark string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../..", page))
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)<!-- " + mark + " -->\n```[a-z]+\n(.*?)```").FindSubmatch(text)
	if block == nil {
		t.Fatalf("%s has no commands marked %q", page, mark)
	}
	return string(block[1])
}

// inventory lists everything that an installation could leave.
func (b *bootTest) inventory(t *testing.T) string {
	t.Helper()
	var lines []string
	for _, file := range b.Written(t) {
		if !strings.HasPrefix(file, "/var/lib/rabbitmq/") && !strings.HasPrefix(file, "/var/log/") && !isAccounts(file) {
			lines = append(lines, file)
		}
	}
	return strings.Join(lines, "\n") + "\n" + b.Shell(t, `
		find /run /tmp /var/tmp -iname '*revq*' | sort
		rabbitmqctl -q list_vhosts; rabbitmqctl -q list_users
		systemctl list-units --all --plain --no-legend 'revq*'; systemctl list-unit-files --no-legend 'revq*' || :
		getent passwd; cat /etc/group; ps -eo comm= | grep revq || :`)
}

// isAccounts reports whether a file is one of those of users and groups: making
// and removing a group writes them again.
func isAccounts(file string) bool {
	return strings.HasPrefix(file, "/etc/group") || strings.HasPrefix(file, "/etc/gshadow") || file == "/etc/.pwd.lock"
}

// installerTimeout is the time limit of systemd/install, which starts rabbitmqctl
// several times. Measured: 10 s, and more than a minute on a machine that is busy
// with other things.
const installerTimeout = 5 * time.Minute

// installer runs a script that calls systemd/install, in the clone.
func (b *bootTest) installer(t *testing.T, script string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), installerTimeout)
	defer cancel()
	out, err := b.Command(ctx, "bash", "-euc", "cd "+bootSource+"\n"+script).CombinedOutput()
	return string(out), err
}

func (b *bootTest) install(t *testing.T) {
	out, err := b.installer(t, documented(t, "install"))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Log(out)
	b.ear = startEar(t, b.Host)
	if got := b.Run(t, "revq", "send", "--wait", "--text", "abcdef"); got != "fedcba" {
		t.Errorf("revq send --wait printed %q, want fedcba", got)
	}
	await.True(t, "revq listen has the result", func() bool {
		b.ear.mu.Lock()
		defer b.ear.mu.Unlock()
		return len(b.ear.times) == 1
	})
	for _, unit := range []string{"revq.target", "revq-api@1.socket", "revq-api@2.socket", "revq-socket@3.socket",
		"revq-worker@1.service", "revq-worker@2.service", "revq-setup.service"} {
		if state := b.Property(t, unit, "ActiveState"); state != "active" {
			t.Errorf("%s is %s, want active", unit, state)
		}
	}
}

func (b *bootTest) uninstall(t *testing.T, before string) {
	b.Shell(t, "systemctl enable -q --now revq-worker@5; systemctl stop 'revq-worker@*'; systemctl set-property revq.slice CPUWeight=200")
	b.Write(t, bootTarget+"/revq-.service.d/mine.conf", "[Service]\nCPUWeight=50\n")
	b.Run(t, "revq", "send", "--text", "not done yet")
	if out, err := b.installer(t, documented(t, "uninstall")); err == nil || !strings.Contains(out, "1 tasks or dead letters are still at the broker") {
		t.Fatalf("with a task that waits: %v, want a refusal\n%s", err, out)
	}
	b.Shell(t, "systemctl start revq.target")
	await.True(t, "the task is done", func() bool {
		return b.Shell(t, "rabbitmqctl -q -p revq list_queues name messages | grep tasks | cut -f2") == "0"
	})
	b.Run(t, "systemctl", "stop", "ear")
	out, err := b.installer(t, documented(t, "uninstall"))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Log(out)
	if after := b.inventory(t); after != before {
		t.Errorf("something is left, or missing:\n%s", difference(before, after))
	}
}

// difference returns the lines that only one of two texts has.
func difference(before, after string) string {
	var lines []string
	was, is := strings.Split(before, "\n"), strings.Split(after, "\n")
	for _, line := range was {
		if !slices.Contains(is, line) {
			lines = append(lines, "- "+line)
		}
	}
	for _, line := range is {
		if !slices.Contains(was, line) {
			lines = append(lines, "+ "+line)
		}
	}
	return strings.Join(lines, "\n")
}
