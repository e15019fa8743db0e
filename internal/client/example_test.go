package client_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/revq/revq/internal/api"
	"github.com/revq/revq/internal/client"
	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/socket"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// Two texts are posted in one request. The second one is longer than the API
// takes: it is refused for good, so posting it again would not help.
func ExampleSender() {
	address, stop := exampleAPI() // of a running system: localhost:8081
	defer stop()

	s := client.Sender{URL: "http://" + address, Timeout: 10 * time.Second}
	answers, err := s.Send(context.Background(), []task.Task{
		{ID: task.NewID(), Text: "abcdef"},
		{ID: task.NewID(), Text: strings.Repeat("x", task.DefaultMaxText+1)},
	})
	if err != nil { // no API was reached in time: there is no use in sending more
		fmt.Println(err)
		return
	}
	for _, answer := range answers {
		switch {
		case answer == nil:
			fmt.Println("queued")
		case client.IsFinal(answer):
			fmt.Println("refused:", answer)
		case client.IsUncertain(answer):
			fmt.Println("may be queued, send it again with the same id:", answer)
		default:
			fmt.Println("not queued:", answer)
		}
	}
	// Output:
	// queued
	// refused: the text is too long: 65537 bytes, at most 65536 are taken
}

// A listener that was away begins after the last result that it received, and
// ends after two more. A program that stores what it receives stores After with
// it, and begins there next time.
func ExampleListener() {
	address, stop := exampleSocket("first", "second", "third") // of a running system: localhost:8083
	defer stop()

	enough := errors.New("enough")
	var received []string
	l := client.Listener{
		URLs:  []string{"ws://" + address},
		After: &wire.Mark{Offset: 1, ID: "id-1"},
	}
	l.Received = func(m client.Message) error {
		switch m.Type {
		case wire.TypeResult:
			received = append(received, m.Text)
		case wire.TypeGap:
			fmt.Println("results are missing here:", m.Text)
		}
		if len(received) == 2 {
			return enough // ends Run
		}
		return nil
	}
	l.Lost = func(reason error, wait time.Duration) { fmt.Println(reason, "- connecting again in", wait) }
	if err := l.Run(context.Background()); !errors.Is(err, enough) {
		fmt.Println(err)
	}
	fmt.Println(received)
	// Output:
	// [second third]
}

// exampleAPI serves the API. Its broker confirms everything.
func exampleAPI() (address string, stop func()) {
	server := api.New(api.DefaultConfig(), confirming{}, slog.New(slog.DiscardHandler))
	return serve(server)
}

// exampleSocket serves a socket site that has results with the offsets 1, 2, 3
// and the ids id-1, id-2, id-3.
func exampleSocket(texts ...string) (address string, stop func()) {
	f := feed.New(feed.DefaultConfig())
	f.GoLive()
	for i, text := range texts {
		f.Append(int64(i+1), task.Result{ID: fmt.Sprint("id-", i+1), Text: text, Done: time.Now()})
	}
	return serve(socket.New(socket.DefaultConfig(), f, nothing{}, slog.New(slog.DiscardHandler)))
}

func serve(server interface {
	Serve(net.Listener) error
	Shutdown(context.Context) error
}) (address string, stop func()) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	return ln.Addr().String(), func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(server.Shutdown(ctx), <-served); err != nil {
			panic(err)
		}
	}
}

// confirming stands for a broker that confirms each task.
type confirming struct{}

func (confirming) Ready() error { return nil }

func (confirming) PublishTask(task.Task) <-chan error {
	confirmed := make(chan error, 1)
	confirmed <- nil
	return confirmed
}

// nothing stands for a broker that keeps no results.
type nothing struct{}

func (nothing) Ready() error { return nil }

func (nothing) History(ctx context.Context, _, _ int64, _ func(int64, task.Result) error, _ func(int64, string) error, _ func() error) error {
	<-ctx.Done()
	return ctx.Err()
}
