package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"time"
)

// ErrForeign means that a target is not on this machine, and that loading it
// was not allowed.
var ErrForeign = errors.New("is not on this machine; --target-is-mine says that it is yours to load")

// ErrBadTarget means that a URL has the wrong scheme, no host or no valid port.
var ErrBadTarget = errors.New("unusable URL")

// A Target is a server to load.
type Target struct {
	URL  *url.URL
	Addr *net.TCPAddr // IPv4 if the name has both
}

// resolveTimeout is the time limit for looking up a target's name.
const resolveTimeout = 10 * time.Second

// ParseTarget looks up the server of a URL. It returns [ErrBadTarget] if the
// URL has none of the schemes or no host, and [ErrForeign] if the server is not
// on the loopback interface and foreign is false. Errors do not show the user
// and the password.
func ParseTarget(ctx context.Context, rawURL string, foreign bool, schemes ...string) (*Target, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Host == "" || !slices.Contains(schemes, u.Scheme) {
		return nil, fmt.Errorf("%w: give %s://HOST:PORT", ErrBadTarget, schemes[0])
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupIPAddr(ctx, u.Hostname())
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", u.Hostname(), err)
	}
	for _, a := range addrs {
		if !foreign && !a.IP.IsLoopback() {
			return nil, fmt.Errorf("%s %w", u.Host, ErrForeign)
		}
	}
	slices.SortStableFunc(addrs, func(a, b net.IPAddr) int {
		return cmp.Compare(len(b.IP.To4()), len(a.IP.To4()))
	})
	ports := map[string]int{"http": 80, "ws": 80, "amqp": 5672, "amqps": 5671}
	port := ports[u.Scheme]
	if u.Port() != "" {
		if port, err = strconv.Atoi(u.Port()); err != nil || port < 1 || port > 65535 {
			return nil, fmt.Errorf("%w: %q is no port", ErrBadTarget, u.Port())
		}
	}
	return &Target{URL: u, Addr: &net.TCPAddr{IP: addrs[0].IP, Port: port, Zone: addrs[0].Zone}}, nil
}
