package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/command"
)

// A trust says which certificates clients trust for https and wss.
type trust struct{ file string }

func (t *trust) flag() cli.Flag {
	return &cli.StringFlag{
		Name: "ca", Usage: "trust the certificates in `FILE`, in PEM, instead of the system's", Sources: command.Variable("ca"),
		TakesFile: true, Destination: &t.file,
	}
}

// config returns the TLS configuration, or nil for the default one.
func (t *trust) config() (*tls.Config, error) {
	if t.file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(t.file)
	if err != nil {
		return nil, command.UsageError(fmt.Errorf("--ca: %w", err))
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, command.Usagef("--ca: %s has no certificate: give a file in PEM", t.file)
	}
	return &tls.Config{RootCAs: pool}, nil
}

// client returns an HTTP client, or nil for the default one.
func (t *trust) client() (*http.Client, error) {
	cfg, err := t.config()
	if cfg == nil || err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = cfg
	return &http.Client{Transport: transport}, nil
}
