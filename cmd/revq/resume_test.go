package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/rabbit/node"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/stack/stacktest"
	"github.com/revq/revq/internal/wire"
)

// An interrupted send prints what became of each text, and a command that
// carries on. After that command each text is queued, under one id.
func TestSendCarriesOn(t *testing.T) {
	if _, err := node.Find(); err != nil && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if testing.Short() {
		t.Skip("starts RabbitMQ")
	}
	t.Parallel()
	const lines, batches = 1000, 4 // that are answered before the front stalls
	broker := rabbittest.StartNode(t)
	input := filepath.Join(t.TempDir(), "texts")
	var texts strings.Builder
	for i := range lines {
		fmt.Fprintf(&texts, "text %d\n\n", i+1) // in the lines 1, 3, 5 and so on
	}
	write(t, input, texts.String())
	for name, passed := range map[string]bool{"the front does not pass on": false, "the front loses the answer": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			amqpURL := rabbittest.NewVhost(t, broker)
			front, stalls := stallingFront(t, startAPI(t, amqpURL), batches, passed)
			stderr := interrupted(t, []string{"send", "--quiet", "--url", front, "--file", input}, stalls)
			told := regexp.MustCompile(`^revq: may be queued or not: lines (\d+) to (\d+)
revq: not queued: everything after line (\d+)
revq: to carry on without duplicate results, repeat the command with (--resume-from (\d+)/\S+)
revq: interrupted
$`).FindStringSubmatch(stderr)
			if told == nil || told[5] != told[1] || told[3] != told[2] {
				t.Fatalf("told %q", stderr)
			}
			before := queued(t, amqpURL)
			for line := 1; line < 2*lines; line += 2 {
				var first, last int
				fmt.Sscan(told[1], &first)
				fmt.Sscan(told[2], &last)
				n := len(before[fmt.Sprintf("text %d", line/2+1)])
				if want := line < first || passed && line <= last; (n == 1) != want {
					t.Errorf("line %d is queued %d times; told %q", line, n, told[0])
				}
			}
			args := append([]string{"send", "--quiet", "--url", front, "--file", input}, strings.Fields(told[4])...)
			if out, err := exec.CommandContext(t.Context(), "revq", args...).CombinedOutput(); err != nil || len(out) > 0 {
				t.Fatalf("the second run: %v, %s", err, out)
			}
			after, again := queued(t, amqpURL), 0
			for text, ids := range after {
				for _, id := range append(before[text], ids...) {
					if id != ids[0] {
						t.Errorf("%q is queued under several ids", text)
					}
				}
				again += len(before[text])
				before[text] = append(before[text], ids...)
			}
			if len(before) != lines {
				t.Errorf("%d texts are queued, want %d", len(before), lines)
			}
			if limit := 100; !passed && again > 0 || again > limit {
				t.Errorf("%d texts were queued twice", again)
			}
		})
	}
}

// startAPI runs revq-api alone until the test ends, so that tasks stay in the
// queue. It returns its URL.
func startAPI(t *testing.T, amqpURL string) string {
	t.Helper()
	dir := stacktest.Programs(t)
	address := fmt.Sprintf("127.0.0.1:%d", stacktest.Ports(t, 1))
	setup := rabbit.DefaultConfig("test")
	setup.URLs = []string{amqpURL}
	if _, err := rabbit.Setup(t.Context(), setup); err != nil {
		t.Fatal(err)
	}
	log := stacktest.NewBuffer()
	cmd := exec.Command(filepath.Join(dir, "revq-api"), "--listen", address)
	cmd.Env = append(os.Environ(), "REVQ_AMQP_URL="+amqpURL)
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("log of revq-api:\n%s", log)
		}
	})
	log.Await(t, "msg=ready", 1)
	return "http://" + address
}

// stallingFront passes some requests on. The client gets no answer to the next
// one, whether or not that is passed on. After it, all are passed on. The
// channel is closed when the one request is held.
func stallingFront(t *testing.T, api string, requests int64, passed bool) (string, <-chan struct{}) {
	t.Helper()
	to, err := url.Parse(api)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(to)
	var n atomic.Int64
	stalls, end := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1) != requests+1 {
			proxy.ServeHTTP(w, r)
			return
		}
		if passed {
			proxy.ServeHTTP(httptest.NewRecorder(), r.WithContext(context.WithoutCancel(r.Context())))
		}
		close(stalls)
		<-end
	}))
	t.Cleanup(func() {
		close(end)
		server.Close()
	})
	return server.URL, stalls
}

// interrupted runs revq, sends it SIGINT once at is closed, and returns what it
// writes to stderr.
func interrupted(t *testing.T, args []string, at <-chan struct{}) string {
	t.Helper()
	var stderr strings.Builder
	cmd := exec.Command("revq", args...)
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-at:
	case <-time.After(time.Minute):
		t.Error("nothing to interrupt")
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("ended with %v, want status 1", err)
	}
	return stderr.String()
}

// queued takes all tasks from the queue, and returns the ids of each text.
func queued(t *testing.T, amqpURL string) map[string][]string {
	t.Helper()
	conn, err := amqp.Dial(amqpURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	ids := make(map[string][]string)
	for {
		m, ok, err := ch.Get(rabbit.TasksQueue, true)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return ids
		}
		ids[string(m.Body)] = append(ids[string(m.Body)], m.MessageId)
	}
}

// What send prints when not all texts are sent. The fake API decides each text
// by its content.
func TestSendTells(t *testing.T) {
	t.Parallel()
	api := func(t *testing.T, status func(line string) (status int, certain bool)) string {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			var answer strings.Builder
			lines := strings.Split(strings.TrimSpace(string(body)), "\n")
			for _, line := range lines {
				s, certain := status(line)
				id := `,"id":"x"`
				if certain {
					id = ""
				}
				fmt.Fprintf(&answer, `{"status":%d,"detail":"reason %[1]d"%s}`+"\n", s, id)
				if len(lines) == 1 {
					if s != http.StatusAccepted {
						w.Header().Set("Content-Type", wire.ProblemType)
					}
					w.WriteHeader(s)
				}
			}
			fmt.Fprint(w, answer.String())
		}))
		t.Cleanup(server.Close)
		return server.URL
	}
	byText := api(t, func(line string) (int, bool) {
		for _, word := range []struct {
			text    string
			status  int
			certain bool
		}{{"bad", 400, true}, {"full", 503, true}, {"maybe", 503, false}} {
			if strings.Contains(line, `"text":"`+word.text) { // an id may hold "bad", too
				return word.status, word.certain
			}
		}
		return http.StatusAccepted, true
	})
	for _, tt := range []struct {
		name, input, want string
		args              []string
	}{
		{"all states in a batch", "a\nbad\nb\nmaybe\nfull\nc\nmaybe\nmaybe\nd\n", `revq: line 2 was not accepted: reason 400
revq: may be queued or not: line 4, lines 7 to 8
revq: not queued: line 5
revq: not queued: everything after line 9
revq: to carry on without duplicate results, repeat the command with --resume-from 4/RUN
revq: reason 503
`, nil},
		{"one text that may be queued", "", `revq: may be queued or not: text 1
revq: to carry on without duplicate results, repeat the command with --resume-from 1/RUN
revq: reason 503
`, []string{"maybe"}},
		{"one that is not", "", "revq: reason 503\n", []string{"full"}},
		{"texts", "", `revq: not queued: text 2
revq: to carry on without duplicate results, repeat the command with --resume-from 2/RUN
revq: reason 503
`, []string{"a", "full", "b"}},
		{"carried on", "a\nbad\nb\n", "", []string{"--resume-from", "3/x", "--file", "-"}},
		{"a place that is none", "", `revq: --resume-from: "0/x" is not a place in the input: give NUMBER/RUN as revq send printed it, or the NUMBER of a line or text, from 1 (see revq send --help)` + "\n", []string{"--resume-from", "0/x"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), "revq", append([]string{"send", "--timeout", "2s", "--url", byText}, tt.args...)...)
			var stderr strings.Builder
			cmd.Stdin, cmd.Stderr = strings.NewReader(tt.input), &stderr
			if err := cmd.Run(); (err == nil) != (tt.want == "") {
				t.Errorf("ended with %v", err)
			}
			if got := regexp.MustCompile(`(--resume-from \d+/)[0-9a-f-]{36}\n`).ReplaceAllString(stderr.String(), "${1}RUN\n"); got != tt.want {
				t.Errorf("told\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}
