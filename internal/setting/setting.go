// Package setting declares what an operator can set: each setting once, with
// its name, kind, unit, default, bounds and description. Flags, variables, the
// reference page, the example environment file and the options of the NixOS
// module all come from these declarations.
//
// The package knows no command line library. Packages that do the work declare
// the settings of their Config with it; package command makes flags of them.
package setting

import (
	"cmp"
	"fmt"
	"strings"
	"time"
)

// A Kind is the type of a setting's value.
type Kind string

// The kinds.
const (
	Int      Kind = "int"      // a whole number; Setting.Unit says of what
	Duration Kind = "duration" // a time as Go writes it, such as 500ms or 1m30s
	Text     Kind = "text"     // any text that Check accepts
	Choice   Kind = "choice"   // one of Setting.Choices
	List     Kind = "list"     // any number of texts
	Bool     Kind = "bool"     // true or false
)

// A Setting is one thing that an operator can set. The variable that it is
// stored in holds its default until the command line has been read.
type Setting struct {
	// Name is the name of the flag, such as max-text. The variable is
	// REVQ_MAX_TEXT.
	Name string

	// Usage is what --help says in one line, without a full stop. A word in
	// backquotes stands for the value.
	Usage string

	// Note is what else an operator should know, in whole sentences: the reason
	// for the default, and what happens beyond the limit.
	Note string

	// Group is the heading in --help.
	Group string

	Kind Kind

	// Unit is what an Int counts, such as bytes.
	Unit string

	// Min and Max are the bounds of an Int or a Duration, in nanoseconds. Max
	// is 0 where there is none.
	Min, Max int64

	// Choices are the values that a Choice may have, in any case.
	Choices []string

	// Pattern is a regular expression that a Text, or each value of a List,
	// matches, without anchors; "" for any text. The NixOS module checks values
	// with it. Every value that Check accepts matches it.
	Pattern string

	// Default is the default value as text. A list's values are separated by
	// commas.
	Default string

	// Wiring marks settings that the units decide for a daemon that systemd
	// runs: addresses and secrets. The NixOS module has its own options for
	// them.
	Wiring bool

	// Lookup, if it is not nil, is asked for a value when neither the flag nor
	// the variable gives one.
	Lookup Source

	// Dest is where the value goes: a *int, *int64, *time.Duration, *string,
	// *[]string or *bool.
	Dest any

	// Check returns what is wrong with a Text, or with a List's values.
	Check func(values []string) error
}

// A Source is a place where a setting's value may be, such as a file.
type Source interface {
	Lookup() (value string, found bool)
	String() string // says which place it is
}

// Variable returns the name of the environment variable of a setting.
func Variable(name string) string {
	return "REVQ_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// Count declares a whole number of units, from minimum to maximum; a maximum of
// 0 means none.
func Count[T int | int64](name, unit, usage string, dest *T, minimum, maximum int64) Setting {
	return Setting{
		Name: name, Usage: usage, Kind: Int, Unit: unit, Min: minimum, Max: maximum,
		Default: fmt.Sprint(*dest), Dest: dest,
	}
}

// Time declares a duration from minimum to maximum; a maximum of 0 means none.
func Time(name, usage string, dest *time.Duration, minimum, maximum time.Duration) Setting {
	return Setting{
		Name: name, Usage: usage, Kind: Duration, Min: int64(minimum), Max: int64(maximum),
		Default: dest.String(), Dest: dest,
	}
}

// OneOf declares a text that is one of choices.
func OneOf(name, usage string, dest *string, choices ...string) Setting {
	return Setting{Name: name, Usage: usage, Kind: Choice, Choices: choices, Default: *dest, Dest: dest}
}

// String declares a text. check, if it is not nil, returns what is wrong with it.
func String(name, usage string, dest *string, check func(string) error) Setting {
	s := Setting{Name: name, Usage: usage, Kind: Text, Default: *dest, Dest: dest}
	if check != nil {
		s.Check = func(values []string) error { return check(values[0]) }
	}
	return s
}

// Strings declares a list of texts. check, if it is not nil, returns what is
// wrong with them.
func Strings(name, usage string, dest *[]string, check func([]string) error) Setting {
	return Setting{Name: name, Usage: usage, Kind: List, Default: strings.Join(*dest, ","), Dest: dest, Check: check}
}

// Switch declares a setting that is on or off.
func Switch(name, usage string, dest *bool) Setting {
	return Setting{Name: name, Usage: usage, Kind: Bool, Default: fmt.Sprint(*dest), Dest: dest}
}

// With returns s with a note.
func (s Setting) With(note string) Setting {
	s.Note = note
	return s
}

// In puts settings under a heading in --help.
func In(group string, settings ...Setting) []Setting {
	for i := range settings {
		settings[i].Group = cmp.Or(settings[i].Group, group)
	}
	return settings
}

// Bounds returns in words which values s accepts; "" for any.
func (s Setting) Bounds() string {
	switch {
	case s.Kind == Choice:
		last := len(s.Choices) - 1
		return strings.Join(s.Choices[:last], ", ") + " or " + s.Choices[last]
	case s.Kind != Int && s.Kind != Duration:
		return ""
	case s.Max != 0:
		return s.amount(s.Min) + " to " + s.amount(s.Max)
	default:
		return s.amount(s.Min) + " or more"
	}
}

func (s Setting) amount(n int64) string {
	if s.Kind == Duration {
		return time.Duration(n).String()
	}
	return fmt.Sprint(n)
}

// Sentence returns the description of s as a sentence: its usage, and its note.
func (s Setting) Sentence() string {
	text := s.Usage
	// The placeholder names the value in --help; in a sentence it is a word.
	if begin := strings.IndexByte(text, '`'); begin >= 0 {
		if length := strings.IndexByte(text[begin+1:], '`'); length >= 0 {
			word := text[begin+1 : begin+1+length]
			if word == strings.ToUpper(word) && word != "URL" && !strings.Contains(word, ":") {
				word = strings.ToLower(word)
			}
			text = text[:begin] + word + text[begin+1+length+1:]
		}
	}
	text = strings.ToUpper(text[:1]) + text[1:] + "."
	if s.Note != "" {
		text += " " + s.Note
	}
	return text
}
