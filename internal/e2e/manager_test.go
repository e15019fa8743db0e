//go:build linux

package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/revq/revq/internal/daemon/daemontest"
	"github.com/revq/revq/internal/rabbit/rabbittest"
)

// The status lines say what the daemons do.
func TestStatusLines(t *testing.T) {
	t.Parallel()
	s := start(t)
	w := s.startWorker(t, "--concurrency", "3")
	s.api.WaitState(t, "STATUS=ready; 0 in flight; 0 connections")
	var conns []net.Conn
	for _, site := range []string{s.apiSites[0], s.apiSites[1], s.apiSites[1]} {
		conn, err := net.Dial("tcp", site)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	n := s.api.WaitAgain(t, 0, "STATUS=ready; 0 in flight; 3 connections")
	for _, conn := range conns {
		conn.Close()
	}
	s.api.WaitAgain(t, n, "STATUS=ready; 0 in flight; 0 connections")
	s.socket.WaitState(t, "STATUS=ready; 0 listeners; offset ") // of a mark of the reader
	w.WaitState(t, "STATUS=ready; 0 of 3 tasks running")

	l := s.listen(t, "json")
	s.socket.WaitState(t, "STATUS=ready; 1 listeners; offset ")
	send(t, s.apiSites[0], "long", strings.Repeat("x", 300)) // 30 s
	w.WaitState(t, "STATUS=ready; 1 of 3 tasks running")
	n = len(w.States())
	w.Signal(t, syscall.SIGTERM)
	w.WaitAgain(t, n, "STATUS=stopping; ")
	if status := w.Wait(t); status != 0 {
		t.Errorf("the worker ended with status %d", status)
	}
	s.startWorker(t, "--pause", "0s")
	l.collect(t, []string{"long"})
}

// A reload reads the credential again: a password that was changed at the
// broker is used for the next connection, and one that cannot be used is not.
func TestReloadOfTheCredential(t *testing.T) {
	t.Parallel()
	n := rabbittest.Shared(t)
	s := prepare(t, n)
	const wrong = "geheim"
	password := func(url, password string) string {
		scheme, rest, _ := strings.Cut(url, "://")
		user, _, _ := strings.Cut(rest, ":")
		return scheme + "://" + user + ":" + password + rest[strings.LastIndex(rest, "@"):]
	}
	right := s.url[strings.Index(s.url[len("amqp://"):], ":")+len("amqp://")+1 : strings.LastIndex(s.url, "@")]
	for name, sockets := range map[string][]daemontest.Socket{"revq-api": s.apiSockets, "revq-socket": s.socketSockets, "revq-worker": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			credentials := t.TempDir()
			credential := func(text string) {
				t.Helper()
				if err := os.WriteFile(filepath.Join(credentials, "amqp-url"), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			credential(password(s.url, wrong) + "\n")
			d := daemontest.Start(t, daemontest.Config{
				Path: daemontest.Binary(t, name), Sockets: sockets, Env: []string{"CREDENTIALS_DIRECTORY=" + credentials},
			})
			d.WaitState(t, "STATUS=waiting: the broker is not connected")
			d.WaitLog(t, "username or password not allowed")
			for _, file := range []string{"cmdline", "environ"} {
				b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", d.Pid(), file))
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(string(b), wrong) {
					t.Errorf("the password is in the process's %s", file)
				}
			}

			credential("amqp://user:" + wrong + "@host:port/")
			d.Signal(t, syscall.SIGHUP)
			d.WaitLog(t, "the reload changed nothing")
			d.WaitLog(t, "percent-encode special characters")

			credential(s.url + "\n")
			d.Signal(t, syscall.SIGHUP)
			d.WaitLog(t, "msg=reloaded")
			d.WaitReady(t)
			d.WaitState(t, "STATUS=ready; ")

			d.Signal(t, syscall.SIGHUP)
			d.WaitLog(t, "the credential file has not changed")

			// Connections stay open, whatever the file says.
			before := len(d.States())
			credential("")
			d.Signal(t, syscall.SIGHUP)
			at := d.WaitAgain(t, before, "RELOADING=1")
			at = d.WaitAgain(t, at, "READY=1")
			d.WaitAgain(t, at, "STATUS=ready; ")
			if err := os.Remove(filepath.Join(credentials, "amqp-url")); err != nil {
				t.Fatal(err)
			}
			d.Signal(t, syscall.SIGHUP)
			d.WaitLog(t, "read the credential: open ")
			d.Terminate(t)
			if slices.ContainsFunc(d.States()[before:], func(s string) bool { return strings.Contains(s, "waiting") }) {
				t.Errorf("reported %q", d.States()[before:])
			}
			for _, said := range append(d.States(), d.Log()) {
				if strings.Contains(said, wrong) || strings.Contains(said, right) {
					t.Errorf("a password is shown: %q", said)
				}
			}
		})
	}
}
