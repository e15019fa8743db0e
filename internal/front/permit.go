package front

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/token"
	"github.com/revq/revq/internal/wire"
)

// permitKey is where a request's permit is among ctx's user values.
type permitKey struct{}

// PermitOf returns what the sender of a request may do. It is nil if the server
// has no tokens: then everyone may do everything.
func PermitOf(ctx *fasthttp.RequestCtx) *token.Permit {
	permit, _ := ctx.UserValue(permitKey{}).(*token.Permit)
	return permit
}

// authorize is all that decides about tokens, in both fronts. It returns what
// the sender of a request may do, nil without tokens, or the problem with it.
func authorize(tokens *token.File, to *route, h *fasthttp.RequestHeader, now time.Time) (*token.Permit, *Problem) {
	if to.Scope == 0 || !tokens.Enabled() {
		return nil, nil
	}
	secret, ticket, p := credentialsOf(h)
	if p != nil {
		return nil, p
	}
	var permit *token.Permit
	var err error
	switch {
	case secret != "":
		permit, err = tokens.Check(secret, now)
	case ticket != "" && to.Tickets:
		permit, err = tokens.CheckTicket(ticket, now)
	case ticket != "":
		err = errTicketHere
	default:
		return nil, challenge(fasthttp.StatusUnauthorized, "this server lets in only those who have a token: send Authorization: Bearer TOKEN", "")
	}
	if err != nil {
		return nil, challenge(fasthttp.StatusUnauthorized, err.Error(), "invalid_token")
	}
	if permit.Scope&to.Scope == 0 {
		return nil, challenge(fasthttp.StatusForbidden, "the token is not for this: it lacks the scope "+to.Scope.String(), "insufficient_scope")
	}
	if to.Queues != nil {
		for _, name := range to.Queues(h) {
			if !permit.Queues.Covers(token.Queues{name}) {
				return nil, challenge(fasthttp.StatusForbidden, fmt.Sprintf("the token is not for the queue %.100q", name), "insufficient_scope")
			}
		}
	}
	return permit, nil
}

var errTicketHere = errors.New("a ticket is only for listening: send Authorization: Bearer TOKEN")

// challenge returns the problem with what a client sent to be let in (RFC 6750,
// section 3).
func challenge(status int, detail, code string) *Problem {
	how := `Bearer realm="revq"`
	if code != "" {
		how += `, error="` + code + `"`
	}
	return NewProblem(status, detail).With("WWW-Authenticate", how)
}

// credentialsOf returns the token or the ticket in a request, "" if there is
// none.
func credentialsOf(h *fasthttp.RequestHeader) (secret, ticket string, p *Problem) {
	var secrets []string
	for _, value := range HeaderLines(h, "Authorization") {
		scheme, rest, _ := bytes.Cut(value, []byte(" "))
		if !bytes.EqualFold(scheme, []byte("Bearer")) {
			return "", "", challenge(fasthttp.StatusUnauthorized, "the only supported scheme of the header Authorization is Bearer", "")
		}
		secrets = append(secrets, string(bytes.TrimSpace(rest)))
	}
	for _, name := range protocols(h) {
		if secret, ok := strings.CutPrefix(name, wire.TokenSubprotocol); ok {
			secrets = append(secrets, secret)
		}
	}
	tickets := QueryOf(h).PeekMulti(wire.TicketParameter)
	switch {
	case len(secrets)+len(tickets) > 1:
		return "", "", challenge(fasthttp.StatusBadRequest, "there is more than one token or ticket: send one", "invalid_request")
	case len(secrets) == 1:
		return secrets[0], "", nil
	case len(tickets) == 1:
		return "", string(tickets[0]), nil
	}
	return "", "", nil
}

// QueryOf returns the arguments in the query of a request.
func QueryOf(h *fasthttp.RequestHeader) *fasthttp.Args {
	_, query, _ := bytes.Cut(h.RequestURI(), []byte("?"))
	query, _, _ = bytes.Cut(query, []byte("#"))
	args := new(fasthttp.Args)
	args.ParseBytes(query)
	return args
}

// protocols returns the subprotocols that a websocket's handshake offers.
func protocols(h *fasthttp.RequestHeader) (names []string) {
	for _, line := range HeaderLines(h, "Sec-WebSocket-Protocol") {
		for name := range strings.SplitSeq(string(line), ",") {
			names = append(names, strings.Trim(name, " \t"))
		}
	}
	return names
}

// AgreeOnProtocol adds our subprotocol to the answer to a handshake, if the
// client offers it. A browser that offers some closes the websocket unless the
// server agrees on one of them.
func AgreeOnProtocol(ctx *fasthttp.RequestCtx) {
	if slices.Contains(protocols(&ctx.Request.Header), wire.Subprotocol) {
		ctx.Response.Header.Set("Sec-WebSocket-Protocol", wire.Subprotocol)
	}
}
