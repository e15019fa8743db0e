package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/command"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/rabbit/node"
	"github.com/revq/revq/internal/rabbit/rabbittest"
)

// Letters are back in their queue while a pager shows what was found: the
// broker ends a session that holds one for longer than its consumer_timeout.
func TestDeadLettersAreNotHeldByAPager(t *testing.T) {
	if _, err := node.Find(); err != nil && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if testing.Short() {
		t.Skip("starts RabbitMQ")
	}
	t.Parallel()
	broker := rabbit.DefaultConfig("test")
	broker.URLs = []string{rabbittest.NewVhost(t, rabbittest.Shared(t))}
	if _, err := rabbit.Setup(t.Context(), broker); err != nil {
		t.Fatal(err)
	}
	conn, err := amqp.Dial(broker.URLs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err == nil {
		err = ch.Confirm(false)
	}
	if err != nil {
		t.Fatal(err)
	}
	const letters = 20
	var ids []string
	for i := range letters {
		ids = append(ids, fmt.Sprint("letter-", i))
		c, err := ch.PublishWithDeferredConfirm("", rabbit.DeadQueue, true, false, amqp.Publishing{MessageId: ids[i], Body: []byte("text")})
		if err != nil || !c.Wait() {
			t.Fatalf("publish a letter: %v", err)
		}
	}
	for _, args := range [][]string{{"ls"}, {"ls", "--json"}, append([]string{"show"}, ids...), append([]string{"show", "--json"}, ids...)} {
		t.Run(strings.Join(args[:min(2, len(args))], " "), func(t *testing.T) {
			pager, stdout := io.Pipe()
			ended := make(chan int, 1)
			go func() {
				all := append([]string{"revq", "dead", args[0], "--amqp-url", broker.URLs[0]}, args[1:]...)
				ended <- command.Run(context.Background(), root(strings.NewReader(""), stdout, io.Discard), all)
				stdout.Close()
			}()
			if _, err := io.ReadFull(pager, make([]byte, 1)); err != nil { // the first page is there
				t.Fatal(err)
			}
			ready := -1
			for deadline := time.Now().Add(10 * time.Second); ready != letters && time.Now().Before(deadline); {
				q, err := ch.QueueDeclarePassive(rabbit.DeadQueue, true, false, false, false, nil)
				if err != nil {
					t.Fatal(err)
				}
				ready = q.Messages
			}
			if ready != letters {
				t.Errorf("%d letters are in the queue while the pager waits, want %d", ready, letters)
			}
			if _, err := io.Copy(io.Discard, pager); err != nil {
				t.Error(err)
			}
			if status := <-ended; status != command.StatusOK {
				t.Errorf("status %d", status)
			}
		})
	}
}
