package api

import (
	"log/slog"
	"testing"

	"github.com/revq/revq/internal/wire/wiretest"
)

// The document has exactly the routes of the server.
func TestRoutesAreInTheDocument(t *testing.T) {
	s := New(DefaultConfig(), &broker{}, slog.New(slog.DiscardHandler))
	wiretest.Open(t).CheckRoutes(t, "api", s.front.Routes())
}
