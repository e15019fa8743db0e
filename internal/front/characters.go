package front

import "bytes"

// trimSpace does what bytes.Trim does, in a fraction of the time.
func trimSpace(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

func hexValue(c byte) int64 {
	switch {
	case '0' <= c && c <= '9':
		return int64(c - '0')
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return int64(c|0x20-'a') + 10
	}
	return -1
}

// isHost reports whether b is a host name or a literal address, with or without
// a port.
func isHost(b []byte) bool {
	if len(b) == 0 {
		return false
	}
	var host, port []byte
	if b[0] == '[' {
		end := bytes.IndexByte(b, ']')
		if end < 0 || end+1 < len(b) && b[end+1] != ':' {
			return false
		}
		host, port = b[1:end], b[min(end+2, len(b)):]
		for _, c := range host {
			if hexValue(c) < 0 && c != ':' && c != '.' {
				return false
			}
		}
	} else {
		host, port, _ = bytes.Cut(b, []byte(":"))
		for _, c := range host {
			if !hostByte[c] {
				return false
			}
		}
	}
	for _, c := range port {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(host) > 0 && len(port) <= len("65535")
}

// hasFold reports whether b begins with the ASCII text prefix in any case.
func hasFold(b []byte, prefix string) bool {
	return len(b) >= len(prefix) && bytes.EqualFold(b[:len(prefix)], []byte(prefix))
}

func isToken(b []byte) bool {
	for _, c := range b {
		if !tokenByte[c] {
			return false
		}
	}
	return len(b) > 0
}

// hostByte has the characters of host names, and of the names that people give
// to their hosts.
var hostByte = func() (t [256]bool) {
	for c := range t {
		t[c] = '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z' || c == '-' || c == '.' || c == '_' || c == '~'
	}
	return t
}()

// tokenByte has the characters of methods and names (RFC 9110, section 5.6.2).
var tokenByte = func() (t [256]bool) {
	for c := range t {
		t[c] = '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z'
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		t[c] = true
	}
	return t
}()
