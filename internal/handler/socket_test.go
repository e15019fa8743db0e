package handler

import (
	"bufio"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/worker"
)

// serveSocket serves connections to a socket as units with Accept=yes do.
func serveSocket(t *testing.T, path string, serve func(net.Conn)) net.Listener {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return ln
}

func TestSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "socket")
	cfg := quick()
	cfg.Mode = socketPrefix + path
	r := newRig(t, cfg)
	r.expect("x", worker.Misconfigured, "connect to the handler")

	served := quick()
	served.Program = []string{"/bin/sh", "-c", `read -r t; case $t in kill) kill -KILL $$ ;; 65) exit 65 ;; esac; printf '%s %s %s' "$t" "$REVQ_TASK_ID" "$REVQ_ATTEMPT"`}
	connections := make(chan net.Conn, 10)
	ln := serveSocket(t, path, func(conn net.Conn) {
		connections <- conn
		Serve(t.Context(), served, conn, conn, slog.New(slog.DiscardHandler))
	})
	r.expect("a", worker.Done, "a task-1 2")
	r.expect("b", worker.Done, "b task-1 2")
	r.expect("kill", worker.Failed, "signal 9")
	r.expect("65", worker.Never, "exit status 65")
	r.expect("c", worker.Done, "c task-1 2")
	if len(connections) != 1 {
		t.Errorf("%d connections, want one for all tasks", len(connections))
	}

	// The service is started again.
	(<-connections).Close()
	await(t, "the program has ended", r.h.(*pool).ended)
	r.expect("d", worker.Done, "d task-1 2")
	ln.Close()
	(<-connections).Close()
	await(t, "the program has ended", r.h.(*pool).ended)
	r.expect("e", worker.Misconfigured, "connect to the handler")
	serveSocket(t, path, func(conn net.Conn) {
		Serve(t.Context(), served, conn, conn, slog.New(slog.DiscardHandler))
	})
	r.expect("f", worker.Done, "f task-1 2")
}

// The end of a connection kills the program that runs for it.
func TestServeEnds(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := quick()
	cfg.Program = []string{"/bin/sh", "-c", `: > "$0/$$"; echo begun >&2; sleep 1000`, dir}
	said := &record{}
	ours, theirs := net.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(t.Context(), cfg, theirs, theirs, slog.New(slog.NewTextHandler(said, nil)))
	}()
	in := bufio.NewReader(ours)
	if line, err := in.ReadString('\n'); err != nil || line != helloLine {
		t.Fatalf("%q, %v", line, err)
	}
	io.WriteString(ours, helloLine)
	ours.Write(encodeJob(job{id: "a", text: "x", deadline: time.Now().Add(patience)}))
	await(t, "the program runs", func() bool { return strings.Contains(said.String(), "begun") })
	ours.Close()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("it still runs")
	}
	(&rig{t: t, dir: dir}).checkGone()
}

// A line that does not follow the protocol ends the connection, and the error
// shows it.
func TestServeRefuses(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"GET / HTTP/1.1\n":                                       `"GET / HTTP/1.1\n"`,
		helloLine + "abcdef\n":                                   `"abcdef\n"`,
		helloLine + `{"id":"a b","text":"x"}`:                    "unexpected EOF",
		helloLine + `{"id":"","text":"x"}` + "\n":                "task id",
		helloLine + `{"id":"a","text":"x","deadline":-1}` + "\n": "deadline",
		helloLine: "",
		"":        "",
	} {
		cfg := quick()
		cfg.Program = []string{"/bin/cat"}
		err := Serve(t.Context(), cfg, strings.NewReader(in), io.Discard, slog.New(slog.DiscardHandler))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
}
