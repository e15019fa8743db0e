package front

import (
	"log/slog"

	"golang.org/x/sys/unix"
)

// ownFiles is how many files a front has open in addition to its connections:
// the log, the polls of the runtime and the shards, sessions with the broker,
// and connections that are being refused.
const ownFiles = 64

// Connections returns how many connections each of a number of addresses may
// have. This is want, or less if the process may not open so many files: if the
// files ran out before the limit, clients would get no answer instead of a 503.
// If it lowers the limit, it logs the name of the setting. others is the number
// of files that the front opens in addition to ownFiles.
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
	log.Warn("lowered a setting, since the process may not open enough files for it: raise LimitNOFILE= of the unit, or ulimit -n",
		"setting", "--"+setting, "configured", want, "now", possible, "open_files", files.Cur)
	return possible
}

// connections returns how many connections each address may have with a limit
// of open files. At least half of the files are for connections.
func connections(files, addresses, others int) int {
	return max(max(files-ownFiles-others, files/2)/addresses, 1)
}
