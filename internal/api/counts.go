package api

import (
	"sync/atomic"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/front"
)

// results are what came of the texts that were posted.
var results = [...]string{"accepted", "invalid", "no_queue", "busy", "uncertain"}

type counts [len(results)]atomic.Int64

// add counts a text that was answered with p, or accepted if p is nil.
func (c *counts) add(p *front.Problem) {
	i := 1
	switch {
	case p == nil:
		i = 0
	case p.Status == fasthttp.StatusNotFound:
		i = 2
	case p.Status == fasthttp.StatusTooManyRequests:
		i = 3
	case p.Status == fasthttp.StatusServiceUnavailable:
		i = 4
	}
	c[i].Add(1)
}

// Texts calls each with every result, and how many texts had it.
func (s *Server) Texts(each func(result string, texts int64)) {
	for i, name := range results {
		each(name, s.counts[i].Load())
	}
}

// MaxInFlight returns how many tasks may be in flight.
func (s *Server) MaxInFlight() int { return s.cfg.MaxInFlight }

// Connections returns how many connections are open at all sites.
func (s *Server) Connections() int { return s.front.Connections() }

// MaxConnections returns how many connections may be open at each site.
func (s *Server) MaxConnections() int { return s.cfg.MaxConnections }
