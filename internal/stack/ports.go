package stack

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// ErrInUse means that something else listens on a port that the stack needs.
var ErrInUse = errors.New("is in use")

// FreePorts returns the first of n ports of 127.0.0.1 in a row that nothing
// listens on at the moment. They are below those that Linux gives to outgoing
// connections (32768 and up).
func FreePorts(n int) (first int, err error) {
	const least, most = 10_000, 32_767
search:
	for range 100 {
		first = least + rand.IntN(most-least-n)
		for port := first; port < first+n; port++ {
			ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
			if err != nil {
				continue search
			}
			ln.Close()
		}
		return first, nil
	}
	return 0, fmt.Errorf("no %d free ports in a row were found from %d to %d", n, least, most)
}
