package command

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v3"
)

// Variable returns the environment variable that sets a flag unless the
// command line does: REVQ_MAX_TEXT for max-text.
func Variable(flag string) cli.ValueSourceChain {
	return cli.EnvVars("REVQ_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_")))
}

// Number returns a flag, with its Variable, that sets *dest to least to most;
// if most is 0, to least or more. What *dest holds now is the default.
func Number(name, usage, category string, dest *int, least, most int) *cli.IntFlag {
	return &cli.IntFlag{
		Name: name, Usage: usage, Category: category, Sources: Variable(name),
		Value: *dest, Destination: dest, Validator: Within(least, most),
	}
}

// Size is Number for what the broker counts.
func Size(name, usage, category string, dest *int64, least, most int64) *cli.Int64Flag {
	return &cli.Int64Flag{
		Name: name, Usage: usage, Category: category, Sources: Variable(name),
		Value: *dest, Destination: dest, Validator: Within(least, most),
	}
}

// Duration is Number for a time.
func Duration(name, usage, category string, dest *time.Duration, least, most time.Duration) *cli.DurationFlag {
	return &cli.DurationFlag{
		Name: name, Usage: usage, Category: category, Sources: Variable(name),
		Value: *dest, Destination: dest, Validator: Within(least, most),
	}
}

// Within returns a validator for least to most or, if most is zero, for least
// or more. Run puts the flag's name, or its variable's, before what it says.
func Within[T cmp.Ordered](least, most T) func(T) error {
	var none T
	return func(v T) error {
		switch {
		case most == none && v < least:
			return fmt.Errorf("must be %v or more, not %v", least, v)
		case most != none && (v < least || v > most):
			return fmt.Errorf("must be %v to %v, not %v", least, most, v)
		}
		return nil
	}
}
