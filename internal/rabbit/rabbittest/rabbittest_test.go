package rabbittest_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/rabbit/rabbittest"
)

func TestMain(m *testing.M) { rabbittest.Main(m) }

// asVictim makes TestVictim the test run that TestKilledRun kills.
const asVictim = "REVQ_RABBITTEST_VICTIM"

func TestVictim(t *testing.T) {
	if os.Getenv(asVictim) == "" {
		t.Skip("only for TestKilledRun")
	}
	fmt.Println("url", rabbittest.URL(t))
	select {}
}

// TestKilledRun kills a test run and expects its RabbitMQ to end. The guard
// keeps the run's standard error open until it has removed everything.
func TestKilledRun(t *testing.T) {
	rabbittest.Shared(t) // skips where there is no RabbitMQ
	tests := []struct {
		name   string
		signal syscall.Signal
	}{
		{"kill -9", syscall.SIGKILL},
		{"SIGQUIT, as by -timeout", syscall.SIGQUIT},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tmp := t.TempDir()
			run := exec.Command(os.Args[0], "-test.run=^TestVictim$")
			run.Env = append(os.Environ(), asVictim+"=1", "TMPDIR="+tmp)
			stdout, err := run.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			stderr, err := run.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := run.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(stdout).ReadString('\n')
			url, ok := strings.CutPrefix(strings.TrimSpace(line), "url ")
			if !ok {
				run.Process.Kill()
				t.Fatalf("victim says %q, %v", line, err)
			}
			conn, _ := dial(t, url)
			closed := conn.NotifyClose(make(chan *amqp.Error, 1))
			if err := run.Process.Signal(tt.signal); err != nil {
				t.Fatal(err)
			}
			<-closed
			if _, err := io.Copy(io.Discard, stderr); err != nil {
				t.Error(err)
			}
			run.Wait()
			if _, err := amqp.Dial(url); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("RabbitMQ after the test run: %v, want connection refused", err)
			}
			if left, err := filepath.Glob(filepath.Join(tmp, "*")); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

func dial(t *testing.T, url string) (*amqp.Connection, *amqp.Channel) {
	t.Helper()
	conn, err := amqp.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return conn, ch
}

func declare(t *testing.T, ch *amqp.Channel, queue, kind string) {
	t.Helper()
	if _, err := ch.QueueDeclare(queue, true, false, false, false, amqp.Table{"x-queue-type": kind}); err != nil {
		t.Fatal(err)
	}
}

// Each test has its own virtual host: it does not see what another declares.
func TestURL(t *testing.T) {
	for _, kind := range []string{"classic", "quorum", "stream"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			url := rabbittest.URL(t)
			_, ch := dial(t, url)
			declare(t, ch, "q", kind) // of another type in each: clashes if shared
			if err := ch.Confirm(false); err != nil {
				t.Fatal(err)
			}
			confirm, err := ch.PublishWithDeferredConfirm("", "q", true, false, amqp.Publishing{Body: []byte("x")})
			if err != nil {
				t.Fatal(err)
			}
			if !confirm.Wait() {
				t.Error("not confirmed")
			}
			if kind != "stream" {
				if got := rabbittest.QueueLength(t, rabbittest.Shared(t), url, "q"); got != 1 {
					t.Errorf("QueueLength() = %d, want 1", got)
				}
			}
		})
	}
}

func TestCloseConnections(t *testing.T) {
	t.Parallel()
	n, url, other := rabbittest.Shared(t), rabbittest.URL(t), rabbittest.URL(t)
	named := amqp.Config{Properties: amqp.Table{"connection_name": "named"}}
	first, err := amqp.DialConfig(url, named)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second, _ := dial(t, url)
	spared, _ := dial(t, other)
	for _, c := range []struct {
		name   string
		closes *amqp.Connection
	}{{"named", first}, {"", second}} {
		closed := c.closes.NotifyClose(make(chan *amqp.Error, 1))
		if got := rabbittest.CloseConnections(t, n, url, c.name); got != 1 {
			t.Errorf("CloseConnections(%q) = %d, want 1", c.name, got)
		}
		if err := <-closed; err == nil || err.Code != amqp.ConnectionForced {
			t.Errorf("connection closed with %v, want %d", err, amqp.ConnectionForced)
		}
	}
	if spared.IsClosed() {
		t.Error("the connection of another virtual host was closed too")
	}
}

// The broker drops a connection whose channels do not end in time, without an
// answer.
func TestCloseConnectionWhoseChannelHangs(t *testing.T) {
	t.Parallel()
	n, url := rabbittest.Shared(t), rabbittest.URL(t)
	conn, _ := dial(t, url)
	closed := conn.NotifyClose(make(chan *amqp.Error, 1))
	vhost := url[strings.LastIndexByte(url, '/')+1:]
	if out, err := n.Eval(t.Context(), fmt.Sprintf(
		`[sys:suspend(Pid) || [{pid, Pid}, {vhost, <<%q>>}] <- rabbit_channel:info_all([pid, vhost])]`, vhost)); err != nil || out != "[ok]" {
		t.Fatalf("suspend the channel: %s, %v", out, err)
	}
	if got := rabbittest.CloseConnections(t, n, url, ""); got != 1 {
		t.Errorf("CloseConnections() = %d, want 1", got)
	}
	await.Value(t, "end of the connection", closed)
}

func TestAlarm(t *testing.T) {
	t.Parallel()
	n := rabbittest.StartNode(t)
	conn, ch := dial(t, rabbittest.NewVhost(t, n))
	declare(t, ch, "q", "quorum")
	blocked := conn.NotifyBlocked(make(chan amqp.Blocking, 1))
	for _, set := range []bool{true, false} {
		if set {
			rabbittest.SetAlarm(t, n)
			// The broker does not tell a connection before it publishes.
			if err := ch.Publish("", "q", false, false, amqp.Publishing{}); err != nil {
				t.Fatal(err)
			}
		} else {
			rabbittest.ClearAlarm(t, n)
		}
		if got := <-blocked; got.Active != set {
			t.Errorf("blocked = %v, want %v", got, set)
		}
	}
}
