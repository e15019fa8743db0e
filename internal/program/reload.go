package program

import (
	"errors"
	"fmt"

	"github.com/revq/revq/internal/daemon"
	"github.com/revq/revq/internal/token"
)

// reload returns the function that reads again what may change at run time: the
// tokens, if there are some, and what broker reads. It also says once who is
// let in, since a daemon that lets everyone in should not do so unnoticed.
func reload(d *daemon.Daemon, tokens *token.File, broker func() error) func() error {
	if !tokens.Enabled() {
		if d.Exposed() {
			d.Log.Warn("everyone who reaches the port is let in: set --tokens, or put it behind something that authenticates")
		}
		return broker
	}
	return func() error {
		tokensErr := tokens.Reload()
		if tokensErr != nil && !errors.Is(tokensErr, token.ErrUnchanged) {
			return tokensErr
		}
		err := broker()
		switch {
		case err == nil:
			return nil
		case tokensErr != nil:
			return fmt.Errorf("%w; %w", tokensErr, err)
		default: // the other settings may come from places that cannot change
			d.Log.Warn("only the tokens were read again", "error", err)
			return nil
		}
	}
}
