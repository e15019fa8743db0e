package bench

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/revq/revq/internal/bench/report"
	"github.com/revq/revq/internal/command"
)

// thisMachine describes the machine that the load runs on.
func thisMachine() report.Machine {
	return report.Machine{
		CPUs:    runtime.NumCPU(),
		Model:   field("/proc/cpuinfo", "model name"),
		Memory:  memory(field("/proc/meminfo", "MemTotal")),
		Kernel:  strings.TrimSpace(firstLine("/proc/sys/kernel/osrelease")),
		Version: command.Version(),
		Go:      runtime.Version(),
	}
}

func firstLine(path string) string {
	content, _ := os.ReadFile(path)
	line, _, _ := strings.Cut(string(content), "\n")
	return line
}

// field returns the value after "name :" in a file of /proc, "" if there is none.
func field(path, name string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// memory parses "12345 kB" and returns bytes.
func memory(text string) int64 {
	var kilobytes int64
	fmt.Sscan(text, &kilobytes)
	return kilobytes << 10
}
