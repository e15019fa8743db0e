package command

import (
	"regexp"
	"strings"
)

// The library's errors about flags name functions and types of Go. These rules,
// applied in order, turn them into errors that users understand.
var rewrites = []struct {
	library *regexp.Regexp
	ours    string
}{
	{regexp.MustCompile(`^flag provided but not defined: -(.)$`), "there is no flag -$1"},
	{regexp.MustCompile(`^flag provided but not defined: -(.+)$`), "there is no flag --$1"},
	{regexp.MustCompile(`^flag needs an argument: (\S+)$`), "$1 needs a value"},
	{regexp.MustCompile(`^invalid value ".*" for flag -(.): `), "-$1: "},
	{regexp.MustCompile(`^invalid value ".*" for flag -(\S+): `), "--$1: "},
	{regexp.MustCompile(`^could not parse ".*" as \S+ value from environment variable "(\S+)" for flag \S+: `), "$$$1: "},
	{regexp.MustCompile(`strconv\.Parse\w+: parsing (".*"): invalid syntax$`), "$1 is not a whole number"},
	{regexp.MustCompile(`strconv\.Parse\w+: parsing (".*"): value out of range$`), "$1 is too large"},
	{regexp.MustCompile(`time: .*duration (".*")$`), "$1 is not a time: give a number and a unit, such as 500ms, 10s or 5m"},
	{regexp.MustCompile(`^((?:--|\$)\S+): (must be )`), "$1 $2"},
}

// plain returns the message of a usage error in one line, after the rewrites.
func plain(err error) string {
	text := strings.Join(strings.Fields(err.Error()), " ")
	for _, r := range rewrites {
		text = r.library.ReplaceAllString(text, r.ours)
	}
	return text
}
