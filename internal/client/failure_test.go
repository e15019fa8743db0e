package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/api"
)

// certificate returns a self-signed certificate for a name, and a pool that
// trusts it.
func certificate(t *testing.T, name string, until time.Time) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: until,
		DNSNames: []string{name}, IsCA: true, BasicConstraintsValid: true,
	}
	if name == "" {
		template.DNSNames, template.IPAddresses = nil, []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// serve has do handle each connection to a new address until the test ends.
func serve(t *testing.T, do func(*net.TCPConn)) (address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
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
				do(conn.(*net.TCPConn))
			}()
		}
	}()
	return ln.Addr().String()
}

// What keeps a text from being accepted is told as it is: whether it may be
// queued, and what is wrong. What trying again cannot help ends at once.
func TestSendFailures(t *testing.T) {
	t.Parallel()
	future, past := time.Now().Add(time.Hour), time.Now().Add(-time.Hour)
	serveTLS := func(t *testing.T, cert tls.Certificate) string { // the real API with TLS
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		server := api.New(api.DefaultConfig(), new(broker), slog.New(slog.DiscardHandler))
		served := make(chan error, 1)
		go func() {
			served <- server.Serve(tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}}))
		}()
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			server.Shutdown(ctx)
			<-served
		})
		return ln.Addr().String()
	}
	reset := func(conn *net.TCPConn) { conn.SetLinger(0); conn.Close() }
	for _, tt := range []struct {
		name      string
		url       func(t *testing.T) (url string, trusted *x509.CertPool)
		timeout   time.Duration // how long it takes; 0: it ends at once
		uncertain bool
		is        error
		want      string // of the message, a regular expression
	}{
		{"refused", func(*testing.T) (string, *x509.CertPool) { return "http://127.0.0.1:1", nil },
			0, false, ErrUnreachable, `^cannot reach the API: dial tcp 127\.0\.0\.1:1: connect: connection refused$`},
		{"no such name", func(*testing.T) (string, *x509.CertPool) { return "http://no-such-host.invalid:1", nil },
			0, false, ErrUnreachable, `^cannot reach the API: dial tcp: lookup no-such-host\.invalid`},
		{"unknown authority", func(t *testing.T) (string, *x509.CertPool) {
			cert, _ := certificate(t, "", future)
			return "https://" + serveTLS(t, cert), x509.NewCertPool()
		}, 0, false, ErrTLS, `^cannot connect to https://127.0.0.1:\d+: tls: failed to verify certificate: x509: certificate signed by unknown authority`},
		{"expired", func(t *testing.T) (string, *x509.CertPool) {
			cert, pool := certificate(t, "", past)
			return "https://" + serveTLS(t, cert), pool
		}, 0, false, ErrTLS, `x509: certificate has expired or is not yet valid`},
		{"another name", func(t *testing.T) (string, *x509.CertPool) {
			cert, pool := certificate(t, "revq.example", future)
			return "https://" + serveTLS(t, cert), pool
		}, 0, false, ErrTLS, `x509: cannot validate certificate for 127.0.0.1`},
		{"no version in common", func(t *testing.T) (string, *x509.CertPool) {
			cert, pool := certificate(t, "", future)
			return "https://" + serve(t, func(conn *net.TCPConn) {
				tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}, MaxVersion: tls.VersionTLS11}).Handshake()
			}), pool
		}, 0, false, ErrTLS, `^cannot connect to https://127.0.0.1:\d+: .*tls: protocol version not supported`},
		{"https to HTTP", func(t *testing.T) (string, *x509.CertPool) {
			ln, _ := serveAPI(t, "127.0.0.1:0", api.DefaultConfig(), new(broker))
			return "https://" + ln.Addr().String(), nil
		}, 0, false, ErrTLS, `^cannot connect to https://127.0.0.1:\d+: the server does not speak TLS there: use http:// or another port$`},
		{"http to TLS", func(t *testing.T) (string, *x509.CertPool) {
			cert, pool := certificate(t, "", future)
			return "http://" + serveTLS(t, cert), pool
		}, 0, false, ErrTLS, `^cannot connect to http://127.0.0.1:\d+: the server speaks TLS there: use https://$`},
		{"http to TLS of Go's server", func(t *testing.T) (string, *x509.CertPool) {
			server := httptest.NewTLSServer(http.NotFoundHandler())
			t.Cleanup(server.Close)
			return "http" + strings.TrimPrefix(server.URL, "https"), nil
		}, 0, false, ErrTLS, `the server speaks TLS there: use https://$`},
		{"reset before the request", func(t *testing.T) (string, *x509.CertPool) {
			return "https://" + serve(t, func(conn *net.TCPConn) { conn.Read(make([]byte, 1)); reset(conn) }), nil
		}, 0, false, ErrUnreachable, `^cannot reach the API: connect to https://127.0.0.1:\d+: `},
		{"reset after the request", func(t *testing.T) (string, *x509.CertPool) {
			return "http://" + serve(t, func(conn *net.TCPConn) { io.ReadAtLeast(conn, make([]byte, 1<<10), 100); reset(conn) }), nil
		}, time.Second, true, ErrNoAnswer, `^no answer came(: the connection was lost| within 1s); it may be queued or not$`},
		{"no answer in time", func(t *testing.T) (string, *x509.CertPool) {
			return "http://" + serve(t, func(conn *net.TCPConn) { io.Copy(io.Discard, conn) }), nil
		}, time.Second, true, ErrNoAnswer, `^no answer came within 1s; it may be queued or not$`},
		{"no handshake in time", func(t *testing.T) (string, *x509.CertPool) {
			return "https://" + serve(t, func(conn *net.TCPConn) { io.Copy(io.Discard, conn) }), nil
		}, time.Second, false, ErrUnreachable, `^cannot reach the API: no connection to https://127.0.0.1:\d+ within 1s$`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			url, trusted := tt.url(t)
			transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trusted}}
			defer transport.CloseIdleConnections()
			s := &Sender{URL: url, Timeout: time.Minute, HTTP: &http.Client{Transport: transport}}
			if tt.timeout > 0 {
				s.Timeout = tt.timeout
			}
			for _, sent := range [][]string{{"a"}, {"a", "b"}} {
				began := time.Now()
				answers, err := s.Send(t.Context(), tasks(sent...))
				if !errors.Is(err, tt.is) {
					t.Errorf("error %v, want %v", err, tt.is)
				}
				for _, answer := range answers {
					if !errors.Is(answer, err) || IsUncertain(answer) != tt.uncertain || IsFinal(answer) {
						t.Errorf("answer %v, error %v; uncertain: want %v", answer, err, tt.uncertain)
					}
					if answer != nil && !regexp.MustCompile(tt.want).MatchString(answer.Error()) {
						t.Errorf("answer %q, want %q", answer, tt.want)
					}
				}
				if took := time.Since(began); took > 10*time.Second {
					t.Errorf("it took %v", took)
				}
			}
		})
	}
}

// A text is uncertain once an attempt may have queued it, whatever comes of the
// next ones but acceptance.
func TestSendUncertain(t *testing.T) {
	t.Parallel()
	const lost, refuse = "", `{"status":400,"detail":"no"}`
	notConfirmed, full := `{"status":503,"detail":"not confirmed","id":"x"}`, `{"status":503,"detail":"full"}`
	for name, tt := range map[string]struct {
		answers          []string // of the attempts, the last one of all that follow
		accepted         bool
		uncertain, final bool
	}{
		"refused":                            {[]string{refuse}, false, false, true},
		"full":                               {[]string{full}, false, false, false},
		"not confirmed":                      {[]string{notConfirmed}, false, true, false},
		"not confirmed, then full":           {[]string{notConfirmed, full}, false, true, false},
		"full, then not confirmed":           {[]string{full, notConfirmed}, false, true, false},
		"lost, then full":                    {[]string{lost, full}, false, true, false},
		"full, then lost":                    {[]string{full, lost}, false, true, false},
		"lost, then refused":                 {[]string{lost, refuse}, false, true, false},
		"lost, then accepted":                {[]string{lost, `{"status":202}`}, true, false, true},
		"a proxy that may have passed it on": {[]string{"502"}, false, true, false},
		"a proxy that did not":               {[]string{"429"}, false, false, false},
		"an error of something else":         {[]string{"500"}, false, true, false},
		"a missing page":                     {[]string{"404"}, false, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				answer := tt.answers[min(n, len(tt.answers)-1)]
				n++
				switch {
				case answer == lost:
					panic(http.ErrAbortHandler)
				case len(answer) == 3:
					w.WriteHeader(int(answer[0]-'0')*100 + int(answer[2]-'0') + 10*int(answer[1]-'0'))
				case strings.Contains(answer, "202"):
					w.WriteHeader(202)
				default:
					w.Header().Set("Content-Type", "application/problem+json")
					w.WriteHeader(503)
					io.WriteString(w, answer)
				}
			}))
			t.Cleanup(server.Close)
			s := &Sender{URL: server.URL, Timeout: time.Second}
			answers, _ := s.Send(t.Context(), tasks("a"))
			if (answers[0] == nil) != tt.accepted || IsUncertain(answers[0]) != tt.uncertain || IsFinal(answers[0]) != tt.final {
				t.Errorf("answer %v; uncertain: want %v; final: want %v", answers[0], tt.uncertain, tt.final)
			}
		})
	}
}
