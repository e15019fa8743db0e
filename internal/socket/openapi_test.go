package socket

import (
	"testing"

	"github.com/revq/revq/internal/feed"
	"github.com/revq/revq/internal/wire/wiretest"
)

// The document has exactly the routes of the server.
func TestRoutesAreInTheDocument(t *testing.T) {
	s, _ := setup(t, DefaultConfig(), feed.DefaultConfig())
	wiretest.Open(t).CheckRoutes(t, "socket", s.front.Routes())
}
