package client

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/fasthttp/websocket"

	"github.com/revq/revq/internal/visible"
	"github.com/revq/revq/internal/wire"
)

const (
	handshakeTimeout = 10 * time.Second

	// defaultSilence is three times the interval in which a server pings,
	// unless it is configured otherwise.
	defaultSilence = 90 * time.Second

	// maxMessage bounds a message, in bytes: the longest text in JSON, each
	// byte escaped, fits.
	maxMessage = 100 << 20
)

// ErrRefused means that the server does not let us listen, and that a retry
// does not help.
var ErrRefused = errors.New("the server refuses")

// A Listener receives results, as messages in the JSON format. When its
// connection is lost, it reconnects and resumes after the last result received.
//
// The functions are called from the goroutine that runs Run. Any of them may be
// nil.
type Listener struct {
	// URLs are those of the system's socket sites, as ws://localhost:8083;
	// wire.ListenPath is added to a path that does not end with it. When a
	// connection is lost or cannot be made, the listener tries the next site:
	// offsets are the same at all sites.
	URLs []string

	// TLS is for URLs of wss; nil stands for the usual settings.
	TLS *tls.Config

	// Token is sent with each handshake; "" for none.
	Token string

	// After is the mark after which to begin; nil for new results only. Run
	// updates it with each message.
	After *wire.Mark

	// Queues are the names of the queues whose results are wanted; none for all.
	Queues []string

	// ID is the id of the only task that is wanted, "" for all. Run returns nil
	// after the last message about it: a result, or the reason why there is
	// none.
	ID string

	// Silence is the longest time without a message or a ping. After that,
	// the listener closes the connection. Default 90 s.
	Silence time.Duration

	// Greeted is called with the first message of each connection.
	Greeted func(Message) error

	// Received is called with every other message.
	Received func(Message) error

	// Lost is called when the connection is lost or cannot be made, with the
	// reason and the time until the next attempt.
	Lost func(reason error, wait time.Duration)

	current int // index of the URL
}

// A Message is what came from the server.
type Message struct {
	wire.Message

	// Raw is the message as it came, a JSON object in one line.
	Raw []byte
}

// Run listens until ctx ends, a function returns an error, or the server
// refuses (ErrRefused), and returns why. It returns nil if ID is set and the last
// message about the task has come. When the connection is lost or cannot be
// made, it retries, after waits that grow and are jittered.
func (l *Listener) Run(ctx context.Context) error {
	if len(l.URLs) == 0 {
		return fmt.Errorf("%w: there is none", ErrBadURL)
	}
	for _, u := range l.URLs {
		if _, err := parseURL(u, wire.ListenPath, "ws", "wss"); err != nil {
			return err
		}
	}
	wait, failed := retryMin, 0
	for {
		began, from := time.Now(), l.After
		err := l.once(ctx)
		var final *finalError
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &final):
			return final.error
		}
		if l.After != from || time.Since(began) > retryMax { // the connection worked
			wait, failed = retryMin, 0
		}
		pause := wait/2 + rand.N(wait/2)
		if l.Lost != nil {
			l.Lost(err, pause)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		l.current = (l.current + 1) % len(l.URLs)
		if failed++; failed%len(l.URLs) == 0 { // all have been tried
			wait = min(2*wait, retryMax)
		}
	}
}

// URL returns the URL that is connected, or that is tried next.
func (l *Listener) URL() string { return l.URLs[l.current] }

// A finalError ends Run.
type finalError struct{ error }

// once listens over one connection.
func (l *Listener) once(ctx context.Context) error {
	conn, err := l.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	conn.SetReadLimit(maxMessage)
	silence := cmp.Or(l.Silence, defaultSilence)
	alive := func() { conn.SetReadDeadline(time.Now().Add(silence)) }
	answer := conn.PingHandler()
	conn.SetPingHandler(func(data string) error {
		alive()
		return answer(data)
	})
	for received := l.Greeted; ; received = l.Received {
		alive()
		_, raw, err := conn.ReadMessage()
		if err != nil {
			return &lostError{err}
		}
		m := Message{Raw: raw}
		if err := json.Unmarshal(raw, &m.Message); err != nil || m.Type == "" {
			return &finalError{fmt.Errorf("%s does not send what revq does: check the URL", l.URL())}
		}
		if received != nil {
			if err := received(m); err != nil {
				return &finalError{err}
			}
		}
		l.moveOn(m.Message)
		if l.ID != "" && m.ID == l.ID && wire.IsLast(m.Type) {
			return &finalError{}
		}
	}
}

// A lostError is why a connection ended. It has the server's reason if the
// server closed it.
type lostError struct{ err error }

func (e *lostError) Error() string { return visible.Line(e.err.Error()) }
func (e *lostError) Unwrap() error { return e.err }

// moveOn updates After. A greeting says where a listener without a mark has
// begun. After a gap, the server sends everything that is kept.
func (l *Listener) moveOn(m wire.Message) {
	switch m.Type {
	case wire.TypeGap:
		l.After = &wire.Mark{Offset: -1}
	case wire.TypeGreeting:
		if l.After == nil {
			l.After = &wire.Mark{Offset: m.Offset, ID: m.ID}
		}
	case wire.TypeResult, wire.TypeLost, wire.TypeFailed, wire.TypeProgress, wire.TypeMark:
		l.After = &wire.Mark{Offset: m.Offset, ID: m.ID}
	}
}

// address returns the URL to connect to.
func (l *Listener) address() (*url.URL, error) {
	u, err := parseURL(l.URL(), wire.ListenPath, "ws", "wss")
	if err != nil {
		return nil, err // cannot happen: Run has checked the URLs
	}
	query := u.Query()
	query.Set(wire.FormatParameter, wire.FormatJSON)
	for _, queue := range l.Queues {
		query.Add(wire.QueueParameter, queue)
	}
	if l.ID != "" {
		query.Set(wire.IDParameter, l.ID)
	}
	if l.After != nil {
		query.Set(wire.AfterParameter, l.After.String())
	}
	u.RawQuery = query.Encode()
	return u, nil
}

func (l *Listener) dial(ctx context.Context) (*websocket.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	stop := func() bool { return true }
	dialer := websocket.Dialer{
		Proxy:           http.ProxyFromEnvironment,
		TLSClientConfig: l.TLS,
		NetDialContext: func(dialCtx context.Context, network, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(dialCtx, network, address)
			if err == nil {
				// The handshake takes no context, but ends with the connection.
				stop = context.AfterFunc(ctx, func() { conn.Close() })
			}
			return conn, err
		},
	}
	address, err := l.address()
	if err != nil {
		return nil, &finalError{err}
	}
	var header http.Header
	if l.Token != "" {
		header = http.Header{"Authorization": {"Bearer " + l.Token}}
	}
	conn, res, err := dialer.DialContext(ctx, address.String(), header)
	stop()
	if err == nil {
		return conn, nil // if ctx has just closed it, reading fails
	}
	if res == nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("no answer within %v", handshakeTimeout)
		}
		return nil, err
	}
	reason := fmt.Sprintf("%s answers %s, not as revq does: check the URL", address.Host, visible.Line(res.Status))
	var p wire.Problem
	if body, _ := io.ReadAll(io.LimitReader(res.Body, 4<<10)); json.Unmarshal(body, &p) == nil && p.Detail != "" {
		reason = visible.Line(p.Detail)
	}
	if res.StatusCode < 500 && !mayPass(res.StatusCode) {
		return nil, &finalError{fmt.Errorf("%w: %s", ErrRefused, reason)}
	}
	return nil, errors.New(reason)
}
