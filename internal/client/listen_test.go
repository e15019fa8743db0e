package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fasthttp/websocket"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/socket"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// noHistory stands for a broker that has nothing but what the feed has.
type noHistory struct{}

func (noHistory) Ready() error { return nil }

func (noHistory) History(ctx context.Context, _, _ int64, _ func(int64, task.Result) error, _ func(int64, string) error, _ func() error) error {
	<-ctx.Done()
	return ctx.Err()
}

// serveSocket runs the real socket server over f at an address until stop or
// the test ends.
func serveSocket(t *testing.T, address string, cfg socket.Config, f *feed.Feed) (url string, stop func()) {
	t.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	f.GoLive()
	server := socket.New(cfg, f, noHistory{}, slog.New(slog.DiscardHandler))
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	stop = sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(server.Shutdown(ctx), <-served); err != nil {
			t.Error("socket server:", err)
		}
	})
	t.Cleanup(stop)
	return "ws://" + ln.Addr().String() + wire.ListenPath, stop
}

// A heard is one call of a Listener's functions.
type heard struct {
	what    string // "greeted", "received" or "lost"
	message string
	reason  error
	wait    time.Duration
}

// listen runs l until the test ends, and returns what it hears and, in the end,
// its error.
func listen(t *testing.T, l *Listener) (calls <-chan heard, ended <-chan error, cancel context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	all := make(chan heard, 1000)
	end := make(chan error, 1)
	l.Greeted = func(m Message) error { all <- heard{what: "greeted", message: m.Text}; return nil }
	l.Received = func(m Message) error { all <- heard{what: "received", message: m.Text}; return nil }
	l.Lost = func(reason error, wait time.Duration) { all <- heard{what: "lost", reason: reason, wait: wait} }
	done := make(chan struct{})
	go func() {
		defer close(done)
		end <- l.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return all, end, cancel
}

// next returns the next call, which must be what.
func next(t *testing.T, calls <-chan heard, what string) heard {
	t.Helper()
	select {
	case call := <-calls:
		if call.what != what {
			t.Fatalf("got %+v, want %s", call, what)
		}
		return call
	case <-time.After(time.Minute):
		t.Fatalf("not %s within a minute", what)
		return heard{}
	}
}

func result(id, text string) task.Result {
	return task.Result{ID: id, Text: text, Done: time.Now()}
}

func TestListen(t *testing.T) {
	t.Parallel()
	f := feed.New(feed.DefaultConfig())
	url, _ := serveSocket(t, "127.0.0.1:0", socket.DefaultConfig(), f)
	base := strings.TrimSuffix(url, wire.ListenPath)
	offset := int64(0)
	for name, address := range map[string]string{"with the path": url, "without a path": base, "with a slash": base + "/"} {
		calls, _, _ := listen(t, &Listener{URLs: []string{address}})
		if got := next(t, calls, "greeted").message; got != wire.Greeting {
			t.Errorf("%s: greeted with %q, want %q", name, got, wire.Greeting)
		}
		for _, text := range []string{"cba", "", strings.Repeat("x", 1<<20)} {
			offset++
			f.Append(offset, result(task.NewID(), text))
			if got := next(t, calls, "received").message; got != text {
				t.Errorf("%s: received %.20q, want %.20q", name, got, text)
			}
		}
	}
	calls, _, _ := listen(t, &Listener{URLs: []string{base + "?format=text"}, After: &wire.Mark{Offset: offset - 1}})
	next(t, calls, "greeted")
	next(t, calls, "received") // the last one of all
}

// A listener waits for a server that is not there yet, longer each time, and
// comes back to one that was restarted.
func TestListenReconnects(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	ln.Close()
	calls, _, _ := listen(t, &Listener{URLs: []string{"ws://" + address}})
	for _, longest := range []time.Duration{retryMin, 2 * retryMin, 4 * retryMin} {
		lost := next(t, calls, "lost")
		if lost.wait < longest/2 || lost.wait > longest {
			t.Errorf("waits %v, want %v to %v", lost.wait, longest/2, longest)
		}
		var dial *net.OpError
		if !errors.As(lost.reason, &dial) || dial.Op != "dial" {
			t.Errorf("reason: %v, want that of dialling", lost.reason)
		}
	}
	f := feed.New(feed.DefaultConfig())
	_, stop := serveSocket(t, address, socket.DefaultConfig(), f)
	for {
		call := <-calls
		if call.what == "greeted" {
			break
		}
		if call.what != "lost" {
			t.Fatalf("got %+v", call)
		}
	}
	f.Append(1, result("1", "before"))
	next(t, calls, "received")

	stop()
	var closed *websocket.CloseError
	if lost := next(t, calls, "lost"); !errors.As(lost.reason, &closed) || closed.Code != websocket.CloseServiceRestart {
		t.Errorf("reason: %v, want that the service restarts", lost.reason)
	}
	serveSocket(t, address, socket.DefaultConfig(), f)
	for {
		if call := <-calls; call.what == "greeted" {
			break
		}
	}
	f.Append(2, result("2", "after"))
	if got := next(t, calls, "received").message; got != "after" {
		t.Errorf("received %q, want what came after", got)
	}
}

// What is appended while a listener is away comes when it is back, and nothing
// comes twice.
func TestListenResumes(t *testing.T) {
	t.Parallel()
	f := feed.New(feed.DefaultConfig())
	url, stop := serveSocket(t, "127.0.0.1:0", socket.DefaultConfig(), f)
	f.Append(7, result("7", "seven"))
	l := &Listener{URLs: []string{url}}
	calls, _, _ := listen(t, l)
	next(t, calls, "greeted")
	stop() // nothing was received yet but the greeting, which tells the place
	next(t, calls, "lost")
	for i := int64(8); i < 20; i++ {
		f.Append(i, result(fmt.Sprint(i), fmt.Sprint("text ", i)))
	}
	serveSocket(t, strings.TrimSuffix(strings.TrimPrefix(url, "ws://"), wire.ListenPath), socket.DefaultConfig(), f)
	for {
		if call := <-calls; call.what == "greeted" {
			break
		}
	}
	for i := int64(8); i < 20; i++ {
		if got := next(t, calls, "received").message; got != fmt.Sprint("text ", i) {
			t.Errorf("received %q, want text %d", got, i)
		}
	}
}

// A listener with several sites goes on at the next one, with the same offsets;
// it waits longer only when it has tried all of them.
func TestListenAtSeveralSites(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "ws://" + ln.Addr().String()
	ln.Close()
	f := feed.New(feed.DefaultConfig())
	first, stop := serveSocket(t, "127.0.0.1:0", socket.DefaultConfig(), f)
	second, _ := serveSocket(t, "127.0.0.1:0", socket.DefaultConfig(), f)
	l := &Listener{URLs: []string{nobody, first, second}}
	calls, _, _ := listen(t, l)
	if lost := next(t, calls, "lost"); lost.wait > retryMin {
		t.Errorf("waits %v before the second site is tried, want at most %v", lost.wait, retryMin)
	}
	next(t, calls, "greeted")
	f.Append(1, result("1", "at the first"))
	next(t, calls, "received")
	stop()
	if lost := next(t, calls, "lost"); lost.wait > retryMin {
		t.Errorf("waits %v after a connection that worked, want at most %v", lost.wait, retryMin)
	}
	f.Append(2, result("2", "between"))
	next(t, calls, "greeted")
	if got := next(t, calls, "received").message; got != "between" {
		t.Errorf("received %q, want what came meanwhile", got)
	}
}

// A server that is full may have room later.
func TestListenFull(t *testing.T) {
	t.Parallel()
	cfg := socket.DefaultConfig()
	cfg.MaxListeners = 1
	url, _ := serveSocket(t, "127.0.0.1:0", cfg, feed.New(feed.DefaultConfig()))
	first, firstEnded, leave := listen(t, &Listener{URLs: []string{url}})
	next(t, first, "greeted")
	second, _, _ := listen(t, &Listener{URLs: []string{url}})
	next(t, second, "lost")
	leave()
	if err := <-firstEnded; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for {
		if call := <-second; call.what == "greeted" {
			break
		}
	}
}

// An error that a retry cannot fix ends Run at once.
func TestListenRefused(t *testing.T) {
	t.Parallel()
	url, _ := serveSocket(t, "127.0.0.1:0", socket.DefaultConfig(), feed.New(feed.DefaultConfig()))
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<html>")) }))
	t.Cleanup(page.Close)
	host := strings.TrimPrefix(page.URL, "http://")
	for _, tt := range []struct{ url, want string }{
		{url + "_not", "the server refuses: there is nothing here: listen at /listen_results"},
		{url + "_not?format=text", "the server refuses: there is nothing here: listen at /listen_results"},
		{"ws://" + host, "the server refuses: " + host + " answers 200 OK, not as revq does: check the URL"},
	} {
		calls, ended, _ := listen(t, &Listener{URLs: []string{tt.url}})
		if err := <-ended; !errors.Is(err, ErrRefused) || err.Error() != tt.want {
			t.Errorf("%s: %v, want %s", tt.url, err, tt.want)
		}
		if len(calls) > 0 {
			t.Errorf("%s: got %+v", tt.url, <-calls)
		}
	}
	for _, address := range []string{"", "localhost:8083", "http://localhost:8083", "ws://", "ws://a b/"} {
		if err := (&Listener{URLs: []string{url, address}}).Run(t.Context()); !errors.Is(err, ErrBadURL) {
			t.Errorf("%q: %v, want ErrBadURL", address, err)
		}
	}
	if err := new(Listener).Run(t.Context()); !errors.Is(err, ErrBadURL) {
		t.Errorf("no URL: %v, want ErrBadURL", err)
	}
}

// Other errors of a server may pass: those of a proxy while the server is away,
// and no websocket at all.
func TestListenServerErrors(t *testing.T) {
	t.Parallel()
	statuses := []int{500, 502, 503, 504, 429}
	var mu sync.Mutex
	left := slices.Clone(statuses)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if len(left) == 0 {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		w.WriteHeader(left[0])
		left = left[1:]
	}))
	t.Cleanup(server.Close)
	calls, ended, _ := listen(t, &Listener{URLs: []string{"ws" + strings.TrimPrefix(server.URL, "http")}})
	for _, status := range statuses {
		if lost := next(t, calls, "lost"); !strings.Contains(lost.reason.Error(), http.StatusText(status)) {
			t.Errorf("reason: %v, want %d", lost.reason, status)
		}
	}
	if err := <-ended; !errors.Is(err, ErrRefused) {
		t.Errorf("ended with %v, want ErrRefused", err)
	}
}

// An error of the functions ends Run and is returned as it is.
func TestListenFunctionErrors(t *testing.T) {
	t.Parallel()
	f := feed.New(feed.DefaultConfig())
	url, _ := serveSocket(t, "127.0.0.1:0", socket.DefaultConfig(), f)
	enough := errors.New("enough")
	l := &Listener{URLs: []string{url}, Greeted: func(Message) error { return enough }}
	if err := l.Run(t.Context()); err != enough {
		t.Errorf("Greeted: %v, want its error", err)
	}
	l = &Listener{
		URLs:     []string{url},
		Greeted:  func(Message) error { f.Append(1, result("1", "x")); return nil },
		Received: func(Message) error { return enough },
	}
	if err := l.Run(t.Context()); err != enough {
		t.Errorf("Received: %v, want its error", err)
	}
}

// raw returns the URL of a websocket server in the test that serves each
// connection with serve.
func raw(t *testing.T, serve func(*websocket.Conn)) string {
	upgrader := websocket.Upgrader{}
	var serving sync.WaitGroup
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serving.Add(1)
		defer serving.Done()
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		serve(conn)
	}))
	t.Cleanup(func() {
		server.Close()
		serving.Wait() // it does not do so for websockets
	})
	return "ws" + strings.TrimPrefix(server.URL, "http")
}

// A connection is kept as long as the server shows that it is there, and given
// up when it does not.
func TestListenSilence(t *testing.T) {
	t.Parallel()
	const silence = time.Second
	var connections atomic.Int64
	url := raw(t, func(conn *websocket.Conn) {
		conn.WriteMessage(websocket.TextMessage, []byte(`{"type":"greeting","text":"hello"}`))
		if connections.Add(1) > 1 {
			conn.ReadMessage()
			return
		}
		pongs := make(chan struct{}, 1)
		conn.SetPongHandler(func(string) error { pongs <- struct{}{}; return nil })
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			conn.ReadMessage()
		}()
		ticker := time.NewTicker(silence / 4)
		defer ticker.Stop()
		for range 6 { // half as long again as it may be silent
			<-ticker.C
			if err := conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(silence)); err != nil {
				t.Error(err)
				return
			}
			select {
			case <-pongs:
			case <-closed:
				t.Error("closed in spite of the pings")
				return
			}
		}
		conn.WriteMessage(websocket.TextMessage, []byte(`{"type":"result","text":"still there"}`))
		<-closed // and silent from now on
	})
	calls, _, _ := listen(t, &Listener{URLs: []string{url}, Silence: silence})
	next(t, calls, "greeted")
	next(t, calls, "received")
	began := time.Now()
	lost := next(t, calls, "lost")
	var timeout net.Error
	if !errors.As(lost.reason, &timeout) || !timeout.Timeout() {
		t.Errorf("reason: %v, want a timeout", lost.reason)
	}
	if waited := time.Since(began); waited < silence*9/10 {
		t.Errorf("given up after %v of silence, want %v", waited, silence)
	}
	next(t, calls, "greeted") // by a new connection
}

// Run ends with ctx, whatever it is doing.
func TestListenInterrupted(t *testing.T) {
	t.Parallel()
	url, _ := serveSocket(t, "127.0.0.1:0", socket.DefaultConfig(), feed.New(feed.DefaultConfig()))
	mute, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mute.Close() })
	for name, tt := range map[string]struct {
		url   string
		begin func(calls <-chan heard)
	}{
		"listening":  {url, func(calls <-chan heard) { next(t, calls, "greeted") }},
		"waiting":    {"ws://127.0.0.1:1", func(calls <-chan heard) { next(t, calls, "lost") }},
		"connecting": {"ws://" + mute.Addr().String(), func(<-chan heard) { mute.Accept() }},
	} {
		calls, ended, cancel := listen(t, &Listener{URLs: []string{tt.url}})
		tt.begin(calls)
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want that of the context", name, err)
		}
	}
}

// proxied makes all that asks the environment for a proxy use one, which knows
// revq.invalid as this machine. http.ProxyFromEnvironment reads the environment
// once in a process, and returns no proxy for 127.0.0.1.
var proxied = sync.OnceFunc(func() {
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, port, _ := net.SplitHostPort(r.Host)
		if r.Method != http.MethodConnect || host != "revq.invalid" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		to, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		w.WriteHeader(http.StatusOK)
		from, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		go func() { defer from.Close(); io.Copy(from, to) }()
		go func() { defer to.Close(); io.Copy(to, from) }()
	}))
	os.Setenv("HTTP_PROXY", proxy.URL)
})

// A proxy is asked to CONNECT, also for ws: many do not pass an upgrade on.
// This test is not parallel, so that it runs before those that are.
func TestListenThroughProxy(t *testing.T) {
	proxied()
	url, _ := serveSocket(t, "127.0.0.1:0", socket.DefaultConfig(), feed.New(feed.DefaultConfig()))
	calls, _, _ := listen(t, &Listener{URLs: []string{strings.Replace(url, "127.0.0.1", "revq.invalid", 1)}})
	next(t, calls, "greeted")
}
