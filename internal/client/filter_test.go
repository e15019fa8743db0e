package client

import (
	"fmt"
	"testing"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/socket"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// A listener to one task ends with its last message, also over a lost
// connection, and does not hear progress twice.
func TestListenToOneTask(t *testing.T) {
	t.Parallel()
	f := feed.New(feed.DefaultConfig())
	url, stop := serveSocket(t, "127.0.0.1:0", socket.DefaultConfig(), f)
	f.Append(1, task.Result{Kind: task.Progress, ID: "mine", Queue: "a", Text: "half"})
	f.Append(2, result("other", "other"))
	l := &Listener{URLs: []string{url}, ID: "mine", Queues: []string{"a", "b"}}
	calls, ended, _ := listen(t, l)
	next(t, calls, "greeted")
	if call := next(t, calls, "received"); call.message != "half" {
		t.Errorf("received %+v", call)
	}
	stop()
	next(t, calls, "lost")
	address := url[len("ws://") : len(url)-len(wire.ListenPath)]
	serveSocket(t, address, socket.DefaultConfig(), f)
	f.Append(3, task.Result{Kind: task.GivenUp, ID: "mine", Queue: "a", Text: "why"})
	f.Append(4, result("mine", "not heard"))
	for call := range calls {
		if call.what == "received" {
			if call.message != "why" {
				t.Errorf("received %+v", call)
			}
			break
		}
	}
	if err := <-ended; err != nil {
		t.Errorf("Run = %v", err)
	}
	if want := (wire.Mark{Offset: 3, ID: "mine"}); *l.After != want {
		t.Errorf("it stands after %v, want %v", l.After, want)
	}
}

// What moves a listener on, and what does not.
func TestMoveOn(t *testing.T) {
	t.Parallel()
	l := &Listener{}
	for _, tc := range []struct {
		message string
		offset  int64
		want    string
	}{
		{wire.TypeGreeting, 5, "5/x"},
		{wire.TypeGreeting, 1, "5/x"},
		{wire.TypeResult, 6, "6/x"},
		{wire.TypeProgress, 7, "7/x"},
		{wire.TypeFailed, 8, "8/x"},
		{wire.TypeLost, 9, "9/x"},
		{wire.TypeMark, 10, "10/x"},
		{"of a later version", 11, "10/x"},
		{wire.TypeGap, 12, "-1"},
	} {
		l.moveOn(wire.Message{Type: tc.message, Offset: tc.offset, ID: "x"})
		if got := fmt.Sprint(l.After); got != tc.want {
			t.Errorf("after a %s it stands after %s, want %s", tc.message, got, tc.want)
		}
	}
}
