package socket

import (
	"bytes"
	"crypto/sha1"
	"encoding/base64"

	"github.com/valyala/fasthttp"

	"github.com/revq/revq/internal/front"
)

// upgradeAdvice says what a proxy must do to pass on a handshake. nginx needs
// the settings; other proxies do this by themselves.
const upgradeAdvice = "a proxy in between must use HTTP/1.1 and pass on the headers Upgrade and Connection " +
	`(nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";)`

// upgradeRequired is the problem with a request that is not a complete
// handshake. A server must ignore an Upgrade in HTTP/1.0 (RFC 9110, section
// 7.8), and cannot upgrade a connection that the client wants closed.
func upgradeRequired(detail string) *front.Problem {
	return front.NewProblem(fasthttp.StatusUpgradeRequired, detail).With("Upgrade", "websocket").With("Connection", "Upgrade")
}

// checkHandshake returns what is wrong with the handshake of a websocket (RFC
// 6455, section 4.2.1), or nil.
func checkHandshake(h *fasthttp.RequestHeader) *front.Problem {
	// The slice that PeekAll returns is valid only until its next call.
	upgrades := hasToken(h.PeekAll("Upgrade"), "websocket")
	connects := hasToken(h.PeekAll("Connection"), "upgrade")
	closes := h.ConnectionClose()
	key := h.Peek("Sec-WebSocket-Key")
	switch {
	case !upgrades && len(key) == 0:
		return upgradeRequired("results come over a websocket: connect with ws:// instead of http://, or accept text/event-stream")
	case !h.IsHTTP11():
		return upgradeRequired("the handshake of a websocket needs HTTP/1.1, and this one came in " + string(h.Protocol()) + ": " + upgradeAdvice)
	case !upgrades:
		return upgradeRequired("this handshake of a websocket has no header Upgrade: websocket; " + upgradeAdvice)
	case closes:
		return upgradeRequired("this handshake of a websocket says Connection: close; " + upgradeAdvice)
	case !connects:
		return upgradeRequired("this handshake of a websocket has no header Connection: Upgrade; " + upgradeAdvice)
	case string(h.Peek("Sec-WebSocket-Version")) != "13":
		return upgradeRequired("this server supports only version 13 of websockets: send Sec-WebSocket-Version: 13").
			With("Sec-WebSocket-Version", "13")
	case !isNonce(key):
		return front.NewProblem(fasthttp.StatusBadRequest, "the header Sec-WebSocket-Key must be 16 bytes in base64")
	}
	return nil
}

// hasToken reports whether the lines, which together are one comma-separated
// list, hold the token, in upper or lower case.
func hasToken(lines [][]byte, token string) bool {
	for _, line := range lines {
		for item := range bytes.SplitSeq(line, []byte(",")) {
			if bytes.EqualFold(bytes.Trim(item, " \t"), []byte(token)) {
				return true
			}
		}
	}
	return false
}

func isNonce(key []byte) bool {
	var nonce [18]byte // 24 characters decode to at most 18 bytes
	if len(key) != 24 {
		return false
	}
	n, err := base64.StdEncoding.Decode(nonce[:], key)
	return err == nil && n == 16
}

// acceptKey returns the answer to a Sec-WebSocket-Key.
func acceptKey(key []byte) string {
	sum := sha1.Sum(append(bytes.Clone(key), "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"...))
	return base64.StdEncoding.EncodeToString(sum[:])
}
