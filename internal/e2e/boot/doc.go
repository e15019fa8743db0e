// Package boot tests revq on a booted host: a real systemd with Debian's own
// RabbitMQ, in a container with the files of this machine or of another Debian.
// It needs root and `systemd-nspawn`, and leaves nothing when the tests end,
// however they end. It has only tests.
package boot
