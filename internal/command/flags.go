package command

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/setting"
)

// Variable returns the environment variable of a flag, such as REVQ_MAX_TEXT
// for max-text. The command line overrides it.
func Variable(flag string) cli.ValueSourceChain { return cli.EnvVars(setting.Variable(flag)) }

// Flags returns a flag for each setting, with its Variable.
func Flags(settings []setting.Setting) []cli.Flag {
	flags := make([]cli.Flag, 0, len(settings))
	for _, s := range settings {
		flags = append(flags, flag(s))
	}
	return flags
}

func flag(s setting.Setting) cli.Flag {
	sources := Variable(s.Name)
	if s.Lookup != nil {
		sources.Append(cli.NewValueSourceChain(source{s.Lookup}))
	}
	switch dest := s.Dest.(type) {
	case *int:
		return &cli.IntFlag{
			Name: s.Name, Usage: s.Usage, Category: s.Group, Sources: sources, HideDefault: s.Wiring,
			Value: *dest, Destination: dest, Validator: Within(int(s.Min), int(s.Max)),
		}
	case *int64:
		return &cli.Int64Flag{
			Name: s.Name, Usage: s.Usage, Category: s.Group, Sources: sources,
			Value: *dest, Destination: dest, Validator: Within(s.Min, s.Max),
		}
	case *time.Duration:
		return &cli.DurationFlag{
			Name: s.Name, Usage: s.Usage, Category: s.Group, Sources: sources,
			Value: *dest, Destination: dest, Validator: Within(time.Duration(s.Min), time.Duration(s.Max)),
		}
	case *string:
		return &cli.StringFlag{
			Name: s.Name, Usage: s.Usage, Category: s.Group, Sources: sources, HideDefault: s.Wiring,
			Value: *dest, Destination: dest, Validator: func(v string) error { return check(s, []string{v}) },
		}
	case *[]string:
		return &cli.StringSliceFlag{
			Name: s.Name, Usage: s.Usage, Category: s.Group, Sources: sources,
			Value: *dest, Destination: dest, Validator: func(v []string) error { return check(s, v) },
		}
	case *bool:
		return &cli.BoolFlag{
			Name: s.Name, Usage: s.Usage, Category: s.Group, Sources: sources,
			Value: *dest, Destination: dest,
		}
	}
	panic(fmt.Sprintf("setting %s is stored in a %T, which no flag can set", s.Name, s.Dest))
}

// check returns an error if s does not allow the values.
func check(s setting.Setting, values []string) error {
	isValue := func(choice string) bool { return strings.EqualFold(choice, values[0]) }
	if s.Kind == setting.Choice && !slices.ContainsFunc(s.Choices, isValue) {
		return fmt.Errorf("there is no %s %q: use %s", strings.ReplaceAll(s.Name, "-", " "), values[0], s.Bounds())
	}
	if s.Check != nil {
		return s.Check(values)
	}
	return nil
}

// A source makes a setting.Source usable for the library.
type source struct{ setting.Source }

func (s source) GoString() string { return s.String() }

// Within returns a validator that accepts minimum to maximum, or, if maximum is
// zero, minimum or more. Run puts the name of the flag or the variable before
// its errors.
func Within[T cmp.Ordered](minimum, maximum T) func(T) error {
	var none T
	return func(v T) error {
		switch {
		case maximum == none && v < minimum:
			return fmt.Errorf("must be %v or more, not %v", minimum, v)
		case maximum != none && (v < minimum || v > maximum):
			return fmt.Errorf("must be %v to %v, not %v", minimum, maximum, v)
		}
		return nil
	}
}
