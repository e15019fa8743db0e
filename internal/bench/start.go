package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/revq/revq/internal/bench/report"
)

// Start measures how long the daemons take to start. Each start is of one
// daemon, while no other starts or runs.
func (b *Bench) Start(ctx context.Context) error {
	const times = 5
	daemons := []struct {
		layout Layout
		result *report.StartResult
	}{
		{Layout{APISites: 1}, &report.StartResult{Daemon: "api"}},
		{Layout{SocketSites: 1}, &report.StartResult{Daemon: "socket"}},
		{Layout{Workers: 1}, &report.StartResult{Daemon: "worker"}},
	}
	for i := range times {
		b.Progress("starting daemons", float64(i)/times)
		for _, d := range daemons {
			d.layout.Keep = i > 0
			if err := b.with(ctx, d.layout, func(s *System) error {
				addStarts(d.result, s.Starts())
				return nil
			}); err != nil {
				return err
			}
		}
	}
	for _, d := range daemons {
		b.Report.Start = append(b.Report.Start, d.result)
	}
	return nil
}

// addStarts adds starts of a daemon, which still runs, to r.
func addStarts(r *report.StartResult, starts []Start) {
	for _, start := range starts {
		r.Ready = append(r.Ready, start.Took)
		r.Resident = Processes{start.pid}.resident()
		if info, err := os.Stat(filepath.Join("/proc", fmt.Sprint(start.pid), "exe")); err == nil {
			r.Bytes = info.Size()
		}
	}
}
