// Package e2e tests revq as a whole: its real daemons, each a process with the
// sockets and the notification socket that systemd would give it, and real
// RabbitMQ nodes. It has only tests.
package e2e
