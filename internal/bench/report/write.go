package report

import (
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
)

// Write writes the report as tables.
func (r *Report) Write(w io.Writer) error {
	m := r.Machine
	out := &tables{w: w}
	out.line("%s, %d × %s, %d GiB, Linux %s, revq %s, %s", r.Began.Format("2006-01-02 15:04 MST"),
		m.CPUs, m.Model, (m.Memory+1<<29)>>30, m.Kernel, m.Version, m.Go)
	if r.Interrupted {
		out.line("interrupted: this is what was measured so far")
	}
	if len(r.Raw) > 0 {
		r.writeRaw(out)
	}
	if len(r.Ingest) > 0 {
		r.writeIngest(out, "ingest: texts posted and confirmed", r.Ingest)
	}
	if len(r.Worker) > 0 {
		r.writeWorker(out, "worker: tasks that were queued, to a listener", r.Worker)
	}
	if len(r.Pipeline) > 0 {
		r.writePipeline(out)
	}
	if len(r.Fanout) > 0 {
		r.writeFanout(out)
	}
	if len(r.Start) > 0 {
		r.writeStart(out)
	}
	for _, g := range r.Growth {
		if len(g.Ingest) > 0 {
			r.writeIngest(out, "growth over "+g.Over+": ingest", g.Ingest)
		}
		if len(g.Worker) > 0 {
			r.writeWorker(out, "growth over "+g.Over+": workers", g.Worker)
		}
	}
	return out.err
}

func (r *Report) writeRaw(out *tables) {
	out.begin("raw: the broker alone", "what", "bytes", "in flight", "messages", "seconds", "messages/s", "broker µs/message", "others' CPUs")
	for _, x := range r.Raw {
		out.row(x.What, x.TextBytes, x.InFlight, x.Messages, seconds(x.Seconds), rate(x.PerSecond), perMessage(x.Usage, "broker", x.Messages), others(x.Usage, x.Seconds))
	}
	out.end()
}

func (r *Report) writeStart(out *tables) {
	out.begin("start: from fork to READY, with the broker up", "daemon", "starts", "median ms", "longest ms", "resident MiB", "binary MiB")
	for _, x := range r.Start {
		times := slices.Sorted(slices.Values(x.Ready))
		out.row(x.Daemon, len(times), ms(times[len(times)/2]), ms(times[len(times)-1]), mib(x.Resident), mib(x.Bytes))
	}
	out.end()
}

func (r *Report) writeIngest(out *tables, title string, results []*IngestResult) {
	out.begin(title, "connections", "sites", "kind", "batch", "bytes", "queued before", "texts", "seconds", "accepted/s", "of raw",
		"p50 ms", "p99 ms", "not accepted", "api µs/text", "broker µs/text", "load µs/text", "api MiB", "broker MiB", "others' CPUs")
	for _, x := range results {
		depth := ""
		if x.Depth > 0 {
			depth = fmt.Sprint(x.Depth)
		}
		out.row(x.Connections, x.Sites, x.Kind, x.Batch, x.TextBytes, depth, x.Accepted, seconds(x.Seconds), rate(x.PerSecond),
			r.ofRaw(x.PerSecond, x.TextBytes, RawPublish), ms(x.Latency.P50), ms(x.Latency.P99), failures(x.Answers, x.Lost),
			perMessage(x.Usage, "api", x.Accepted), perMessage(x.Usage, "broker", x.Accepted), perMessage(x.Usage, "load", x.Accepted),
			mebibytes(x.Usage, "api"), mebibytes(x.Usage, "broker"), others(x.Usage, x.Seconds))
	}
	out.end()
}

func (r *Report) writeWorker(out *tables, title string, results []*WorkerResult) {
	out.begin(title, "workers", "concurrency", "bytes", "queued before", "results", "seconds", "results/s", "of raw",
		"worker µs/task", "broker µs/task", "worker MiB", "broker MiB", "others' CPUs")
	for _, x := range results {
		out.row(x.Workers, x.Concurrency, x.TextBytes, x.Queued, x.Results, seconds(x.Seconds), rate(x.PerSecond),
			r.ofRaw(x.PerSecond, x.TextBytes, RawConsume, RawStreamPublish),
			perMessage(x.Usage, "worker", x.Results), perMessage(x.Usage, "broker", x.Results), mebibytes(x.Usage, "worker"), mebibytes(x.Usage, "broker"), others(x.Usage, x.Seconds))
	}
	out.end()
}

func (r *Report) writePipeline(out *tables) {
	out.begin("pipeline: from when a text is due to the listener's frame", "due/s", "in flight", "connections", "bytes", "seconds", "results/s",
		"p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms", "not accepted", "missing", "repeated", "api µs/text", "worker µs/text", "socket µs/text", "others' CPUs")
	for _, x := range r.Pipeline {
		due, inFlight := "as many as possible", ""
		if x.Rate > 0 {
			due = rate(x.Rate)
		} else {
			inFlight = fmt.Sprint(x.InFlight)
		}
		out.row(due, inFlight, x.Connections, x.TextBytes, seconds(x.Seconds), rate(x.PerSecond), ms(x.Latency.P50), ms(x.Latency.P90), ms(x.Latency.P99),
			ms(x.Latency.P999), ms(x.Latency.Max), failures(x.Answers, 0), x.Missing, x.Repeated,
			perMessage(x.Usage, "api", x.Results), perMessage(x.Usage, "worker", x.Results), perMessage(x.Usage, "socket", x.Results), others(x.Usage, x.Seconds))
	}
	out.end()
}

func (r *Report) writeFanout(out *tables) {
	r.writeListeners(out)
	r.writeFewMessages(out)
	r.writeManyMessages(out)
	r.writeRounds(out)
}

func (r *Report) writeListeners(out *tables) {
	out.begin("fanout: the server's memory, and listeners that come", "server", "listeners", "connects/s", "before MiB", "idle MiB", "idle KiB/listener", "after load MiB", "closed by server")
	for _, x := range r.Fanout {
		out.row(x.Server, x.Listeners, rate(x.ConnectsPerSecond), mib(x.ResidentBefore), mib(x.ResidentIdle), fmt.Sprintf("%.2f", x.PerListener/1024),
			mib(x.ResidentFull), closed(x))
	}
	out.end()
}

func (r *Report) writeFewMessages(out *tables) {
	out.begin("fanout: few messages, from when each was due", "server", "listeners", "messages/s", "each: p50 ms", "p99 ms", "max ms", "last listener: p50 ms", "p99 ms", "max ms", "missing")
	for _, x := range r.Fanout {
		if l := x.Light; l != nil {
			out.row(x.Server, x.Listeners, rate(l.Rate), ms(l.Each.P50), ms(l.Each.P99), ms(l.Each.Max), ms(l.Last.P50), ms(l.Last.P99), ms(l.Last.Max), l.Missing)
		}
	}
	out.end()
}

func (r *Report) writeManyMessages(out *tables) {
	out.begin("fanout: as many messages as possible", "server", "listeners", "bytes", "window", "seconds", "deliveries/s", "messages/s", "server µs/delivery", "load µs/delivery", "others' CPUs")
	for _, x := range r.Fanout {
		if l := x.Full; l != nil {
			out.row(x.Server, x.Listeners, x.TextBytes, x.Window, seconds(l.Seconds), rate(l.PerSecond), rate(l.Messages), fmt.Sprintf("%.3f", l.ServerMicros), fmt.Sprintf("%.3f", l.LoadMicros), fmt.Sprintf("%.2f", l.Others))
		}
	}
	out.end()
}

func (r *Report) writeRounds(out *tables) {
	for _, x := range r.Fanout {
		if len(x.Rounds) == 0 {
			continue
		}
		out.begin(fmt.Sprintf("fanout: rounds of %d listeners that leave and come again, memory of %s", x.Listeners, x.Server), "round", "left MiB", "come MiB")
		for i, round := range x.Rounds {
			out.row(i+1, mib(round.Left), mib(round.Connected))
		}
		out.end()
	}
}

func mib(bytes int64) string { return fmt.Sprintf("%.1f", float64(bytes)/(1<<20)) }

// closed returns how many listeners the server has closed, and why.
func closed(x *FanoutResult) string {
	if x.Closed == 0 {
		return "0"
	}
	return fmt.Sprintf("%d (%s)", x.Closed, x.Reason)
}

// ofRaw returns a rate as a fraction of what the broker alone reached in the
// same run with messages of that size. With several measurements it is a
// fraction of the slowest; of a measurement that was repeated, the mean counts.
// It is "" if the broker alone was not measured.
func (r *Report) ofRaw(perSecond float64, textBytes int, measurements ...string) string {
	slowest := math.Inf(1)
	for _, what := range measurements {
		var sum, n float64
		for _, x := range r.Raw {
			if x.What == what && x.TextBytes == textBytes {
				sum += x.PerSecond
				n++
			}
		}
		if n == 0 {
			return ""
		}
		slowest = min(slowest, sum/n)
	}
	return fmt.Sprintf("%.2f", perSecond/slowest)
}

// failures returns how many answers other than 202 there were, by status.
func failures(answers map[int]int64, lost int64) string {
	var all []string
	for _, status := range slices.Sorted(maps.Keys(answers)) {
		if status != http.StatusAccepted {
			all = append(all, fmt.Sprintf("%d×%d", answers[status], status))
		}
	}
	if lost > 0 {
		all = append(all, fmt.Sprintf("%d lost", lost))
	}
	if len(all) == 0 {
		return "0"
	}
	return strings.Join(all, " ")
}

func seconds(s float64) string { return fmt.Sprintf("%.1f", s) }
func rate(r float64) string    { return fmt.Sprintf("%.0f", r) }
func ms(m Milliseconds) string { return fmt.Sprintf("%.1f", float64(m)) }

// perMessage returns the processor time of a process for each of n messages, in
// microseconds; "" if it was not measured.
func perMessage(usage map[string]Usage, process string, n int64) string {
	if u, ok := usage[process]; ok && n > 0 {
		return fmt.Sprintf("%.1f", u.CPU*1e6/float64(n))
	}
	return ""
}

// others returns how many processors everything that was not measured kept
// busy.
func others(usage map[string]Usage, seconds float64) string {
	if u, ok := usage[Others]; ok {
		return fmt.Sprintf("%.2f", u.CPU/seconds)
	}
	return ""
}

func mebibytes(usage map[string]Usage, process string) string {
	if u, ok := usage[process]; ok {
		return fmt.Sprintf("%.1f", float64(u.Resident)/(1<<20))
	}
	return ""
}
