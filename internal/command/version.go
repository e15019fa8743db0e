package command

import (
	"cmp"
	"regexp"
	"runtime/debug"
	"time"
)

// version is set by the linker, with -X, if the build system knows the version
// and Go does not.
var version string

// Version returns the version of this build.
func Version() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// Build returns the version of this build, with its commit and the commit's
// time in UTC if they are known.
func Build() string {
	revision, when, changed := commitOf(Version())
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				revision = s.Value
			case "vcs.time":
				when = s.Value
			case "vcs.modified":
				changed = s.Value == "true"
			}
		}
	}
	return described(Version(), revision, when, changed)
}

// described returns a version with its commit.
func described(version, revision, when string, changed bool) string {
	if revision == "" {
		return version
	}
	text := version + " (commit " + revision[:min(len(revision), shortRevision)]
	if changed {
		text += " with changes"
	}
	return text + ", " + cmp.Or(when, "of unknown time") + ")"
}

const shortRevision = 12

// pseudo matches the end of the versions that Go makes for commits without a
// tag, and nix/package.nix as well: the commit's time in UTC and the beginning of
// its hash.
var pseudo = regexp.MustCompile(`[-.](\d{14})-([0-9a-f]{12})(\+dirty)?$`)

// commitOf returns the commit that a version names, if it does.
func commitOf(version string) (revision, when string, changed bool) {
	parts := pseudo.FindStringSubmatch(version)
	if parts == nil {
		return "", "", false
	}
	at, err := time.Parse("20060102150405", parts[1])
	if err != nil {
		return "", "", false
	}
	return parts[2], at.Format(time.RFC3339), parts[3] != ""
}
