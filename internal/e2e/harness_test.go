//go:build linux

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/fasthttp/websocket"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/daemon/daemontest"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/wire"
	"github.com/revq/revq/internal/worker/workertest"
)

func TestMain(m *testing.M) {
	if os.Getenv(failingWorker) != "" {
		workertest.FailingWorker()
		return
	}
	if os.Getenv(attackSpec) != "" {
		runAttackers()
		return
	}
	rabbittest.Main(m)
}

// A system is revq on its own virtual host: an API with two sites and a socket
// server with one. Tests start workers themselves.
type system struct {
	node  *rabbittest.Node
	url   string // of the broker
	vhost string

	binary func(t testing.TB, name string) string // returns the path of a program

	apiSockets    []daemontest.Socket
	socketSockets []daemontest.Socket
	apiSites      []string // HOST:PORT
	socketSite    string

	api, socket *daemontest.Daemon
}

// start starts a system without workers, on the node that the tests share, and
// waits until it works.
func start(t *testing.T) *system {
	t.Helper()
	s := prepare(t, rabbittest.Shared(t))
	s.startFronts(t)
	s.awaitReadyz(t, http.StatusOK)
	return s
}

// prepare returns a system of which nothing runs.
func prepare(t *testing.T, n *rabbittest.Node) *system {
	t.Helper()
	s := &system{node: n, url: rabbittest.NewVhost(t, n), binary: daemontest.Binary}
	s.vhost = s.url[strings.LastIndexByte(s.url, '/')+1:]
	for range 2 {
		ln, addr := daemontest.Listen(t)
		s.apiSockets, s.apiSites = append(s.apiSockets, ln), append(s.apiSites, addr)
	}
	ln, addr := daemontest.Listen(t)
	s.socketSockets, s.socketSite = append(s.socketSockets, ln), addr
	return s
}

func (s *system) startFronts(t *testing.T, socketArgs ...string) {
	t.Helper()
	s.api = s.startDaemon(t, "revq-api", s.apiSockets)
	s.socket = s.startDaemon(t, "revq-socket", s.socketSockets, socketArgs...)
	s.api.WaitReady(t)
	s.socket.WaitReady(t)
}

// startDaemon starts a daemon, which must notify its watchdog whatever the test
// does to others.
func (s *system) startDaemon(t *testing.T, name string, sockets []daemontest.Socket, args ...string) *daemontest.Daemon {
	t.Helper()
	d := daemontest.Start(t, daemontest.Config{
		Path: s.binary(t, name), Args: args, Sockets: sockets, Env: []string{"REVQ_AMQP_URL=" + s.url},
		Watchdog: 2 * time.Second,
	})
	t.Cleanup(func() {
		if strings.Contains(d.Log(), "something hangs") {
			t.Errorf("%s takes itself to hang", name)
		}
	})
	return d
}

// startWorker starts a worker and waits until it consumes.
func (s *system) startWorker(t *testing.T, args ...string) *daemontest.Daemon {
	t.Helper()
	w := s.startDaemon(t, "revq-worker", nil, args...)
	w.WaitReady(t)
	return w
}

// awaitReadyz waits until all sites answer /readyz with status.
func (s *system) awaitReadyz(t *testing.T, status int) {
	t.Helper()
	for _, addr := range append([]string{s.socketSite}, s.apiSites...) {
		await.True(t, fmt.Sprintf("/readyz of %s answers %d", addr, status), func() bool {
			return get(t, addr, wire.ReadyPath).status == status
		})
	}
}

// workerUnacked returns how many unacknowledged tasks each worker has at the
// broker, in ascending order.
func (s *system) workerUnacked(t *testing.T) string {
	t.Helper()
	ctx := await.Context(t)
	// The prefetch distinguishes workers from the reader of the socket server,
	// which has 512, and that they do not publish over the same channel from
	// the consumer that proves that the reader lives.
	out, err := s.node.Eval(ctx, fmt.Sprintf(`list_to_atom(lists:flatten(io_lib:format("~w", [lists:sort([N ||
		[{vhost, V}, {confirm, false}, {prefetch_count, P}, {messages_unacknowledged, N}]
			<- rabbit_channel:info_all([vhost, confirm, prefetch_count, messages_unacknowledged]),
		V =:= <<%q>>, P > 0, P =/= 512])])))`, s.vhost))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Trim(out, "'")
}

// An answer is one of an HTTP server.
type answer struct {
	status int
	header http.Header
	body   string
	took   time.Duration
}

var httpClient = &http.Client{Timeout: await.Patience, Transport: &http.Transport{DisableKeepAlives: true}}

func get(t *testing.T, addr, path string) answer {
	t.Helper()
	return request(t, http.MethodGet, addr, path, "")
}

func post(t *testing.T, addr, contentType, body string) answer {
	t.Helper()
	return request(t, http.MethodPost, addr, wire.QueuePath, body, "Content-Type", contentType)
}

// request sends a request, and reads the answer; header has names and values in
// turn.
func request(t *testing.T, method, addr, path, body string, header ...string) answer {
	t.Helper()
	began := time.Now()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
			continue
		}
		req.Header.Add(header[i], header[i+1])
	}
	res, err := httpClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, string(b), time.Since(began)}
}

// send posts a text with an id and expects it to be accepted.
func send(t *testing.T, addr, id, text string) {
	t.Helper()
	if a := post(t, addr, "application/json", submission(id, text)); a.status != http.StatusAccepted {
		t.Fatalf("POST to %s: %d %s", addr, a.status, a.body)
	}
}

func submission(id, text string) string {
	b, err := json.Marshal(map[string]string{"id": id, "text": text})
	if err != nil {
		panic(err) // strings can always be encoded
	}
	return string(b)
}

// checkProblem returns an error unless a is a problem with a status.
func checkProblem(a answer, status int) error {
	var p wire.Problem
	if err := json.Unmarshal([]byte(a.body), &p); err != nil {
		return fmt.Errorf("answer %d %q: %w", a.status, a.body, err)
	}
	if a.status != status || p.Status != status || p.Detail == "" || a.header.Get("Content-Type") != wire.ProblemType {
		return fmt.Errorf("answer %d %q of type %q, want a problem with status %d", a.status, a.body, a.header.Get("Content-Type"), status)
	}
	return nil
}

// checkUnavailable posts a text and returns an error unless it is refused in a
// way that tells clients when to retry.
func checkUnavailable(t *testing.T, addr string) error {
	t.Helper()
	a := post(t, addr, "text/plain", "refused")
	if err := checkProblem(a, http.StatusServiceUnavailable); err != nil {
		return err
	}
	if a.header.Get("Retry-After") == "" || a.took > 5*time.Second {
		return fmt.Errorf("503 after %v with Retry-After %q, want within 5s and a time", a.took, a.header.Get("Retry-After"))
	}
	t.Logf("%s: 503 after %v", addr, a.took.Round(time.Millisecond))
	return nil
}

// A listener is one connection: it does not reconnect.
type listener struct {
	conn     *websocket.Conn
	format   string
	greeted  wire.Message // with JSON
	messages chan string
	err      error // of reading; set before messages is closed
}

// listen connects to the socket server and reads the greeting.
func (s *system) listen(t *testing.T, format string) *listener {
	t.Helper()
	return s.listenAfter(t, format, "")
}

// listenAfter is listen after a mark, if it is not empty.
func (s *system) listenAfter(t *testing.T, format, after string) *listener {
	t.Helper()
	l := s.connect(t, format, after)
	l.greet(t)
	return l
}

// connect is listenAfter without the greeting: a listener that resumes receives
// it when the server has found its mark.
func (s *system) connect(t *testing.T, format, after string) *listener {
	t.Helper()
	ctx := await.Context(t)
	conn, _, err := websocket.DefaultDialer.DialContext(ctx, "ws://"+s.socketSite+wire.ListenPath+"?format="+format+"&after="+after, nil)
	if err != nil {
		t.Fatal(err)
	}
	l := &listener{conn: conn, format: format, messages: make(chan string, 100_000)}
	t.Cleanup(func() { conn.Close() })
	go func() {
		defer close(l.messages)
		for {
			_, message, err := conn.ReadMessage()
			if err != nil {
				l.err = err
				return
			}
			l.messages <- string(message)
		}
	}()
	return l
}

// greet reads the greeting.
func (l *listener) greet(t *testing.T) {
	t.Helper()
	first := l.next(t)
	if l.format == "json" {
		l.greeted = parse(t, first)
		first = l.greeted.Text
	}
	if first != wire.Greeting {
		t.Fatalf("greeted with %q, want %q", first, wire.Greeting)
	}
}

// events connects as a browser's EventSource does, with after as its last event
// id if that is not empty. It returns a function that waits for the next event.
func (s *system) events(t *testing.T, after string) func() (name string, m wire.Message) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*await.Patience) // the server may wait for a broker that starts
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.socketSite+wire.ListenPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	if after != "" {
		req.Header.Set(wire.LastEventIDHeader, after)
	}
	res, err := httpClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	lines := bufio.NewScanner(res.Body)
	return func() (name string, m wire.Message) {
		t.Helper()
		for lines.Scan() {
			switch field, value, _ := strings.Cut(lines.Text(), ": "); field {
			case "event":
				name = value
			case "data":
				m = parse(t, value)
			case "":
				if m.Type != "" { // otherwise it was a comment
					return name, m
				}
			}
		}
		t.Fatalf("the events ended: %v", lines.Err())
		panic("not reached")
	}
}

// next returns the next message.
func (l *listener) next(t *testing.T) string {
	t.Helper()
	select {
	case m, ok := <-l.messages:
		if !ok {
			t.Fatalf("the listener was disconnected: %v", l.err)
		}
		return m
	case <-time.After(await.Patience):
		t.Fatalf("the listener got nothing for %v", await.Patience)
	}
	panic("not reached")
}

// closeCode waits for the end of the connection and returns its status.
func (l *listener) closeCode(t *testing.T) int {
	t.Helper()
	for {
		select {
		case _, ok := <-l.messages:
			if ok {
				continue
			}
			var closed *websocket.CloseError
			if !errors.As(l.err, &closed) {
				t.Fatalf("the connection ended without a close frame: %v", l.err)
			}
			return closed.Code
		case <-time.After(await.Patience):
			t.Fatalf("the connection was not closed within %v", await.Patience)
		}
	}
}

// nextResult returns the next result at a listener with JSON.
func (l *listener) nextResult(t *testing.T) wire.Message {
	t.Helper()
	m := parse(t, l.next(t))
	if m.Type != "result" {
		t.Fatalf("got %+v, want a result", m)
	}
	return m
}

// failed expects next that a task is given up.
func (l *listener) failed(t *testing.T, id string) {
	t.Helper()
	if m := parse(t, l.next(t)); m.Type != wire.TypeFailed || m.ID != id {
		t.Fatalf("got %+v, want that %s failed", m, id)
	}
}

// collect receives results until it has one for each of the ids. It fails the
// test if a result comes twice or is of another id, or if offsets do not grow.
func (l *listener) collect(t *testing.T, ids []string) []wire.Message {
	t.Helper()
	var got []wire.Message
	open := make(map[string]bool, len(ids))
	for _, id := range ids {
		open[id] = true
	}
	last := int64(-1)
	for len(open) > 0 {
		m := l.nextResult(t)
		if !open[m.ID] {
			t.Fatalf("a result for %q came twice, or unasked", m.ID)
		}
		if m.Offset <= last {
			t.Errorf("offset %d came after %d", m.Offset, last)
		}
		delete(open, m.ID)
		last = m.Offset
		got = append(got, m)
	}
	return got
}

// drainWith sends one more text and expects its result next.
func (l *listener) drainWith(t *testing.T, s *system, id string) {
	t.Helper()
	send(t, s.apiSites[0], id, "x")
	l.collect(t, []string{id})
}

func parse(t *testing.T, message string) wire.Message {
	t.Helper()
	var m wire.Message
	if err := json.Unmarshal([]byte(message), &m); err != nil {
		t.Fatalf("message %q: %v", message, err)
	}
	return m
}

func names(prefix string, n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("%s-%d", prefix, i)
	}
	return ids
}

// foreignPublisher returns a function that publishes messages as another program
// may, which have no more than ids and texts, and waits until they are confirmed.
// Each is a message of its own.
func (s *system) foreignPublisher(t *testing.T) func(key string, texts ...string) {
	t.Helper()
	conn, err := amqp.Dial(s.url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	return func(key string, texts ...string) {
		t.Helper()
		ctx := await.Context(t)
		var all []*amqp.DeferredConfirmation
		for i := 0; i < len(texts); i += 2 {
			confirmed, err := ch.PublishWithDeferredConfirm(rabbit.Exchange, key, true, false, amqp.Publishing{MessageId: texts[i], Body: []byte(texts[i+1])})
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, confirmed)
		}
		for _, confirmed := range all {
			if acked, err := confirmed.WaitContext(ctx); err != nil || !acked {
				t.Fatalf("a message was not confirmed: %v", err)
			}
		}
	}
}
