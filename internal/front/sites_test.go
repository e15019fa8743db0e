package front_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/revq/revq/internal/api"
	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/socket"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// patience bounds what a test waits for. An answer that comes only with a
// server's time-out, which is longer, is a failure.
const patience = 15 * time.Second

// broker confirms all tasks, and has no results.
type broker struct {
	mu    sync.Mutex
	tasks []task.Task
}

func (b *broker) PublishTask(t task.Task) <-chan error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tasks = append(b.tasks, t)
	confirmed := make(chan error, 1)
	confirmed <- nil
	return confirmed
}

func (b *broker) Ready() error { return nil }

// texts returns those published so far, and forgets them.
func (b *broker) texts() (texts []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, t := range b.tasks {
		texts = append(texts, t.Text)
	}
	b.tasks = nil
	return texts
}

// source is where no results come from.
type source struct{ socket.Source }

func (source) Ready() error { return nil }

type server interface {
	Serve(net.Listener) error
	Shutdown(context.Context) error
}

// A site is one of the two fronts at an address, with or without TLS.
type site struct {
	front  string // api or socket
	addr   string
	secure *tls.Config // nil without TLS
	broker *broker     // of the API
}

func (s site) String() string {
	if s.secure != nil {
		return s.front + " with TLS"
	}
	return s.front
}

// sites starts both fronts, each with and without TLS.
func sites(t *testing.T) []site {
	t.Helper()
	// httptest has a certificate for 127.0.0.1.
	ready := httptest.NewUnstartedServer(nil)
	ready.StartTLS()
	t.Cleanup(ready.Close)
	client := ready.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	client.ServerName = "127.0.0.1"

	b := &broker{}
	apiConfig, socketConfig := api.DefaultConfig(), socket.DefaultConfig()
	apiConfig.ReadTimeout, socketConfig.HandshakeTimeout = 2*patience, 2*patience
	log := slog.New(slog.DiscardHandler)
	results := feed.New(feed.DefaultConfig())
	results.GoLive()
	var all []site
	for name, s := range map[string]server{
		"api":    api.New(apiConfig, b, log),
		"socket": socket.New(socketConfig, results, source{}, log),
	} {
		for _, secure := range []*tls.Config{nil, client} {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, site{name, ln.Addr().String(), secure, b})
			if secure != nil {
				ln = tls.NewListener(ln, &tls.Config{Certificates: ready.TLS.Certificates})
			}
			go s.Serve(ln)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
			defer cancel()
			s.Shutdown(ctx)
		})
	}
	return all
}

func (s site) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	if s.secure != nil {
		c = tls.Client(c, s.secure)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

type reply struct {
	*http.Response
	body string
}

func read(t *testing.T, r *bufio.Reader) reply {
	t.Helper()
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return reply{resp, ""}
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp, string(body)}
}

// check reports a reply of another status, and errors that do not say what is
// wrong in words of ours.
func (r reply) check(t *testing.T, status int, detail string) {
	t.Helper()
	if r.StatusCode != status {
		t.Fatalf("status %d, want %d; %s", r.StatusCode, status, r.body)
	}
	if status < 400 {
		return
	}
	var p wire.Problem
	if err := json.Unmarshal([]byte(r.body), &p); err != nil {
		t.Fatalf("%v in %q", err, r.body)
	}
	if p.Status != status || !strings.Contains(p.Detail, detail) {
		t.Errorf("%+v, want %q", p, detail)
	}
	for _, library := range []string{"fasthttp", "gorilla", "CheckOrigin", "http.", "buffer"} {
		if strings.Contains(p.Detail, library) {
			t.Errorf("%q is the text of a library", p.Detail)
		}
	}
}

// send writes raw at once or byte by byte. What is sent to a server that has
// answered already may fail; the answer tells.
func send(t *testing.T, c net.Conn, raw string, split bool) {
	t.Helper()
	go func() {
		if !split {
			_, _ = io.WriteString(c, raw)
			return
		}
		for i := range len(raw) {
			if _, err := io.WriteString(c, raw[i:i+1]); err != nil {
				return
			}
		}
	}()
}
