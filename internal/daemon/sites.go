package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"

	"github.com/revq/revq/internal/command"
)

// maxSites is what the last digit of a port can tell apart.
const maxSites = 9

// Sites are the addresses that a daemon listens on: the sockets that systemd
// hands over; if there are none, what --listen names; if it names nothing, the
// first sites as --sites says; else the default ones. Site i is port 808i.
type Sites struct {
	// Default are the numbers of the sites to serve unless others are given.
	// Sites of all daemons on a host share the digits.
	Default []int

	count  int
	listen []string
}

// SiteAddress returns the address of site i on all of the host's addresses.
func SiteAddress(i int) string { return ":808" + strconv.Itoa(i) }

func (s *Sites) flags() []cli.Flag {
	sites := command.Number("sites", fmt.Sprintf("serve `N` sites, on the ports 8081 to 808N (default: %s)", s.defaults()), "daemon", &s.count, 1, maxSites)
	sites.HideDefault = true
	return []cli.Flag{
		sites,
		&cli.StringSliceFlag{
			Name:        "listen",
			Usage:       "serve `HOST:PORT` instead (repeatable)",
			Category:    "daemon",
			Sources:     command.Variable("listen"),
			Destination: &s.listen,
			Validator: func(addresses []string) error {
				for _, a := range addresses {
					_, port, err := net.SplitHostPort(a)
					if err == nil && port != "" {
						_, err = net.LookupPort("tcp", port)
					}
					if err != nil || port == "" {
						return fmt.Errorf("%q is no address: give HOST:PORT, or :PORT for all of this host's addresses", a)
					}
				}
				return nil
			},
		},
	}
}

func (s *Sites) defaults() string {
	var text string
	for i, site := range s.Default {
		if i > 0 {
			text += " and "
		}
		text += "808" + strconv.Itoa(site)
	}
	return text
}

func (s *Sites) addresses() []string {
	if len(s.listen) > 0 {
		return s.listen
	}
	sites := s.Default
	if s.count > 0 {
		sites = nil
		for i := range s.count {
			sites = append(sites, i+1)
		}
	}
	var addresses []string
	for _, site := range sites {
		addresses = append(addresses, SiteAddress(site))
	}
	return addresses
}

// open returns the listeners.
func (s *Sites) open() (listeners []net.Listener, err error) {
	defer func() {
		if err != nil {
			for _, ln := range listeners {
				ln.Close()
			}
		}
	}()
	if s.count > 0 && len(s.listen) > 0 {
		return nil, command.Usagef("--sites and --listen exclude each other: list every address with --listen")
	}
	handedOver, err := fromSystemd()
	if err != nil || len(handedOver) > 0 {
		return handedOver, err
	}
	for _, address := range s.addresses() {
		ln, err := net.Listen("tcp", address)
		if err != nil {
			return listeners, fmt.Errorf("open the site: %w; use --listen for another address", err)
		}
		listeners = append(listeners, ln)
	}
	return listeners, nil
}

// fromSystemd returns the sockets that systemd hands over, none if it does
// not. Unlike activation.Listeners it does not pass over what is unusable.
func fromSystemd() ([]net.Listener, error) {
	announced, pid := os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_PID") // gone after the next line
	files := activation.Files(true)
	if announced != "" && len(files) == 0 && pid == strconv.Itoa(os.Getpid()) {
		return nil, fmt.Errorf("systemd announced %q sockets but handed over none", announced)
	}
	// All are looked at before any is used: where one is missing, its number
	// may be that of a descriptor of our own by now, which must stay open.
	for _, f := range files {
		if err := checkListening(f); err != nil {
			return nil, fmt.Errorf("use the socket %q from systemd: %w: is it a stream socket in a .socket unit with Accept=no?", f.Name(), err)
		}
	}
	var listeners []net.Listener
	for _, f := range files {
		ln, err := net.FileListener(f)
		f.Close() // the listener has a copy
		if err != nil {
			return listeners, fmt.Errorf("use the socket %q from systemd: %w", f.Name(), err)
		}
		listeners = append(listeners, ln)
	}
	return listeners, nil
}

// checkListening returns an error unless f is a socket that takes connections.
func checkListening(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	listening := 0
	if e := raw.Control(func(fd uintptr) {
		listening, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	}); e != nil {
		return e
	}
	switch {
	case err != nil:
		return err // not a socket, or nothing at all
	case listening == 0:
		return errors.New("it does not listen")
	}
	return nil
}
