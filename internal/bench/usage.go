package bench

import (
	"strconv"
	"strings"
	"time"

	"github.com/revq/revq/internal/bench/report"
)

// busy returns how much processor time was used on this machine, by whatever.
// What a hypervisor took away counts, too.
func busy() time.Duration {
	fields := strings.Fields(firstLine("/proc/stat")) // cpu, user, nice, system, idle, iowait, irq, softirq, steal
	var sum int64
	for i, field := range fields[:min(len(fields), 9)] {
		const name, idle, iowait = 0, 4, 5
		if i != name && i != idle && i != iowait {
			n, _ := strconv.ParseInt(field, 10, 64)
			sum += n
		}
	}
	return time.Duration(sum) * time.Second / ticks
}

// A usageMeter measures what processes use.
type usageMeter struct {
	of        map[string]Processes
	began     map[string]time.Duration
	busyBegan time.Duration
}

// measureUsage begins to measure the processes, by name.
func measureUsage(of map[string]Processes) *usageMeter {
	m := &usageMeter{of: of, began: make(map[string]time.Duration), busyBegan: busy()}
	for name, ps := range of {
		m.began[name] = ps.cpu()
	}
	return m
}

// end returns what the processes and everything else on this machine have used.
// It is nil if no processes are measured.
func (m *usageMeter) end() map[string]report.Usage {
	if len(m.of) == 0 {
		return nil
	}
	usage := make(map[string]report.Usage)
	others := busy() - m.busyBegan
	for name, ps := range m.of {
		used := ps.cpu() - m.began[name]
		others -= used
		usage[name] = report.Usage{CPU: used.Seconds(), Resident: ps.resident()}
	}
	usage[report.Others] = report.Usage{CPU: max(others, 0).Seconds()}
	return usage
}
