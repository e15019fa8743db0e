package program

import (
	"slices"
	"time"

	"github.com/revq/revq/internal/admin"
	"github.com/revq/revq/internal/api"
	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/socket"
	"github.com/revq/revq/internal/tally"
	"github.com/revq/revq/internal/worker"
)

// connected is what has connections to the broker.
type connected interface{ Connections() []rabbit.Connection }

// connections returns all connections of some of them.
func connections(of []connected) (all []rabbit.Connection) {
	for _, c := range of {
		all = append(all, c.Connections()...)
	}
	return all
}

// brokerMetrics are the metrics of connections to the broker.
func brokerMetrics(of ...connected) admin.Metrics {
	return admin.Metrics{
		admin.Gauge("revq_broker_connected", "1 while there is a working connection to the broker for this purpose, else 0.",
			admin.Labels{"connection"}, func(send admin.Value) {
				for _, c := range connections(of) {
					send(number(c.Err == nil), c.Role)
				}
			}),
		admin.Counter("revq_broker_sessions_ended_total", "Connections to the broker that have ended, for whatever reason.",
			admin.Labels{"connection"}, func(send admin.Value) {
				for _, c := range connections(of) {
					send(float64(c.Ended), c.Role)
				}
			}),
	}
}

func publisherMetrics(p *rabbit.Publisher) admin.Metrics {
	return admin.Metrics{
		admin.Gauge("revq_broker_blocked", "1 while the broker takes no messages because it is short of memory or disk space, else 0.",
			nil, func(send admin.Value) { send(number(p.Blocked())) }),
		admin.Counter("revq_publisher_messages_total", "Messages for the broker, by what came of them. One message may hold many results.",
			admin.Labels{"kind", "result"}, func(send admin.Value) {
				p.Published(func(kind, result string, n int64) { send(float64(n), kind, result) })
			}),
		admin.Gauge("revq_publisher_in_flight_messages", "Messages that wait for the broker's confirmation.",
			nil, func(send admin.Value) { send(float64(p.InFlight())) }),
		admin.Histogram("revq_publisher_confirm_seconds", "Time from publishing a message to the broker's confirmation.",
			admin.Labels{"kind"}, func(send func(tally.Snapshot, ...string)) {
				p.ConfirmTimes(func(kind string, times tally.Snapshot) { send(times, kind) })
			}),
	}
}

// queueMetrics are what the broker says of its queues, which look asks for. If
// it does not answer, the metrics are missing.
func queueMetrics(look func() ([]rabbit.Depth, error)) admin.Metrics {
	return admin.Metrics{
		admin.Gauge("revq_queue_messages", "Messages that wait in a queue of the broker: tasks without a worker, or dead letters. Every daemon that sees the queue reports it.",
			admin.Labels{"queue"}, func(send admin.Value) {
				known, _ := look() // what is not known is missing
				for _, d := range known {
					if !d.Waiting { // tasks with a delay would look like tasks that pile up
						send(float64(d.Tasks), d.Queue)
					}
				}
			}),
		admin.Gauge("revq_queue_consumers", "Consumers of a queue of the broker: workers.",
			admin.Labels{"queue"}, func(send admin.Value) {
				known, _ := look()
				for _, d := range known {
					if !d.Waiting {
						send(float64(d.Consumers), d.Queue)
					}
				}
			}),
	}
}

func apiMetrics(s *api.Server, p *rabbit.Publisher, sites int) admin.Metrics {
	return slices.Concat(admin.Metrics{
		admin.Counter("revq_api_texts_total", "Texts that were posted, by what came of them. Those that are uncertain may be queued or not.",
			admin.Labels{"result"}, func(send admin.Value) {
				s.Texts(func(result string, n int64) { send(float64(n), result) })
			}),
		admin.Gauge("revq_api_in_flight_texts", "Texts that wait for the broker's confirmation.",
			nil, func(send admin.Value) { send(float64(s.InFlight())) }),
		admin.Gauge("revq_api_in_flight_texts_max", "Texts that may wait for the broker's confirmation (--max-in-flight); more are answered 429.",
			nil, func(send admin.Value) { send(float64(s.MaxInFlight())) }),
		admin.Gauge("revq_api_connections", "Open connections of clients, at all sites.",
			nil, func(send admin.Value) { send(float64(s.Connections())) }),
		admin.Gauge("revq_api_connections_max", "Connections that may be open, at all sites (--max-connections at each); more are answered 503.",
			nil, func(send admin.Value) { send(float64(sites * s.MaxConnections())) }),
	}, brokerMetrics(p), publisherMetrics(p), queueMetrics(p.Depths))
}

func workerMetrics(w *worker.Worker, p *rabbit.Publisher, c *rabbit.Consumer, queue string) admin.Metrics {
	return slices.Concat(admin.Metrics{
		admin.Counter("revq_worker_attempts_total", "Attempts to handle a task, by their outcome.",
			admin.Labels{"queue", "result"}, func(send admin.Value) {
				w.Attempts(func(outcome string, n int64) { send(float64(n), queue, outcome) })
			}),
		admin.Histogram("revq_worker_wait_seconds", "Time from accepting a text to the moment when a worker takes its task. Each attempt counts.",
			admin.Labels{"queue"}, func(send func(tally.Snapshot, ...string)) { send(w.WaitTimes(), queue) }),
		admin.Histogram("revq_worker_handling_seconds", "Time that an attempt takes in the handler.",
			admin.Labels{"queue"}, func(send func(tally.Snapshot, ...string)) { send(w.HandlingTimes(), queue) }),
		admin.Gauge("revq_worker_slots", "Tasks that the worker handles at once (--concurrency).",
			admin.Labels{"queue"}, func(send admin.Value) { send(float64(w.Slots()), queue) }),
		admin.Gauge("revq_worker_slots_busy", "Tasks that the worker is running.",
			admin.Labels{"queue"}, func(send admin.Value) { send(float64(w.Busy()), queue) }),
		admin.Gauge("revq_worker_oldest_task_seconds", "Time since the oldest running task was accepted, 0 without one.",
			admin.Labels{"queue"}, func(send admin.Value) { send(oldest(w.Running(), time.Now()).Seconds(), queue) }),
		admin.Gauge("revq_worker_paused", "1 while tasks wait because the handler is out of order, else 0.",
			admin.Labels{"queue"}, func(send admin.Value) { send(number(w.Ready() != nil), queue) }),
	}, brokerMetrics(c, p), publisherMetrics(p), queueMetrics(c.Depths))
}

func socketMetrics(s *socket.Server, f *feed.Feed, r *rabbit.Reader) admin.Metrics {
	return slices.Concat(admin.Metrics{
		admin.Gauge("revq_socket_listeners", "Connected listeners.",
			admin.Labels{"format"}, func(send admin.Value) {
				s.ListenersBy(func(format string, n int64) { send(float64(n), format) })
			}),
		admin.Gauge("revq_socket_listeners_max", "Listeners that may be connected (--max-listeners); more are answered 503.",
			nil, func(send admin.Value) { send(float64(s.MaxListeners())) }),
		admin.Counter("revq_socket_closes_total", "Connections of listeners that have ended, by reason. Those that are left were ended by the client or the network.",
			admin.Labels{"reason"}, func(send admin.Value) {
				s.Closes(func(reason string, n int64) { send(float64(n), reason) })
			}),
		admin.Counter("revq_socket_resumes_total", "Listeners that resumed, by the source of what they had missed; none if they could not resume.",
			admin.Labels{"source"}, func(send admin.Value) {
				s.Resumes(func(source string, n int64) { send(float64(n), source) })
			}),
		admin.Counter("revq_socket_gaps_total", "Listeners that resumed and were told of a gap.",
			nil, func(send admin.Value) { send(float64(s.Gaps())) }),
		admin.Counter("revq_socket_sent_bytes_total", "Bytes written to listeners, without those of TLS and of HTTP's headers.",
			nil, func(send admin.Value) { send(float64(s.Sent())) }),
		admin.Histogram("revq_socket_delivery_seconds", "Time from the end of a task until its result was written to the listeners. Of results that are written together, the newest one counts.",
			nil, func(send func(tally.Snapshot, ...string)) { send(s.DeliveryTimes()) }),
		admin.Counter("revq_feed_results_total", "Results and failures that were read from the stream, with those of the backlog.",
			nil, func(send admin.Value) { send(float64(f.Results())) }),
		admin.Counter("revq_feed_repetitions_total", "Results that were dropped because they were repetitions.",
			nil, func(send admin.Value) { send(float64(f.Repetitions())) }),
		admin.Counter("revq_feed_gaps_total", "Gaps in the stream that all listeners were told of.",
			nil, func(send admin.Value) { send(float64(f.Gaps())) }),
	}, brokerMetrics(r))
}

// oldest returns the age of the oldest task: the time since it was accepted or,
// if that is not known, since the worker took it.
func oldest(running []worker.Running, now time.Time) (age time.Duration) {
	for _, r := range running {
		begin := r.Accepted
		if begin.IsZero() {
			begin = r.Since
		}
		age = max(age, now.Sub(begin))
	}
	return age
}

func number(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
