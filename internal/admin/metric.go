package admin

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/revq/revq/internal/tally"
)

// A Metric is something that a daemon counts or measures. It is read when
// somebody asks for the metrics.
type Metric struct {
	desc *prometheus.Desc
	read func(chan<- prometheus.Metric)
}

// A Value sends one value of a metric, with the values of its labels.
type Value func(value float64, labels ...string)

// Labels are the names of a metric's labels. Their values come from a short
// list, and are never ids or addresses.
type Labels []string

// Counter returns a metric that only grows, until the daemon ends. Its name
// ends with _total.
func Counter(name, help string, labels Labels, read func(Value)) Metric {
	return scalar(prometheus.CounterValue, name, help, labels, read)
}

// Gauge returns a metric that goes up and down.
func Gauge(name, help string, labels Labels, read func(Value)) Metric {
	return scalar(prometheus.GaugeValue, name, help, labels, read)
}

func scalar(kind prometheus.ValueType, name, help string, labels Labels, read func(Value)) Metric {
	desc := prometheus.NewDesc(name, help, labels, nil)
	return Metric{desc, func(to chan<- prometheus.Metric) {
		read(func(value float64, labels ...string) {
			to <- prometheus.MustNewConstMetric(desc, kind, value, labels...)
		})
	}}
}

// Histogram returns a metric that says how often something took how long. Its
// name ends with _seconds.
func Histogram(name, help string, labels Labels, read func(send func(tally.Snapshot, ...string))) Metric {
	desc := prometheus.NewDesc(name, help, labels, nil)
	return Metric{desc, func(to chan<- prometheus.Metric) {
		read(func(s tally.Snapshot, labels ...string) {
			to <- prometheus.MustNewConstHistogram(desc, s.Count, s.Sum, s.Buckets, labels...)
		})
	}}
}

// Metrics are the metrics of a daemon.
type Metrics []Metric

// Describe implements prometheus.Collector.
func (m Metrics) Describe(to chan<- *prometheus.Desc) {
	for _, metric := range m {
		to <- metric.desc
	}
}

// Collect implements prometheus.Collector.
func (m Metrics) Collect(to chan<- prometheus.Metric) {
	for _, metric := range m {
		metric.read(to)
	}
}
