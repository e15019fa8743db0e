//go:build linux

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/revq/revq/internal/daemon/daemontest"
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
