package admin

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

const (
	// unitSockets is the directory in which units have admin sockets, and
	// socketSuffix how their names end.
	unitSockets  = "/run/revq/"
	socketSuffix = ".admin"

	// maxGathered is the number of daemons whose metrics are shown at one
	// address.
	maxGathered = 500

	// GatherPatience is how long a daemon may take to show its metrics. It
	// waits for the broker for up to a second itself, and Prometheus for 10 s.
	GatherPatience = 2500 * time.Millisecond

	// daemonLabel is the label that says whose a gathered metric is.
	daemonLabel = "daemon"
)

// DefaultSockets are patterns of the paths of admin sockets: where units and
// revq up have them.
func DefaultSockets() []string {
	return []string{unitSockets + "*" + socketSuffix, filepath.Join(os.TempDir(), "revq-up-*", "*"+socketSuffix)}
}

// Find returns the paths of the sockets that fit one of the patterns.
func Find(patterns []string) ([]string, error) {
	var sockets []string
	for _, pattern := range patterns {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("look for admin sockets at %q: %w", pattern, err)
		}
		sockets = append(sockets, found...)
	}
	return sockets, nil
}

// NewGatherer returns a server that shows the metrics of all daemons whose
// sockets fit one of the patterns, at MetricsPath. Each has one more label,
// daemon, such as api@1 for /run/revq/api@1.admin. It looks for the sockets at
// each request. A daemon that does not answer has revq_up 0, and delays the
// answer by GatherPatience at most. The server is the only one here that may be
// at a port: admit wraps its handler, and refuses pages that may not read it.
func NewGatherer(log *slog.Logger, patterns []string, admit func(http.Handler) http.Handler) *Server {
	gather := func() ([]*dto.MetricFamily, error) {
		sockets, err := Find(patterns)
		if err != nil {
			return nil, err
		}
		if len(sockets) > maxGathered {
			log.Warn("there are more daemons than can be shown; the others are left out: gather them with another revq metrics --admin PATTERN",
				"daemons", len(sockets), "max", maxGathered)
			sockets = sockets[:maxGathered]
		}
		return merge(log, readAll(sockets)), nil
	}
	mux := http.NewServeMux()
	mux.Handle("GET "+MetricsPath, promhttp.HandlerFor(prometheus.GathererFunc(gather), promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}))
	return newServer(log, admit(mux))
}

// A scraped is what a daemon has shown.
type scraped struct {
	daemon   string
	families map[string]*dto.MetricFamily
	err      error
}

// readAll reads the metrics at all sockets, at once.
func readAll(sockets []string) []scraped {
	ctx, cancel := context.WithTimeout(context.Background(), GatherPatience)
	defer cancel()
	pages := make([]scraped, len(sockets))
	var reading sync.WaitGroup
	for i, socket := range sockets {
		reading.Go(func() {
			p := &pages[i]
			p.daemon = strings.TrimPrefix(strings.TrimSuffix(socket, socketSuffix), unitSockets)
			var page []byte
			if page, p.err = get(ctx, socket, MetricsPath); p.err == nil {
				parser := expfmt.NewTextParser(model.LegacyValidation)
				p.families, p.err = parser.TextToMetricFamilies(bytes.NewReader(page))
			}
		})
	}
	reading.Wait()
	return pages
}

// merge puts the metrics of all pages together, ordered by name. Daemons of
// different versions may describe a metric in different words: the first ones
// are taken. What has another type than before is left out.
func merge(log *slog.Logger, pages []scraped) []*dto.MetricFamily {
	up := &dto.MetricFamily{
		Name: new("revq_up"), Type: dto.MetricType_GAUGE.Enum(),
		Help: new(fmt.Sprintf("1 if the daemon has shown its metrics to revq metrics within %v, else 0.", GatherPatience)),
	}
	all := map[string]*dto.MetricFamily{up.GetName(): up}
	for _, page := range pages {
		label := &dto.LabelPair{Name: new(daemonLabel), Value: &page.daemon}
		answers := 1.0
		if page.err != nil {
			answers = 0
			log.Debug("a daemon does not show its metrics", "daemon", page.daemon, "error", page.err)
		}
		up.Metric = append(up.Metric, &dto.Metric{Label: []*dto.LabelPair{label}, Gauge: &dto.Gauge{Value: &answers}})
		if page.err != nil {
			continue
		}
		for name, family := range page.families {
			for _, m := range family.Metric {
				m.Label = append(m.Label, label)
			}
			switch known := all[name]; {
			case known == nil:
				all[name] = family
			case known.GetType() == family.GetType():
				known.Metric = append(known.Metric, family.Metric...)
			default:
				log.Warn("a daemon's metric has another type than that of others, and is left out: upgrade all daemons", "daemon", page.daemon, "metric", name)
			}
		}
	}
	families := make([]*dto.MetricFamily, 0, len(all))
	for _, family := range all {
		if len(family.Metric) > 0 {
			families = append(families, family)
		}
	}
	slices.SortFunc(families, func(a, b *dto.MetricFamily) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return families
}
