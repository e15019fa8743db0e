package admin

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/revq/revq/internal/command"
)

// newRegistry returns a registry with the metrics, and those that every program
// has.
func newRegistry(more Metrics) *prometheus.Registry {
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "revq_build_info",
		Help:        "Always 1. The labels say which revq this is, and which Go it was built with.",
		ConstLabels: prometheus.Labels{"version": command.Version(), "goversion": runtime.Version()},
	})
	build.Set(1)
	r := prometheus.NewRegistry()
	r.MustRegister(build, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), more)
	return r
}
