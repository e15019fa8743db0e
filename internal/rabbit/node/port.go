package node

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Ports are chosen below the ephemeral ones (32768 and up). The system could
// give an ephemeral port of a stopped node to an outgoing connection before
// Restart, and a client that dials an ephemeral port of 127.0.0.1 again
// and again can get connected to itself.
const (
	minPort = 10_000
	maxPort = 32_767
)

// freePort returns a port of 127.0.0.1 on which nothing listens.
func freePort() (int, error) {
	for range 100 {
		if port := minPort + rand.IntN(maxPort-minPort+1); isFree(port) {
			return port, nil
		}
	}
	return 0, fmt.Errorf("no free port found from %d to %d", minPort, maxPort)
}

func isFree(port int) bool {
	l, err := net.Listen("tcp", addr(port))
	if err != nil {
		return false
	}
	l.Close()
	return true
}

func addr(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
