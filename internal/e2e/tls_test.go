//go:build linux

package e2e

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/daemon/daemontest"
	"github.com/revq/revq/internal/e2e/foreign"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/wire"
)

// From revq send to revq listen over TLS: the certificate comes from
// credentials at one daemon, from flags at the other.
func TestTLS(t *testing.T) {
	t.Parallel()
	s := prepare(t, rabbittest.Shared(t))
	dir := t.TempDir()
	daemontest.Certify(t, dir)
	cert, key := filepath.Join(dir, "tls-cert"), filepath.Join(dir, "tls-key")
	s.api = daemontest.Start(t, daemontest.Config{
		Path: daemontest.Binary(t, "revq-api"), Sockets: s.apiSockets,
		Env: []string{"REVQ_AMQP_URL=" + s.url, "CREDENTIALS_DIRECTORY=" + dir},
	})
	s.socket = s.startDaemon(t, "revq-socket", s.socketSockets, "--tls-cert", cert, "--tls-key", key)
	s.api.WaitReady(t)
	s.socket.WaitReady(t)
	s.startWorker(t, "--pause", "0s")

	for range 2 {
		out, said := s.revq(t, "send", "--ca", cert, "--url", "https://"+s.apiSites[1], "--socket-url", "wss://"+s.socketSite, "--wait", "abc", "def")
		if out != "cba\nfed\n" {
			t.Errorf("revq send --wait printed %q and said %q", out, said)
		}
		for _, d := range []*daemontest.Daemon{s.api, s.socket} { // a renewed certificate is used
			d.Signal(t, syscall.SIGHUP)
			d.WaitLog(t, "reloaded")
		}
	}
	out, said := s.revq(t, "listen", "--ca", cert, "--url", "wss://"+s.socketSite, "--after", "-1", "--count", "4")
	if lines := strings.Fields(strings.TrimPrefix(out, wire.Greeting)); len(lines) != 4 {
		t.Errorf("revq listen printed %q and said %q, want all four results", out, said)
	}

	if err := os.WriteFile(cert, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.socket.Signal(t, syscall.SIGHUP)
	s.socket.WaitLog(t, "load the certificate")
	other := t.TempDir()
	daemontest.Certify(t, other)
	// The certificate in use does not change.
	s.revq(t, "listen", "--ca", filepath.Join(other, "tls-cert"), "--url", "wss://"+s.socketSite, "--after", "-1", "--count", "4")
}

// tlsAPI starts an API whose certificate is in dir.
func (s *system) tlsAPI(t *testing.T, dir string) {
	t.Helper()
	s.api = s.startDaemon(t, "revq-api", s.apiSockets, "--tls-cert", filepath.Join(dir, "tls-cert"), "--tls-key", filepath.Join(dir, "tls-key"))
	s.api.WaitReady(t)
}

// Only TLS 1.2 and 1.3 are spoken, and a client cannot renegotiate, which would
// cost the server a handshake each time.
func TestTLSVersions(t *testing.T) {
	t.Parallel()
	s := prepare(t, rabbittest.Shared(t))
	dir := t.TempDir()
	daemontest.Certify(t, dir)
	s.tlsAPI(t, dir)
	for version, spoken := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		d := tls.Dialer{Config: &tls.Config{MinVersion: version, MaxVersion: version, InsecureSkipVerify: true}} // the version is what matters
		conn, err := d.DialContext(await.Context(t), "tcp", s.apiSites[0])
		if (err == nil) != spoken {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if err == nil {
			conn.Close()
		} else if !strings.Contains(err.Error(), "protocol version") {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
	}

	// Go's client cannot ask for it. The letter R makes this one do so.
	ctx, cancel := context.WithTimeout(t.Context(), await.Patience)
	defer cancel()
	client := exec.CommandContext(ctx, foreign.Program(t, "openssl"), "s_client", "-tls1_2", "-connect", s.apiSites[0])
	in, err := client.StdinPipe() // at the end of its input it would hang up
	if err != nil {
		t.Fatal(err)
	}
	go io.WriteString(in, "R\n")
	out, _ := client.CombinedOutput() // it fails, as it says
	if !strings.Contains(string(out), "RENEGOTIATING") || !strings.Contains(string(out), "alert unexpected message") {
		t.Errorf("a client that renegotiates got:\n%s", out)
	}
}

// While the certificate is renewed again and again, no request fails, and new
// connections get the new one.
func TestCertificateReloadUnderLoad(t *testing.T) {
	t.Parallel()
	s := prepare(t, rabbittest.Shared(t))
	dir := t.TempDir()
	daemontest.Certify(t, dir)
	s.tlsAPI(t, dir)
	var serial atomic.Value // of the certificate that was last seen
	client := &http.Client{Timeout: await.Patience, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, // each certificate signs itself
		VerifyConnection: func(c tls.ConnectionState) error {
			serial.Store(string(c.PeerCertificates[0].Raw))
			return nil
		},
	}}}
	over := make(chan struct{})
	var posting sync.WaitGroup
	var posted atomic.Int64
	for range 4 {
		posting.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				res, err := client.Post("https://"+s.apiSites[0]+wire.QueuePath, "text/plain", strings.NewReader("abc"))
				if err != nil {
					t.Errorf("a request failed: %v", err)
					return
				}
				body, _ := io.ReadAll(res.Body)
				res.Body.Close()
				if res.StatusCode != http.StatusAccepted {
					t.Errorf("a request was answered %d: %s", res.StatusCode, body)
					return
				}
				posted.Add(1)
			}
		})
	}
	for range 10 {
		cert := recertify(t, dir)
		n := strings.Count(s.api.Log(), "reloaded")
		s.api.Signal(t, syscall.SIGHUP)
		await.True(t, "the certificate was read", func() bool { return strings.Count(s.api.Log(), "reloaded") > n })
		await.True(t, "a new connection gets it", func() bool { return serial.Load() == string(cert) })
	}
	close(over)
	posting.Wait()
	t.Logf("%d requests while the certificate was renewed 10 times", posted.Load())
}

// recertify replaces the certificate in dir by one of its own, with the same
// key, and returns it.
func recertify(t *testing.T, dir string) []byte {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls-cert"), filepath.Join(dir, "tls-key"))
	if err != nil {
		t.Fatal(err)
	}
	template := *pair.Leaf
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	key := pair.PrivateKey.(crypto.Signer)
	cert, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	if err := os.WriteFile(filepath.Join(dir, "tls-cert"), block, 0o600); err != nil {
		t.Fatal(err)
	}
	return cert
}
