package client

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"
)

// ErrUnreachable means that no connection could be made: nothing was sent.
var ErrUnreachable = errors.New("cannot reach the API")

// ErrTLS means that client and server do not agree on TLS, or on whether to
// use it: nothing was sent, and a retry does not help.
var ErrTLS = errors.New("cannot connect")

// ErrNoAnswer means that the connection broke, or the time ran out, before an
// answer came.
var ErrNoAnswer = errors.New("no answer came")

// failure returns why a request got no answer, given the error of the HTTP
// client and whether there was a connection.
func (s *Sender) failure(ctx context.Context, to *url.URL, err error, connected bool) error {
	if outer, ok := errors.AsType[*url.Error](err); ok {
		err = outer.Err // without the URL and the method
	}
	var (
		certificate *tls.CertificateVerificationError
		record      tls.RecordHeaderError
		operation   *net.OpError
	)
	site := to.Scheme + "://" + to.Host
	switch {
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record):
		return fmt.Errorf("%w to %s: the server does not speak TLS there: use http:// or another port", ErrTLS, site)
	case errors.As(err, &certificate), !connected && errors.As(err, &operation) && operation.Op == "remote error":
		return fmt.Errorf("%w to %s: %w", ErrTLS, site, err)
	case connected && ctx.Err() == nil && s.wantsTLS(ctx, to):
		return errSpeaksTLS(to)
	case connected:
		return s.noAnswer(ctx)
	case errors.As(err, &operation) && operation.Op == "dial":
		return fmt.Errorf("%w: %w", ErrUnreachable, operation)
	case ctx.Err() != nil:
		return fmt.Errorf("%w: no connection to %s within %v", ErrUnreachable, site, s.Timeout)
	}
	return fmt.Errorf("%w: connect to %s: %w", ErrUnreachable, site, err)
}

// probeTimeout bounds the check of whether a server speaks TLS.
const probeTimeout = 2 * time.Second

func errSpeaksTLS(to *url.URL) error {
	return fmt.Errorf("%w to http://%s: the server speaks TLS there: use https://", ErrTLS, to.Host)
}

// wantsTLS reports whether a server that did not answer a request without TLS
// speaks TLS: most such servers just close the connection.
func (s *Sender) wantsTLS(ctx context.Context, to *url.URL) bool {
	if to.Scheme != "http" || s.reached {
		return false
	}
	if proxy, err := http.ProxyFromEnvironment(&http.Request{URL: to}); proxy != nil || err != nil {
		return false // it is the proxy that speaks
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	address := net.JoinHostPort(to.Hostname(), cmp.Or(to.Port(), "80"))
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} // nothing is sent or believed
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err == nil {
		conn.Close()
		return true
	}
	var alert *net.OpError
	return errors.As(err, &alert) && alert.Op == "remote error"
}

// noAnswer returns an ErrNoAnswer that says whether the time ran out.
func (s *Sender) noAnswer(ctx context.Context) error {
	if ctx.Err() != nil {
		return &Uncertain{fmt.Errorf("%w within %v", ErrNoAnswer, s.Timeout)}
	}
	return &Uncertain{fmt.Errorf("%w: the connection was lost", ErrNoAnswer)}
}
