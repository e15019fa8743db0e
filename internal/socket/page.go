package socket

import (
	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/front"
	"github.com/revq/revq/internal/page"
)

// pageRoutes returns the route of the live page, if there is one. Everyone may
// load it: it holds nothing but what it was compiled from.
func pageRoutes(cfg Config) []front.Route {
	if !cfg.Page.Enabled {
		return nil
	}
	live := page.New(cfg.Page, cfg.PingInterval)
	return []front.Route{{
		Path:    page.Path,
		Methods: []string{fasthttp.MethodGet, fasthttp.MethodHead},
		Handle: func(ctx *fasthttp.RequestCtx) *front.Problem {
			h := &ctx.Response.Header
			h.SetContentType("text/html; charset=utf-8")
			h.Set("Content-Security-Policy", live.Policy(front.Host(ctx)))
			h.Set("X-Content-Type-Options", "nosniff")
			h.Set("Referrer-Policy", "no-referrer")
			h.Set("Cross-Origin-Opener-Policy", "same-origin")
			ctx.SetBody(live.Body)
			return nil
		},
	}}
}
