package status

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/revq/revq/internal/admin"
	"github.com/revq/revq/internal/wire"
)

const (
	// patience is how long a daemon may take to say its status. It waits for
	// the broker for up to a second itself.
	patience = 1500 * time.Millisecond

	// startPatience is the age up to which a daemon may lack answers, since it
	// is still connecting to the broker; startEvery is how often it is asked
	// again meanwhile, within patience.
	startPatience = 3 * time.Second
	startEvery    = 100 * time.Millisecond

	// sitePatience is how long a site may take to say that it is alive, which
	// it does without the broker.
	sitePatience = time.Second

	// unitsPatience bounds the question to systemd. On a busy machine, it took
	// more than a second.
	unitsPatience = 5 * time.Second
)

// Look asks, with units, systemd, then the daemons with the admin sockets, and
// then their sites. It takes no longer than the times above.
func Look(ctx context.Context, sockets []string, units bool) Facts {
	f := Facts{Daemons: make([]Daemon, len(sockets))}
	if units {
		var err error
		if f.Units, err = failedUnits(ctx); err != nil {
			f.NoUnits = err.Error()
		}
	}
	var asking sync.WaitGroup
	for i, socket := range sockets {
		// To ask a daemon whose unit has failed would start it once more, and
		// hide why it failed.
		if hasFailed(f.Units, socket) {
			f.Daemons[i] = Daemon{Socket: socket, Error: "its unit has failed"}
			continue
		}
		asking.Go(func() { f.Daemons[i] = ask(ctx, socket) })
	}
	asking.Wait()
	f.At = time.Now()
	return f
}

func ask(ctx context.Context, socket string) Daemon {
	d := Daemon{Socket: socket}
	asking, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var err error
	d.Status, err = admin.Read(asking, socket)
	for err == nil && starts(d.Status, time.Now()) && sleep(asking, startEvery) {
		d.Status, err = admin.Read(asking, socket)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		d.Error = fmt.Sprintf("nothing came within %v", patience)
	case err != nil:
		d.Error = cause(err)
	}
	var mu sync.Mutex
	var visiting sync.WaitGroup
	for _, site := range d.Status.Sites {
		visiting.Go(func() {
			if err := visit(ctx, site); err != nil {
				mu.Lock()
				defer mu.Unlock()
				if d.Sites == nil {
					d.Sites = make(map[string]string)
				}
				d.Sites[site.Address] = cause(err)
			}
		})
	}
	visiting.Wait()
	return d
}

// starts reports whether a daemon has begun so recently that it is no news that it
// has no answers yet: looking at a site may have started it.
func starts(s admin.Status, now time.Time) bool {
	away := slices.ContainsFunc(s.Broker, func(c admin.Connection) bool { return !c.Connected })
	return now.Sub(s.Started) < startPatience && (s.State == admin.Waiting || s.Silent || away)
}

// sleep reports whether ctx lasts for d.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// cause returns the reason of a network error, without the path and the
// operation that the caller names, such as "connection refused".
func cause(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
		if call, ok := errors.AsType[*os.SyscallError](err); ok {
			err = call.Err
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("nothing came within %v", sitePatience)
	}
	return err.Error()
}

// visit returns nil if something answers HTTP at a site of this host, whatever
// it says: it may not know the name by which it is asked.
func visit(ctx context.Context, site admin.Site) error {
	ctx, cancel := context.WithTimeout(ctx, sitePatience)
	defer cancel()
	host, port, err := net.SplitHostPort(site.Address)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = "localhost"
	}
	scheme := "http"
	if site.TLS {
		scheme = "https"
	}
	transport := http.Transport{
		DisableKeepAlives: true,
		// It is asked for a sign of life and told nothing, and its certificate is
		// hardly for localhost.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // see above
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+net.JoinHostPort(host, port)+wire.HealthPath, nil)
	if err != nil {
		return err
	}
	answer, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	answer.Body.Close()
	if answer.StatusCode == http.StatusServiceUnavailable {
		return errors.New("it has no place for another connection")
	}
	return nil
}

// failedUnits returns the units of revq that have failed or that systemd starts
// again and again. It returns none on a host without systemd, or where nobody may
// ask it, and an error if systemd does not answer in time.
func failedUnits(ctx context.Context) (failed []Unit, err error) {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, unitsPatience)
	defer cancel()
	out, err := exec.CommandContext(ctx, "systemctl", "show", "--property=Id,ActiveState,SubState,Result,StatusText", "revq*").Output()
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, fmt.Errorf("nothing came within %v", unitsPatience)
	case err != nil:
		return nil, nil // the daemons say the rest
	}
	return unitsIn(string(out)), nil
}

// unitsIn returns the units in the output of systemctl show that do not do what
// they should.
func unitsIn(shown string) (wrong []Unit) {
	for unit := range strings.SplitSeq(shown, "\n\n") {
		of := make(map[string]string)
		for line := range strings.Lines(unit) {
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
			of[name] = value
		}
		why := ""
		switch {
		case of["ActiveState"] == "failed":
			why = "has failed"
		case of["SubState"] == "auto-restart", of["SubState"] == "stop-post" && of["Result"] != "success": // the units wait there after a wrong setting
			why = "ends again and again"
		default:
			continue
		}
		if r := of["Result"]; r != "" && r != "success" {
			why += " (" + r + ")"
		}
		if text := of["StatusText"]; text != "" {
			why += ": " + strings.TrimPrefix(text, "failed: ")
		}
		wrong = append(wrong, Unit{of["Id"], why})
	}
	return wrong
}
