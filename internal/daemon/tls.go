package daemon

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/revq/revq/internal/setting"
)

// The flags for TLS, which are also the names of credentials.
const (
	certFlag = "tls-cert"
	keyFlag  = "tls-key"
)

// reload reads the settings that may change at run time again. If one is wrong,
// nothing changes.
func (d *Daemon) reload() error {
	if d.cert == nil {
		return d.Reload()
	}
	pair, err := d.cert.read()
	if err != nil {
		return err
	}
	err = d.Reload()
	if pair == nil {
		return err
	}
	d.cert.current.Store(pair)
	if err != nil { // the other settings may come from places that cannot change
		d.Log.Warn("only the certificate was read again", "error", err)
	}
	return nil
}

// A certificate is the daemon's TLS certificate; without one, it does not use
// TLS.
type certificate struct {
	certFile, keyFile string

	current atomic.Pointer[tls.Certificate]
}

func (c *certificate) settings() []setting.Setting {
	file := func(name, usage string, dest *string) setting.Setting {
		s := setting.String(name, usage, dest, nil)
		s.Wiring = true
		if path := filepath.Join(os.Getenv("CREDENTIALS_DIRECTORY"), name); filepath.IsAbs(path) {
			if _, err := os.Stat(path); err == nil {
				*dest = path
			}
		}
		return s
	}
	return setting.In("daemon",
		file(certFlag, "serve TLS with the certificates in `FILE`, the server's own one first, in PEM; or the credential of this name", &c.certFile),
		file(keyFlag, "`FILE` with the private key, in PEM; or the credential of this name", &c.keyFile),
	)
}

// read reads the certificate from the files. It returns nil if none are given.
func (c *certificate) read() (*tls.Certificate, error) {
	switch {
	case c.certFile == "" && c.keyFile == "":
		return nil, nil
	case c.certFile == "" || c.keyFile == "":
		return nil, fmt.Errorf("TLS needs a certificate and its key: give both --%s and --%s", certFlag, keyFlag)
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return nil, fmt.Errorf("load the certificate of --%s and --%s: %w", certFlag, keyFlag, err)
	}
	return &pair, nil
}

// serve returns ln, with TLS if there is a certificate.
func (c *certificate) serve(ln net.Listener) net.Listener {
	if c.current.Load() == nil {
		return ln
	}
	return tls.NewListener(ln, &tls.Config{
		MinVersion:     tls.VersionTLS12, // whatever GODEBUG says; older ones are broken (RFC 8996)
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.current.Load(), nil },
		NextProtos:     []string{"http/1.1"},
	})
}
