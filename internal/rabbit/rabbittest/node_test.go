package rabbittest_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/rabbit/rabbittest"
)

// What tests do with a node: they configure it, look into it, make it hang and
// kill it.
func TestNode(t *testing.T) {
	t.Parallel()
	n := rabbittest.StartNode(t, "consumer_timeout = 61000")
	eval := func(erlang, want string) {
		t.Helper()
		if got, err := n.Eval(await.Context(t), erlang); err != nil || got != want {
			t.Errorf("Eval(%s) = %q, %v, want %q", erlang, got, err, want)
		}
	}
	eval(`application:get_env(rabbit, consumer_timeout)`, "{ok, 61000}")
	for _, erlang := range []string{`1 = 2`, `no_such:function()`, `)`} {
		if got, err := n.Eval(t.Context(), erlang); err == nil {
			t.Errorf("Eval(%s) = %q, want an error", erlang, got)
		}
	}
	if got, err := n.Ctl(t.Context(), "-q", "list_users", "--no-table-headers"); err != nil || got != "revq\t[administrator]\n" {
		t.Errorf("users = %q, %v", got, err)
	}
	for _, vhost := range []string{"/", "a b"} {
		if uri, err := amqp.ParseURI(n.VhostURL(vhost)); err != nil || uri.Vhost != vhost {
			t.Errorf("VhostURL(%q) = %s, %v", vhost, n.VhostURL(vhost), err)
		}
	}

	if err := n.Suspend(); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := n.Eval(short, "1"); err == nil {
		t.Error("a suspended node answers")
	}
	if err := n.Resume(); err != nil {
		t.Fatal(err)
	}
	eval("1", "1")

	url := rabbittest.NewVhost(t, n)
	_, ch := dial(t, url)
	declare(t, ch, "q", "quorum")
	if err := n.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.Kill()
	if err := n.Suspend(); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("Suspend() after Kill = %v", err)
	}
	rabbittest.Restart(t, n)
	_, ch = dial(t, url)
	await.Nil(t, "the queue that was just declared answers", func() error {
		_, _, err := ch.Get("q", true)
		return err
	})
}
