package rabbittest_test

import (
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/rabbit/rabbittest"
)

func TestMain(m *testing.M) { rabbittest.Main(m) }

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

// Each test has a world of its own: what one declares, another does not see.
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
			if kind == "classic" {
				if got := rabbittest.QueueLength(t, rabbittest.Node(t), url, "q"); got != 1 {
					t.Errorf("QueueLength() = %d, want 1", got)
				}
			}
		})
	}
}

func TestCloseConnections(t *testing.T) {
	t.Parallel()
	n, url, other := rabbittest.Node(t), rabbittest.URL(t), rabbittest.URL(t)
	conn, _ := dial(t, url)
	spared, _ := dial(t, other)
	closed := conn.NotifyClose(make(chan *amqp.Error, 1))
	if got := rabbittest.CloseConnections(t, n, url); got != 1 {
		t.Errorf("CloseConnections() = %d, want 1", got)
	}
	if err := <-closed; err == nil || err.Code != amqp.ConnectionForced {
		t.Errorf("connection closed with %v, want %d", err, amqp.ConnectionForced)
	}
	if spared.IsClosed() {
		t.Error("the connection of another virtual host was closed too")
	}
}
