package feed_test

import (
	"fmt"
	"time"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// Two listeners read the same frames: one that has been there from the start,
// and one that resumes after the result at offset 41.
func ExampleFeed() {
	f := feed.New(feed.DefaultConfig())
	f.GoLive()
	at, _ := f.Join(feed.Text)

	done := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	f.Append(41, task.Result{ID: "order-6", Text: "cba", Done: done})
	f.Append(42, task.Result{ID: "order-7", Text: "fed", Done: done})
	f.Append(43, task.Result{ID: "order-7", Text: "fed", Done: done}) // a repetition: nobody gets it

	frames, err := f.Log(feed.Text).Read(at)
	fmt.Printf("%q %v\n", frames, err)
	at += feed.Position(len(frames)) // where the listener stands after it was sent all of that
	frames, err = f.Log(feed.Text).Read(at)
	fmt.Printf("%q %v\n", frames, err)

	at, verdict := f.Find(feed.Text, wire.Mark{Offset: 41, ID: "order-6"})
	frames, _ = f.Log(feed.Text).Read(at)
	fmt.Printf("%q %v\n", frames, verdict == feed.Here)

	_, verdict = f.Find(feed.Text, wire.Mark{Offset: 41, ID: "another"})
	fmt.Println("of another stream:", verdict == feed.Foreign)
	// Output:
	// "\x81\x03cba\x81\x03fed" <nil>
	// "" <nil>
	// "\x81\x03fed" true
	// of another stream: true
}
