package client

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// ErrBadURL means that a URL cannot be one of revq.
var ErrBadURL = errors.New("unusable URL")

// parseURL returns the URL of what is at path below rawURL, which may end with
// the path already. It has to have one of the schemes, and a host.
func parseURL(rawURL, path string, schemes ...string) (*url.URL, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Host == "" || !slices.Contains(schemes, u.Scheme) {
		return nil, fmt.Errorf("%w %q: give %s://HOST:PORT", ErrBadURL, rawURL, schemes[0])
	}
	u.RawPath = strings.TrimSuffix(strings.TrimSuffix(u.EscapedPath(), "/"), path) + path
	u.Path = strings.TrimSuffix(strings.TrimSuffix(u.Path, "/"), path) + path
	return u, nil
}
