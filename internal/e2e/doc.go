// Package e2e tests revq as a whole: its real daemons, each a process with the sockets and the notifications that
// systemd would give it, and real RabbitMQ nodes. It holds nothing but tests.
package e2e
