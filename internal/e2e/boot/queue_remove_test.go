//go:build linux

package boot

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

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
