package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/socket"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// A stub stands for the API, the broker and the workers: what comes of a text is
// in the text. It appends that to the feed of a real socket server.
type stub struct {
	api, socket string
	feed        *feed.Feed
	offset      atomic.Int64
}

func (s *stub) Ready() error { return nil }

func (s *stub) History(ctx context.Context, _, _ int64, _ func(int64, task.Result) error, _ func(int64, string) error, _ func() error) error {
	<-ctx.Done()
	return ctx.Err()
}

func (s *stub) tell(kind task.Kind, id, text string) {
	s.feed.Append(s.offset.Add(1), task.Result{Kind: kind, ID: id, Queue: wire.DefaultQueue, Text: text})
}

func newStub(t *testing.T) *stub {
	t.Helper()
	s := &stub{feed: feed.New(feed.DefaultConfig())}
	s.feed.GoLive()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := socket.New(socket.DefaultConfig(), s.feed, s, slog.New(slog.DiscardHandler))
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		server.Shutdown(ctx) // its error: whoever still listens was told
		<-served
	})
	s.socket = "ws://" + ln.Addr().String()
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		type accepted struct{ ID, Text string }
		var tasks []accepted
		for body := json.NewDecoder(r.Body); ; {
			var t accepted
			if body.Decode(&t) != nil {
				break
			}
			tasks = append(tasks, t)
		}
		if len(tasks) == 1 {
			w.WriteHeader(http.StatusAccepted)
		}
		for _, t := range tasks {
			io.WriteString(w, `{"status":202}`+"\n")
			for step := range strings.SplitSeq(t.Text, ",") {
				switch what, text, _ := strings.Cut(step, ":"); what {
				case "progress":
					s.tell(task.Progress, t.ID, text)
				case "fail":
					s.tell(task.GivenUp, t.ID, text)
				case "lose":
					s.tell(task.Lost, t.ID, text)
				case "done":
					s.tell(task.Done, t.ID, text)
				}
			}
		}
	}))
	t.Cleanup(api.Close)
	s.api = api.URL
	return s
}

// With --wait, revq says of each task that is given up why, waits for the other
// ones, and ends with status 1 without waiting for the time-out.
func TestSendWaitTellsOfTasksThatAreGivenUp(t *testing.T) {
	t.Parallel()
	s := newStub(t)
	for name, tc := range map[string]struct {
		texts          []string
		stdout, stderr string
		status         int
	}{
		"one":     {[]string{"fail:no such file"}, "", "revq: text 1 was accepted, but given up: no such file\nrevq: 1 of 1 texts were given up\n", 1},
		"several": {[]string{"done:a", "progress:1,fail:why\x1b[31m", "done:c"}, "a\nc\n", "revq: text 2 was accepted, but given up: why\\x1b[31m\nrevq: 1 of 3 texts were given up\n", 1},
		"none":    {[]string{"progress:1,done:a"}, "a\n", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stdout, stderr, status := revq(t, append([]string{"send", "--wait", "--url", s.api, "--socket-url", s.socket}, tc.texts...)...)
			if stdout != tc.stdout || stderr != tc.stderr || status != tc.status {
				t.Errorf("status %d, output %q, errors %q; want %d, %q, %q", status, stdout, stderr, tc.status, tc.stdout, tc.stderr)
			}
		})
	}
}

func revq(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "revq", args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestSendWaitShowsProgressOnATerminal(t *testing.T) {
	t.Parallel()
	s := newStub(t)
	screen, terminal := openTerminal(t)
	cmd := exec.CommandContext(t.Context(), "revq", "send", "--wait", "--url", s.api, "--socket-url", s.socket, "progress:50 % \x1b[31m of it,done:a")
	cmd.Stderr = terminal
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	terminal.Close()
	shown, _ := io.ReadAll(screen) // ends when the program does, with EIO
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if want := "\rtext 1: 50 % \\x1b[31m of it\x1b[K"; !strings.Contains(string(shown), want) || onScreen(string(shown)) != "" {
		t.Errorf("shown %q, and then left %q; want %q", shown, onScreen(string(shown)), want)
	}
}

func TestListenToOneTask(t *testing.T) {
	t.Parallel()
	s := newStub(t)
	s.tell(task.Progress, "good", "half")
	s.tell(task.Done, "good", "result")
	s.tell(task.GivenUp, "bad", "no such file")
	s.tell(task.Lost, "lost", "too long")
	for name, tc := range map[string]struct {
		args           []string
		stdout, stderr string
		status         int
	}{
		"done":       {[]string{"--id", "good"}, wire.Greeting + "\nresult\n", "", 0},
		"given up":   {[]string{"--id", "bad"}, wire.Greeting + "\n", "revq: the task \"bad\" was given up: no such file\n", 1},
		"lost":       {[]string{"--id", "lost"}, wire.Greeting + "\n", "revq: the result of \"lost\" cannot be sent: too long\n", 1},
		"others too": {[]string{"--after", "1/good", "--count", "1"}, wire.Greeting + "\nresult\n", "", 0},
		"JSON": {[]string{"--id", "bad", "--json"}, `{"type":"greeting","offset":2,"text":"Salut, let's wait some text..."}` + "\n" +
			`{"type":"failed","offset":3,"id":"bad","queue":"reverse_text","text":"no such file"}` + "\n", "revq: the task \"bad\" was given up: no such file\n", 1},
		"a bad id":    {[]string{"--id", "a b"}, "", "", 2},
		"a bad queue": {[]string{"--queue", "a", "--queue", "B"}, "", "", 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stdout, stderr, status := revq(t, append([]string{"listen", "--url", s.socket}, tc.args...)...)
			if stdout != tc.stdout || status != tc.status || status != 2 && stderr != tc.stderr {
				t.Errorf("status %d, output %q, errors %q; want %d, %q, %q", status, stdout, stderr, tc.status, tc.stdout, tc.stderr)
			}
		})
	}
}

func TestListenToQueues(t *testing.T) {
	t.Parallel()
	s := newStub(t)
	s.tell(task.Done, "1", "before")
	cmd := exec.CommandContext(t.Context(), "revq", "listen", "--url", s.socket, "--after", "1/1", "--queue", "a", "--queue", "b", "--count", "2")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for i, queue := range []string{"c", "a", wire.DefaultQueue, "b"} {
		kind := task.Done
		s.feed.Append(s.offset.Add(1), task.Result{Kind: task.GivenUp, ID: "failed " + queue, Queue: queue, Text: "why"})
		s.feed.Append(s.offset.Add(1), task.Result{Kind: kind, ID: queue, Queue: queue, Text: strings.Repeat(queue, i+1)})
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if got, want := out.String(), wire.Greeting+"\naa\nbbbb\n"; got != want {
		t.Errorf("output %q, want %q", got, want)
	}
	if got, want := errs.String(), "revq: the task \"failed a\" was given up: why\nrevq: the task \"failed b\" was given up: why\n"; got != want {
		t.Errorf("errors %q, want %q", got, want)
	}
}
