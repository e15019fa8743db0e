package front

import (
	"log/slog"

	"golang.org/x/sys/unix"
)

// ownFiles is how many files a front has open beside its connections: the log,
// the poll of the runtime and those of the listeners, sessions with the broker,
// and connections that are being refused.
const ownFiles = 64

// Connections returns how many connections each of a number of addresses may
// have, which is want unless the process may not have so many open files. A
// limit that cannot be reached would not be kept: instead of an answer, clients
// would get none. It says so, with the name of the setting. others is how
// many files more than usual the front has open.
func Connections(log *slog.Logger, setting string, want, addresses, others int) int {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		log.Warn("the limit of open files is not known", "error", err)
		return want
	}
	possible := connections(int(min(files.Cur, 1<<30)), max(addresses, 1), others)
	if want <= possible {
		return want
	}
	log.Warn("the process may not have as many open files as it takes for this setting, which is lowered: raise LimitNOFILE= of the unit, or ulimit -n",
		"setting", "--"+setting, "configured", want, "now", possible, "open_files", files.Cur)
	return possible
}

// connections returns how many connections each address may have with a limit
// of open files. Half of them at least are for connections.
func connections(files, addresses, others int) int {
	return max(max(files-ownFiles-others, files/2)/addresses, 1)
}
