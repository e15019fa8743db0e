package node

import (
	"errors"
	"os/exec"
	"path/filepath"
)

// ErrNotFound is returned by [Find] on a machine without RabbitMQ. Its text
// says how to install it.
var ErrNotFound = errors.New(`no RabbitMQ server found; install it with one of
  apt-get install rabbitmq-server     (Debian, Ubuntu)
  dnf install rabbitmq-server         (Fedora)
  pacman -S rabbitmq                  (Arch)
  nix shell nixpkgs#rabbitmq-server   (Nix)`)

// serverPaths are searched before PATH: what distributions put into /usr/sbin
// is a wrapper that must run as root or as the user rabbitmq, and reads
// /etc/rabbitmq.
var serverPaths = []string{
	"/usr/lib/rabbitmq/bin/rabbitmq-server",
	"/usr/lib/rabbitmq/lib/*/sbin/rabbitmq-server",
}

// Find returns the path of the RabbitMQ server's start script, or
// [ErrNotFound].
func Find() (string, error) { return find(serverPaths) }

func find(patterns []string) (string, error) {
	for _, pattern := range patterns {
		matches, _ := filepath.Glob(pattern) // fails for a malformed pattern only
		for _, path := range matches {
			if path, err := exec.LookPath(path); err == nil {
				return path, nil
			}
		}
	}
	if path, err := exec.LookPath("rabbitmq-server"); err == nil {
		return filepath.Abs(path)
	}
	return "", ErrNotFound
}
