package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"github.com/revq/revq/internal/admin"
	"github.com/revq/revq/internal/command"
	"github.com/revq/revq/internal/setting"
)

// maxSites is the number of sites that the last digit of a port can name.
const maxSites = 9

// fromSystemd is the value of --listen that requires sockets from systemd.
const fromSystemd = "systemd"

// Sites are the addresses that a daemon listens on: the sockets that systemd
// passes; without those, the addresses of --listen; without those, as many
// sites as --sites says; otherwise the default sites. Site i is port 808i.
type Sites struct {
	// Default are the numbers of the default sites. No two daemons on a host
	// have the same number.
	Default []int

	count  int
	listen []string
	cert   certificate
}

// SiteAddress returns the address of site i on all of the host's addresses.
func SiteAddress(i int) string { return ":808" + strconv.Itoa(i) }

func (s *Sites) settings() []setting.Setting {
	sites := setting.Count("sites", "sites", fmt.Sprintf("serve `N` sites, on the ports 8081 to 808N (default: %s)", s.defaults()), &s.count, 1, maxSites)
	sites.Default = s.defaults()
	listen := setting.Strings("listen", "serve `HOST:PORT` instead (repeatable); systemd to serve only the sockets that systemd passes", &s.listen, checkAddresses)
	sites.Wiring, listen.Wiring = true, true
	return append(setting.In("daemon", sites, listen), s.cert.settings()...)
}

// checkAddresses returns what is wrong with the values of --listen.
func checkAddresses(addresses []string) error {
	if slices.Contains(addresses, fromSystemd) {
		if len(addresses) > 1 {
			return errors.New("systemd excludes other addresses: add them to the .socket unit")
		}
		return nil
	}
	for _, a := range addresses {
		_, port, err := net.SplitHostPort(a)
		if err == nil && port != "" {
			_, err = net.LookupPort("tcp", port)
		}
		if err != nil || port == "" {
			return fmt.Errorf("%q is not an address: give HOST:PORT, or :PORT for all of this host's addresses", a)
		}
	}
	return nil
}

func (s *Sites) defaults() string {
	ports := make([]string, len(s.Default))
	for i, site := range s.Default {
		ports[i] = "808" + strconv.Itoa(site)
	}
	return strings.Join(ports, " and ")
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

// open returns the listening sockets of the sites of the daemon called name.
// inherited are those that systemd passes.
func (s *Sites) open(name string, inherited []net.Listener) (listeners []net.Listener, err error) {
	if s.count > 0 && len(s.listen) > 0 {
		return nil, command.Usagef("--sites and --listen exclude each other: list every address with --listen")
	}
	if len(inherited) > 0 {
		return inherited, nil
	}
	if slices.Contains(s.listen, fromSystemd) {
		return nil, command.Usagef("systemd handed over no sockets: start %s by its .socket unit, or leave out --listen systemd to have it open ports itself", name)
	}
	for _, address := range s.addresses() {
		ln, err := net.Listen("tcp", address)
		if err != nil {
			closeAll(listeners)
			return nil, fmt.Errorf("open the site: %w; use --listen for another address", err)
		}
		listeners = append(listeners, ln)
	}
	return listeners, nil
}

func closeAll(listeners []net.Listener) {
	for _, ln := range listeners {
		ln.Close()
	}
}

// A handover is the sockets that systemd passes to a daemon.
type handover struct {
	sites []net.Listener
	admin net.Listener // nil if there is none
}

func (h *handover) close() {
	closeAll(h.sites)
	if h.admin != nil {
		h.admin.Close()
	}
}

// handedOver returns the sockets that systemd passes, if any. Those of sites
// must have the daemon's name, and the admin socket its own: another name means
// that they are for another daemon, or that a unit is wrong. A daemon that does
// not listen has no sites: clients would wait there forever. Every error is one
// of a unit's settings, which a retry does not fix. Unlike
// activation.Listeners, handedOver does not skip unusable sockets.
func handedOver(name string, listens bool) (h handover, err error) {
	announced, pid := os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_PID") // gone after the next line
	files := activation.Files(true)
	if announced != "" && len(files) == 0 && pid == strconv.Itoa(os.Getpid()) {
		return h, command.Usagef("systemd announced %q sockets but handed over none", announced)
	}
	// All are checked before one is used: if one is missing, its number may
	// belong to a descriptor of our own by now, which must stay open.
	for _, f := range files {
		switch {
		case f.Name() == admin.SocketName:
		case !listens:
			return h, command.Usagef("systemd handed over the socket %q, but %s does not listen: remove the .socket unit, have it start another service, or give it FileDescriptorName=%s if it is for operators", f.Name(), name, admin.SocketName)
		case f.Name() != name:
			return h, command.Usagef("systemd handed over the socket %q, and not one for %s: give its .socket unit FileDescriptorName=%[2]s, or have it start another service", f.Name(), name)
		}
		if err := checkListening(f); err != nil {
			return h, command.Usagef("use the socket %q from systemd: %w: is it a stream socket in a .socket unit with Accept=no?", f.Name(), err)
		}
	}
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	for _, f := range files {
		ln, err := net.FileListener(f)
		f.Close() // ln has a copy
		if err != nil {
			return h, fmt.Errorf("use the socket %q from systemd: %w", f.Name(), err)
		}
		if f.Name() != admin.SocketName {
			h.sites = append(h.sites, ln)
			continue
		}
		if h.admin != nil {
			ln.Close()
			return h, command.Usagef("systemd handed over two admin sockets: one .socket unit with FileDescriptorName=%s is enough", admin.SocketName)
		}
		h.admin = ln
		if err := admin.CheckSocket(ln.Addr()); err != nil {
			return h, command.Usagef("use the socket %q from systemd: %w", f.Name(), err)
		}
	}
	return h, nil
}

// Inherited returns the listening sockets that systemd passes to the program
// called name, if any. Every error is one of a unit's settings.
func Inherited(name string) ([]net.Listener, error) {
	h, err := handedOver(name, true)
	if err == nil && h.admin != nil {
		h.close()
		err = command.Usagef("systemd handed over the socket %q, but %s has no admin socket: give its .socket unit FileDescriptorName=%s", admin.SocketName, name, name)
	}
	return h.sites, err
}

// checkListening returns an error unless f is a listening socket.
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
