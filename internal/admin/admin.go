// Package admin lets operators look into a running daemon, over a Unix socket:
//
//	GET /status         what it does at present, as JSON: a Status
//	GET /metrics        its counters, for Prometheus
//	GET /debug/pprof/   profiles of the program, for go tool pprof
//
// Whoever can open the socket can read all of that, so it is never a port:
// systemd creates it for root and one group, and Listen for the daemon's own
// user and group. It is off the paths of texts and results, and therefore uses
// net/http.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"
)

// The paths of a daemon's admin socket.
const (
	StatusPath   = "/status"
	TasksPath    = "/tasks/" // before the id of a task
	MetricsPath  = "/metrics"
	ProfilesPath = "/debug/pprof/"
)

// SocketName is the FileDescriptorName= of admin sockets in socket units.
const SocketName = "admin"

const (
	// maxPath is the length of a Unix socket's path on Linux, without the NUL.
	maxPath = 107

	// maxRequests is how many requests are answered at once. An operator, a
	// Prometheus and a profile need a handful.
	maxRequests = 16

	headerTimeout = 5 * time.Second
	idleTimeout   = 2 * time.Minute // longer than the usual interval of a scrape
	writeTimeout  = 2 * time.Minute // a profile takes as long as was asked for
	maxHeader     = 8 << 10         // bytes

	// dialTimeout bounds the question whether somebody listens at a path.
	dialTimeout = time.Second
)

// CheckPath returns what is wrong with the path of an admin socket.
func CheckPath(path string) error {
	switch {
	case path == "":
		return nil // no admin socket
	case !filepath.IsAbs(path):
		return fmt.Errorf("%q is not a path: give an absolute one, such as /run/revq/worker.admin; an admin socket is never a port", path)
	case len(path) > maxPath:
		return fmt.Errorf("the path has %d bytes, and that of a socket may have %d: use a shorter one", len(path), maxPath)
	}
	return nil
}

// Listen creates the socket at path, which only the process's user and group
// can open. It replaces a socket that nobody listens to, since a process that
// is killed leaves its socket. Call it while nothing else creates files: it
// changes the process's umask for a moment, so that the socket never has more
// permissions.
func Listen(path string) (net.Listener, error) {
	if err := removeStale(path); err != nil {
		return nil, fmt.Errorf("create the admin socket: %w", err)
	}
	before := unix.Umask(0o117)
	ln, err := net.Listen("unix", path)
	unix.Umask(before)
	if err != nil {
		return nil, fmt.Errorf("create the admin socket: %w; use --admin for another path", err)
	}
	return ln, nil
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s exists and is not a socket: remove it, or use another path", path)
	}
	c, err := net.DialTimeout("unix", path, dialTimeout)
	if err == nil {
		c.Close()
		return fmt.Errorf("%s is the socket of another process: stop that, or use another path", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

// CheckSocket returns an error unless address is that of a Unix socket.
func CheckSocket(address net.Addr) error {
	if address.Network() != "unix" {
		return fmt.Errorf("it is at %s: an admin socket must be a Unix socket, with a path as its ListenStream=", address)
	}
	return nil
}

// A Server answers the requests of operators, at an admin socket or for those of
// a host.
type Server struct {
	http http.Server
}

// NewServer returns a server. It calls status for each request of the status,
// and known, which may be nil, for each question about a task. It shows the
// metrics beside those of the process and of Go's runtime.
func NewServer(log *slog.Logger, status func() Status, known func(id string) Known, metrics Metrics) *Server {
	registry := newRegistry(metrics)
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, what any) {
		w.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		if err := e.Encode(what); err != nil {
			log.Debug("an answer at the admin socket was not sent", "error", err)
		}
	}
	mux.HandleFunc("GET "+StatusPath, func(w http.ResponseWriter, _ *http.Request) { answer(w, status()) })
	mux.HandleFunc("GET "+TasksPath+"{id...}", func(w http.ResponseWriter, r *http.Request) {
		var is Known
		if known != nil {
			is = known(r.PathValue("id"))
		}
		answer(w, is)
	})
	mux.Handle("GET "+MetricsPath, promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn), Registry: registry,
		MaxRequestsInFlight: maxRequests,
	}))
	// Not cmdline: it shows what was given as --amqp-url.
	mux.HandleFunc("GET "+ProfilesPath, pprof.Index)
	mux.HandleFunc("GET "+ProfilesPath+"profile", pprof.Profile)
	mux.HandleFunc("GET "+ProfilesPath+"trace", pprof.Trace)
	mux.HandleFunc("POST "+ProfilesPath+"symbol", pprof.Symbol)
	return newServer(log, mux)
}

func newServer(log *slog.Logger, handler http.Handler) *Server {
	return &Server{http.Server{
		Handler:           limit(handler),
		ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, WriteTimeout: writeTimeout,
		MaxHeaderBytes: maxHeader,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}}
}

// limit refuses requests beyond maxRequests.
func limit(h http.Handler) http.Handler {
	places := make(chan struct{}, maxRequests)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
			h.ServeHTTP(w, r)
		default:
			http.Error(w, "too many requests at once: try again in a second", http.StatusServiceUnavailable)
		}
	})
}

// Serve answers requests until ctx ends. It takes ownership of ln.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	defer context.AfterFunc(ctx, func() { s.http.Close() })()
	err := s.http.Serve(ln)
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve operators at %s: %w", ln.Addr(), err)
}
