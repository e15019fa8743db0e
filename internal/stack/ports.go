package stack

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// ErrInUse means that something else listens on a port that the stack needs.
var ErrInUse = errors.New("is in use")

// loopbacks are the addresses that only this host can reach. Many clients try
// ::1 first for localhost, but not every host has it.
var loopbacks = sync.OnceValue(func() []string {
	ln, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		return []string{"127.0.0.1"}
	}
	ln.Close()
	return []string{"127.0.0.1", "::1"}
})

// free returns an error if something listens on a port of a loopback address.
func free(port int) error {
	for _, host := range loopbacks() {
		ln, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			return err
		}
		ln.Close()
	}
	return nil
}

// FreePorts returns the first of n ports in a row that nothing listens on at
// the moment, at any loopback address. They are below those that Linux gives to
// outgoing connections (32768 and up).
func FreePorts(n int) (first int, err error) {
	const minPort, maxPort = 10_000, 32_767
search:
	for range 100 {
		first = minPort + rand.IntN(maxPort-minPort-n)
		for port := first; port < first+n; port++ {
			if free(port) != nil {
				continue search
			}
		}
		return first, nil
	}
	return 0, fmt.Errorf("no %d free ports in a row were found from %d to %d", n, minPort, maxPort)
}
